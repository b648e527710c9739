"""langchain: options go in ``extra_body`` of ``ChatOpenAI``."""

import base64
import os
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
content = [{"type": "text", "text": "What colour is the circle?"}]
if image := os.environ["IMAGE"]:
    encoded = base64.b64encode(Path(image).read_bytes()).decode()
    content.insert(0, {"type": "image", "base64": encoded, "mime_type": "image/png"})

model = ChatOpenAI(
    model=os.environ["MODEL"],
    base_url=os.environ["BASE_URL"],
    api_key="none",
    max_tokens=8,
    extra_body={"mm_processor_kwargs": options},
)
answer = model.invoke([HumanMessage(content)])
print(answer.content, answer.usage_metadata)
