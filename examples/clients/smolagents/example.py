"""smolagents: options go in ``extra_body`` of the model, and plan steps carry them too."""

import os

from PIL import Image
from smolagents import CodeAgent, OpenAIServerModel

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
model = OpenAIServerModel(
    os.environ["MODEL"],
    api_base=os.environ["BASE_URL"],
    api_key="none",
    max_tokens=16,
    extra_body={"mm_processor_kwargs": options},
)
agent = CodeAgent(tools=[], model=model, planning_interval=1, max_steps=1, return_full_result=True)
agent.prompt_templates["system_prompt"] = "Answer in code."  # the demo model's context is short
images = [Image.open(image)] if (image := os.environ["IMAGE"]) else None
result = agent.run("What colour is the circle?", images=images)
print(result.output, result.token_usage)
