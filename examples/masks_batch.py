"""Masks for a file of pictures and expressions, without a server.

Every line of the input is ``{"image": "photo.jpg", "expressions": ["the red cup"]}``; the output
has the same lines with ``masks``, COCO run lengths in the order of the expressions.

    python examples/masks_batch.py FOLDER questions.jsonl masks.jsonl --budget 64
"""

import argparse
import json
from pathlib import Path

from PIL import Image
from rich.progress import track

import vllm_litelvlm
from vllm_litelvlm.errors import LiteLVLMError


def main() -> None:
    """Answer line by line; a line that cannot be answered says why."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", help="folder or hub name of a checkpoint with [SEG] and a SAM")
    parser.add_argument("input", type=Path, help="JSON lines")
    parser.add_argument("output", type=Path, help="JSON lines")
    parser.add_argument("--budget", type=int, default=192, help="visual tokens (%(default)s)")
    parser.add_argument("--clip-model", help="where the published CLIP does not fit")
    chosen = parser.parse_args()

    vllm_litelvlm.activate()
    from vllm import LLM

    from vllm_litelvlm.grounding import segment

    options = {"clip_model": chosen.clip_model} if chosen.clip_model else {}
    llm = LLM(
        chosen.model,
        runner="pooling",
        max_model_len=4096,
        enforce_eager=True,
        additional_config={"litelvlm": options},
    )
    lines = chosen.input.read_text().splitlines()
    with chosen.output.open("w") as output:
        for line in track(lines, "Segmenting"):
            asked = json.loads(line)
            try:
                options = {"budget": chosen.budget}
                with Image.open(asked["image"]) as picture:
                    masks = segment(llm, picture, asked["expressions"], options=options)
                found = {"masks": [mask.rle() for mask in masks]}
            except (LiteLVLMError, OSError, ValueError) as error:
                found = {"error": str(error)}
            output.write(json.dumps({**asked, **found}) + "\n")
    # Its threads would otherwise end with the interpreter, which some of them do not survive.
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
