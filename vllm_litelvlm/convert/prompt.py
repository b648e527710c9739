"""GLaMM's prompt, as a chat template."""

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
#: Stands in front of the words of a turn for each of its images; GLaMM's own has one, in the first.
OVERVIEW = "The <im_start><image><im_end> provides an overview of the picture.\n"

#: GLaMM's conversation ``llava_v1`` with its start marks around the image. It begins with the
#: beginning-of-sequence token, since vLLM adds none to a conversation. An answer loses the space
#: that a server leaves in front of it, as the template has one there.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}{{ \"" + SYSTEM + ' " }}{% endif %}'
    "{% for message in messages %}"
    "{% set said %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{{ '" + OVERVIEW.replace("\n", "\\n") + "' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% endset %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + said + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + said | trim + eos_token }}"
    "{% else %}{{ said + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
