"""Runs jobs on vLLM's offline classes in a process of its own: ``python -m ... JOBS.json``.

The file holds ``{"engine": keyword arguments, "asynchronous": bool, "activate": bool, "batches":
[[request, ...], ...]}``, a request ``{"prompt", "images", "options", "tokens", "ignore_eos",
"lora"}``. Answers are written beside it as ``answers.json``, batch by batch.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image


def main(path: Path) -> None:
    jobs = json.loads(path.read_text())
    if jobs.get("activate", True):
        import vllm_litelvlm

        vllm_litelvlm.activate()
    run = _run_async(jobs) if jobs.get("asynchronous") else _run(jobs)
    (path.parent / "answers.json").write_text(json.dumps(run))


def _prompt(request: dict[str, Any]) -> dict[str, Any]:
    images = [Image.open(image).convert("RGB") for image in request["images"]]
    prompt: dict[str, Any] = {"prompt": request["prompt"]}
    if images:
        prompt["multi_modal_data"] = {"image": images}
    if request.get("options") is not None:
        prompt["mm_processor_kwargs"] = {"litelvlm": request["options"]}
    return prompt


def _sampling(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0,
        max_tokens=request.get("tokens", 8),
        logprobs=0,
        ignore_eos=request.get("ignore_eos", False),
    )


def _lora(request: dict[str, Any]) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, request["lora"]) if request.get("lora") else None


def _answer(output: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_tokens": output.num_cached_tokens,
        "token_ids": list(output.outputs[0].token_ids),
        "logprobs": [
            entry[token].logprob
            for token, entry in zip(
                output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True
            )
        ],
    }


def _run(jobs: dict[str, Any]) -> list[Any]:
    from vllm import LLM

    llm = LLM(**jobs["engine"])
    answers: list[Any] = []
    for batch in jobs["batches"]:
        try:
            outputs = llm.generate(
                [_prompt(request) for request in batch],
                [_sampling(request) for request in batch],
                lora_request=[_lora(request) for request in batch],
                use_tqdm=False,
            )
        except Exception as error:
            answers.append({"error": type(error).__name__, "message": str(error)})
        else:
            answers.append([_answer(output) for output in outputs])
    return answers


def _run_async(jobs: dict[str, Any]) -> list[Any]:
    return asyncio.run(_run_batches(jobs))


async def _run_batches(jobs: dict[str, Any]) -> list[Any]:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**jobs["engine"]))

    async def one(name: str, request: dict[str, Any]) -> dict[str, Any]:
        final = None
        stream = engine.generate(_prompt(request), _sampling(request), request_id=name)
        async for output in stream:
            final = output
        return _answer(final)

    answers: list[Any] = []
    for number, batch in enumerate(jobs["batches"]):
        names = [f"{number}-{place}" for place in range(len(batch))]
        answers.append(await asyncio.gather(*map(one, names, batch)))
    engine.shutdown()
    return answers


if __name__ == "__main__":
    main(Path(sys.argv[1]))
