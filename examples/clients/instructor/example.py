"""instructor: options go in ``extra_body`` of a call."""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
content = ["What colour is the circle?"]
if image := os.environ["IMAGE"]:
    content.insert(0, instructor.Image.from_path(image))


class Circle(BaseModel):
    colour: Literal["red", "green", "blue", "yellow"]


openai = OpenAI(base_url=os.environ["BASE_URL"], api_key="none")
client = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)
circle, answer = client.chat.completions.create_with_completion(
    model=os.environ["MODEL"],
    messages=[{"role": "user", "content": content}],
    response_model=Circle,
    max_retries=1,
    max_tokens=32,
    extra_body={"mm_processor_kwargs": options},
)
print(circle, answer.usage)
