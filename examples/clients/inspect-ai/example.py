"""inspect-ai: options go in ``GenerateConfig(extra_body=...)``, with ``openai-api/NAME/MODEL``."""

import os

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

options = {"litelvlm": {"budget": int(os.environ["BUDGET"])}}
samples = [Sample(input="What colour is the sky?", target="blue")]
if image := os.environ["IMAGE"]:
    content = [ContentText(text="What colour is the circle?"), ContentImage(image=image)]
    samples.append(Sample(input=[ChatMessageUser(content=content)], target="red"))

[log] = eval(
    Task(dataset=samples, solver=generate(), scorer=includes()),
    model=get_model(
        f"openai-api/vllm/{os.environ['MODEL']}",
        base_url=os.environ["BASE_URL"],
        api_key="none",
        config=GenerateConfig(max_tokens=8, extra_body={"mm_processor_kwargs": options}),
    ),
    display="plain",
)
if log.status != "success":  # an eval that fails does not raise
    raise SystemExit(log.status)
print(log.stats.model_usage)
