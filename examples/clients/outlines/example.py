"""outlines: options go in ``extra_body`` of a call."""

import os
from typing import Literal

import outlines
from openai import OpenAI
from outlines.inputs import Image
from PIL import Image as Picture

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
prompt = ["What colour is the circle?"]
if image := os.environ["IMAGE"]:
    prompt.append(Image(Picture.open(image)))

client = OpenAI(base_url=os.environ["BASE_URL"], api_key="none")
model = outlines.from_vllm(client, os.environ["MODEL"])
colour = Literal["red", "green", "blue", "yellow"]
print(model(prompt, colour, max_tokens=8, extra_body={"mm_processor_kwargs": options}))
