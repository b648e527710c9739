"""haystack: options go in ``extra_body`` of ``generation_kwargs``."""

import os

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, ImageContent
from haystack.utils import Secret

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
parts = ["What colour is the circle?"]
if image := os.environ["IMAGE"]:
    parts.insert(0, ImageContent.from_file_path(image))

generator = OpenAIChatGenerator(
    model=os.environ["MODEL"],
    api_base_url=os.environ["BASE_URL"],
    api_key=Secret.from_token("none"),
    generation_kwargs={"max_tokens": 8, "extra_body": {"mm_processor_kwargs": options}},
)
[reply] = generator.run([ChatMessage.from_user(content_parts=parts)])["replies"]
print(reply.text, reply.meta["usage"])
