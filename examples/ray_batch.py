"""Questions about many photographs, answered by one engine for each GPU of a Ray cluster.

    pip install 'vllm-litelvlm[ray]'
    python examples/ray_batch.py llava-hf/llava-1.5-7b-hf questions.jsonl answers.jsonl

A line of the questions is {"image": "photo.jpg", "text": "Where is the red cup?"}; the answers are
the same lines, in the same order, with "answer" and "prompt_tokens". Each question prunes its image
for itself, so it does not matter which engine gets what. Without a cluster (RAY_ADDRESS) Ray runs
on this machine, and without a GPU there is one engine unless --engines says more.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool
from rich.progress import track

import vllm_litelvlm


class Engine:
    """One of the cluster's engines, in a process of its own."""

    def __init__(self, model: str, dtype: str, server_options: dict[str, Any]) -> None:
        vllm_litelvlm.activate()  # in the process that builds the engine
        from vllm import LLM

        self._llm = LLM(
            model,
            dtype=dtype,
            max_model_len=4096,
            enforce_eager=True,
            additional_config={"litelvlm": server_options},
        )

    def answer(
        self, questions: list[dict[str, Any]], budget: int, max_tokens: int
    ) -> list[dict[str, Any]]:
        from vllm import SamplingParams

        outputs = self._llm.chat(
            [[_message(question)] for question in questions],
            SamplingParams(temperature=0, max_tokens=max_tokens),
            mm_processor_kwargs={"litelvlm": {"budget": budget}},
            use_tqdm=False,
        )
        return [
            {
                **question,
                "answer": output.outputs[0].text.strip(),
                "prompt_tokens": len(output.prompt_token_ids),
            }
            for question, output in zip(questions, outputs, strict=True)
        ]


def _message(question: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    image = Image.open(question["image"]).convert("RGB")
    parts = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": question["text"]}]
    return {"role": "user", "content": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="hub name or folder of a LLaVA-1.5 checkpoint")
    parser.add_argument("questions", type=Path, help="JSON lines with an image's path and a text")
    parser.add_argument("answers", type=Path, help="where to write them")
    parser.add_argument("--engines", type=int, help="(one for each GPU)")
    parser.add_argument("--batch-size", type=int, default=64, help="questions a call (64)")
    parser.add_argument("--budget", type=int, default=128, help="tokens kept of each image (128)")
    parser.add_argument("--clip-model", help="the vision tower's CLIP, if not the published one")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    lines = arguments.questions.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines if line.strip()]
    size = arguments.batch_size
    batches = [questions[start : start + size] for start in range(0, len(questions), size)]

    ray.init()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    engines = arguments.engines or max(1, gpus)
    server_options = {"clip_model": arguments.clip_model} if arguments.clip_model else {}
    actor = ray.remote(num_gpus=1 if gpus else 0)(Engine)
    pool = ActorPool(
        [actor.remote(arguments.model, arguments.dtype, server_options) for _ in range(engines)]
    )
    answered = pool.map(
        lambda engine, batch: engine.answer.remote(batch, arguments.budget, arguments.max_tokens),
        batches,
    )
    with arguments.answers.open("w", encoding="utf-8") as file:
        for answers in track(answered, f"{engines} engines", total=len(batches)):
            file.writelines(json.dumps(answer) + "\n" for answer in answers)


if __name__ == "__main__":
    main()
