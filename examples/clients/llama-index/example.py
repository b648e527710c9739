"""llama-index: options go in ``extra_body`` inside ``additional_kwargs`` of ``OpenAILike``."""

import os

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
blocks = [TextBlock(text="What colour is the circle?")]
if image := os.environ["IMAGE"]:
    blocks.insert(0, ImageBlock(path=image))

model = OpenAILike(
    model=os.environ["MODEL"],
    api_base=os.environ["BASE_URL"],
    api_key="none",
    is_chat_model=True,
    max_tokens=8,
    additional_kwargs={"extra_body": {"mm_processor_kwargs": options}},
)
answer = model.chat([ChatMessage(role="user", blocks=blocks)])
print(answer.message.content, answer.raw.usage)
