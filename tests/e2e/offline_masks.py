"""Masks by vLLM's offline class, in a process of its own: ``python -m ... JOB``."""

import json
import sys
from pathlib import Path

from PIL import Image


def main() -> None:
    import vllm_litelvlm

    vllm_litelvlm.activate()
    from vllm import LLM

    from vllm_litelvlm.grounding import segment, segment_frames

    job = json.loads(sys.argv[1])
    llm = LLM(
        job["model"],
        runner="pooling",
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=4,
        additional_config={
            "litelvlm": {"clip_model": job["clip"], "budget": 50, "positions": "original"}
        },
    )
    images = [Image.open(file).convert("RGB") for file in job["images"]]
    rounds = [segment(llm, image, job["texts"]) for image in images]
    separate = segment_frames(llm, images, job["texts"], conversation="separate")
    answers = {"rounds": rounds, "separate": separate}
    lengths = {
        way: [[mask.rle() for mask in masks] for masks in of_pictures]
        for way, of_pictures in answers.items()
    }
    Path(job["answers"]).write_text(json.dumps(lengths))


if __name__ == "__main__":
    main()
