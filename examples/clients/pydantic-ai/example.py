"""pydantic-ai: options go in ``extra_body`` of the model settings."""

import os
from pathlib import Path

from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
prompt = ["What colour is the circle?"]
if image := os.environ["IMAGE"]:
    prompt.insert(0, BinaryContent(Path(image).read_bytes(), media_type="image/png"))

provider = OpenAIProvider(base_url=os.environ["BASE_URL"], api_key="none")
agent = Agent(
    OpenAIChatModel(os.environ["MODEL"], provider=provider),
    model_settings={"max_tokens": 8, "extra_body": {"mm_processor_kwargs": options}},
)
answer = agent.run_sync(prompt)
print(answer.output, answer.usage)
