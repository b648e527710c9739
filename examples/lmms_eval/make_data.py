"""Writes ``scenes.parquet``: drawn scenes with short questions, as a local data set.

python make_data.py
"""

import io
from pathlib import Path

from datasets import Dataset

from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset

QUESTIONS = 24
KINDS = ("size", "colour", "texture", "shape", "count", "presence", "relation")


def main() -> None:
    samples = SceneDataset("test", QUESTIONS, kinds=KINDS)
    Dataset.from_list([record(sample) for sample in samples]).to_parquet(Path("scenes.parquet"))


def record(sample: Sample) -> dict[str, object]:
    buffer = io.BytesIO()
    sample.image.save(buffer, format="PNG")
    return {
        "name": sample.name,
        "image": buffer.getvalue(),
        "question": sample.prompt,
        "answer": sample.answer,
    }


if __name__ == "__main__":
    main()
