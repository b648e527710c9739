"""Runs vLLM's memory profile in this process and prints what the plugin did: ``python -m ...``.

Arguments: LLaVA folder, CLIP folder. The profile itself is only measured on a GPU, but runs
everywhere.
"""

import json
import os
import sys


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
    print(json.dumps(llm.collective_rpc(_profile)[0]))


def _profile(worker: object) -> dict[str, object]:
    runner = worker.model_runner  # type: ignore[attr-defined]
    model, seen, projected = runner.model, [], []
    tower, projector = model.vision_tower, model.multi_modal_projector
    tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    projector.register_forward_hook(lambda _, inputs, __: projected.append(list(inputs[0].shape)))
    runner.profile_run()
    cache = model.litelvlm.feature_cache
    return {
        "images_seen": seen,
        "projected": projected,
        "kept": len(cache),
        "queries": cache.queries,
        "cache_bytes": sum(memory.nbytes for memory in cache.memory.values()),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
