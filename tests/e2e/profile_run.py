"""Runs vLLM's memory profile, and more images at small budgets: ``python -m ...``.

In this process; it prints what the plugin did.

Arguments: LLaVA folder, CLIP folder. The profile itself is only measured on a GPU, but runs
everywhere.
"""

import json
import os
import sys
from typing import Any

from PIL import Image
from vllm import SamplingParams


def main(llava: str, clip: str) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm_litelvlm

    vllm_litelvlm.activate()
    from vllm import LLM

    llm = LLM(
        llava,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_batched_tokens=4096,
        limit_mm_per_prompt={"image": 4},
        additional_config={"litelvlm": {"clip_model": clip, "methods": ["litelvlm", "divprune"]}},
    )
    profiled = llm.collective_rpc(_profile)[0]
    print(json.dumps({**profiled, "served": _serve(llm)}))


def _serve(llm: Any) -> dict[str, list[int]]:
    """How many images the tower and guidance see at once while many wait in one step."""
    seen: dict[str, list[int]] = {"tower": [], "guidance": []}
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    model.vision_tower.register_forward_hook(
        lambda _, inputs, __: seen["tower"].append(len(inputs[0]))
    )
    stock = model.litelvlm.signals

    def signals(images: Any, text_ids: Any, *others: Any) -> Any:
        seen["guidance"].append(len(text_ids))
        return stock(images, text_ids, *others)

    model.litelvlm.signals = signals
    mixed = [4, 8, 64, 576, 1, 16, 8, 8, 32, 2, 100, 3, 8, 4, 4]
    prompts = [
        {
            "prompt": "USER: <image>\nWhere is it? ASSISTANT:",
            "multi_modal_data": {"image": Image.new("RGB", (40, 40), (number, 90, 30))},
            "mm_processor_kwargs": {"litelvlm": {"budget": budget}},
        }
        for number, budget in enumerate(mixed)
    ]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1), use_tqdm=False)
    lengths = [len(output.prompt_token_ids) for output in outputs]
    assert [length - lengths[4] + 1 for length in lengths] == mixed
    return seen


def _profile(worker: object) -> dict[str, object]:
    runner = worker.model_runner  # type: ignore[attr-defined]
    model, seen, projected = runner.model, [], []
    tower, projector = model.vision_tower, model.multi_modal_projector
    tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    projector.register_forward_hook(lambda _, inputs, __: projected.append(list(inputs[0].shape)))
    runner.profile_run()
    cache = model.litelvlm.feature_cache
    return {
        "images_seen": [*seen],
        "projected": [*projected],
        "kept": len(cache),
        "queries": cache.queries,
        "cache_bytes": sum(memory.nbytes for memory in cache.memory.values()),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
