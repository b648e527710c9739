"""Masks by vLLM's offline class, in a process of its own: ``python -m ... JOB``.

The engine generates, as it does unless told otherwise; ``examples/masks_batch.py`` has one that
pools.
"""

import json
import sys
from pathlib import Path

from PIL import Image


def main() -> None:
    import vllm_litelvlm

    vllm_litelvlm.activate()
    from vllm import LLM

    from vllm_litelvlm.grounding import segment_frames
    from vllm_litelvlm.grounding.segmenter import Segmenter

    job = json.loads(sys.argv[1])
    vectors: list[list[list[float]]] = []

    class Noting(Segmenter):
        def masks(self, picture, prompts):
            vectors.append(prompts.tolist())
            return super().masks(picture, prompts)

    llm = LLM(
        job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=4,
        max_num_batched_tokens=150,
        additional_config={"litelvlm": {"clip_model": job["clip"], "positions": "original"}},
    )
    segmenter = Noting.load(job["model"])
    images = [Image.open(file).convert("RGB") for file in job["images"]]
    lengths = [
        [
            [mask.rle() for mask in masks]
            for masks in segment_frames(
                llm,
                images,
                asked["texts"],
                conversation=asked["conversation"],
                options=asked["options"],
                segmenter=segmenter,
            )
        ]
        for asked in job["asked"]
    ]
    Path(job["answers"]).write_text(json.dumps({"masks": lengths, "vectors": vectors}))
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
