"""litellm: options go in ``extra_body`` or as bare keywords."""

import base64
import os
from pathlib import Path

import litellm

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
content = [{"type": "text", "text": "What colour is the circle?"}]
if image := os.environ["IMAGE"]:
    url = f"data:image/png;base64,{base64.b64encode(Path(image).read_bytes()).decode()}"
    content.insert(0, {"type": "image_url", "image_url": {"url": url}})

for keywords in (
    {"mm_processor_kwargs": options},
    {"extra_body": {"mm_processor_kwargs": options}},
):
    answer = litellm.completion(
        model=f"hosted_vllm/{os.environ['MODEL']}",
        api_base=os.environ["BASE_URL"],
        messages=[{"role": "user", "content": content}],
        max_tokens=8,
        **keywords,
    )
    print(answer.choices[0].message.content, answer.usage)
