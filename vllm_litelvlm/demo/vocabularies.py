"""Small tokenizers in the published formats, trained on text that every Python has.

Both cover every byte, so text in any script survives them.
"""

import json
from collections.abc import Iterable
from pydoc_data.topics import topics

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, LlamaTokenizer, Qwen2Tokenizer, Siglip2Tokenizer

IMAGE_TOKEN = "<image>"

#: The conversation format of llava-hf's LLaVA-1.5: images first, then the text of each turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

QWEN_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: The conversation format of Qwen-VLs (ChatML): a default system message, parts in their order.
QWEN_CHAT_TEMPLATE = (
    "{% macro seen(kind) %}{{ '<|vision_start|><|' + kind + '_pad|><|vision_end|>' }}{% endmacro %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "{{ seen('video' if part['type'] == 'video' else 'image') }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama_tokenizer(size: int) -> LlamaTokenizer:
    """A Llama tokenizer (BPE with byte fallback) of ``size`` entries, plus image and pad token."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    return train_llama(tokenizer, trainer, topics.values())


def train_llama(
    tokenizer: Tokenizer, trainer: trainers.BpeTrainer, texts: Iterable[str]
) -> LlamaTokenizer:
    """Train on ``texts`` and make it LLaVA's: image and pad token, and the chat template."""
    vocabulary, merges = _train(tokenizer, trainer, texts)
    built = LlamaTokenizer(
        vocab=vocabulary,
        merges=merges,
        extra_special_tokens=[IMAGE_TOKEN],
        pad_token="<pad>",
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )
    built.chat_template = CHAT_TEMPLATE
    return built


def qwen_tokenizer(size: int) -> Qwen2Tokenizer:
    """A Qwen tokenizer (byte-level BPE) of about ``size`` entries, and its chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    vocabulary, merges = _train(tokenizer, trainer, topics.values())
    built = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=list(QWEN_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    built.chat_template = QWEN_CHAT_TEMPLATE
    return built


def clip_tokenizer(
    size: int, max_tokens: int, texts: Iterable[str] = tuple(topics.values())
) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE with word ends) of about ``size`` entries."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        initial_alphabet=alphabet,
        # Every byte as the end of a word, named beforehand: the trainer would number those that
        # it meets in an order that changes from run to run.
        special_tokens=[f"{byte}</w>" for byte in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    vocabulary, merges = _train(tokenizer, trainer, texts)
    for entry in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[entry] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)


def gemma_tokenizer(size: int, max_tokens: int) -> Siglip2Tokenizer:
    """SigLIP-2's tokenizer, Gemma's in lower case (BPE with byte fallback), of ``size`` entries."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(" ", "▁")]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*special, *every_byte], show_progress=False
    )
    # Merges within words, each with the space before it.
    words = ("▁" + word for text in topics.values() for word in text.split())
    vocabulary, merges = _train(tokenizer, trainer, words)
    built = Siglip2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        add_eos_token=True,
        add_bos_token=False,
        padding_side="right",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
    return built


def _train(
    tokenizer: Tokenizer, trainer: trainers.BpeTrainer, texts: Iterable[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]
