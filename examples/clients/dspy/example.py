"""dspy: options go in ``extra_body`` of ``dspy.LM``."""

import os
from typing import Literal

import dspy
from pydantic import BaseModel

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}


class Circle(BaseModel):
    colour: Literal["red", "green", "blue", "yellow"]


model = dspy.LM(
    f"hosted_vllm/{os.environ['MODEL']}",
    api_base=os.environ["BASE_URL"],
    api_key="none",
    max_tokens=32,
    cache=False,
    response_format=Circle,  # the demo's model keeps to no format by itself
    extra_body={"mm_processor_kwargs": options},
)
dspy.configure(lm=model, adapter=dspy.JSONAdapter(), track_usage=True)

inputs = {"question": "What colour is the circle?"}
if image := os.environ["IMAGE"]:
    inputs["picture"] = dspy.Image.from_path(image)
circle = dspy.Predict(f"{', '.join(inputs)} -> colour")(**inputs)
print(circle, circle.get_lm_usage())
