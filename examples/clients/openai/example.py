"""openai: options go in ``extra_body`` of a call."""

import base64
import os
from pathlib import Path

from openai import OpenAI

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
content = [{"type": "text", "text": "What colour is the circle?"}]
if image := os.environ["IMAGE"]:
    url = f"data:image/png;base64,{base64.b64encode(Path(image).read_bytes()).decode()}"
    content.insert(0, {"type": "image_url", "image_url": {"url": url}})

answer = OpenAI(base_url=os.environ["BASE_URL"], api_key="none").chat.completions.create(
    model=os.environ["MODEL"],
    messages=[{"role": "user", "content": content}],
    max_tokens=8,
    extra_body={"mm_processor_kwargs": options},
)
print(answer.choices[0].message.content, answer.usage)
