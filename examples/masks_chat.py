"""Ask a question about a picture, and draw what the answer points at.

The model says [SEG] where it points; the conversation then gives the masks. Serve a checkpoint with
[SEG] and a SAM (``litelvlm convert glamm`` writes one):

    vllm serve FOLDER --plugin litelvlm
    python examples/masks_chat.py photo.jpg "Please segment the cup and the spoon." --budget 64
"""

import argparse
import base64
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

COLOURS = [(226, 34, 34), (22, 160, 60), (44, 110, 230), (230, 150, 20), (150, 60, 200)]


def main() -> None:
    """Print the answer, and draw a mask for each [SEG] of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("image", type=Path, help="a file")
    parser.add_argument("question", help="what to ask about it")
    parser.add_argument("--url", default="http://localhost:8000", help="of the server")
    parser.add_argument("--budget", type=int, help="visual tokens to keep (default: the server's)")
    parser.add_argument("--max-tokens", type=int, default=128, help="of the answer (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("masks.png"), help="(%(default)s)")
    chosen = parser.parse_args()

    encoded = base64.b64encode(chosen.image.read_bytes()).decode()
    link = f"data:image/{chosen.image.suffix.lstrip('.')};base64,{encoded}"
    parts = [
        {"type": "image_url", "image_url": {"url": link}},
        {"type": "text", "text": chosen.question},
    ]
    messages = [{"role": "user", "content": parts}]
    # Both requests say the same of the pruning, or the masks would be of another conversation.
    options = {} if chosen.budget is None else {"litelvlm": {"budget": chosen.budget}}
    common = {"messages": messages, "mm_processor_kwargs": options}
    asked = {"temperature": 0, "max_tokens": chosen.max_tokens, "return_token_ids": True}
    answer = post(chosen.url, "/v1/chat/completions", {**common, **asked})["choices"][0]
    print(answer["message"]["content"].strip())
    if "[SEG]" not in answer["message"]["content"]:
        raise SystemExit("The answer points at nothing; ask to segment something.")

    # With its tokens the answer is read exactly as it was said.
    said = {**answer["message"], "token_ids": answer["token_ids"]}
    found = post(chosen.url, "/v1/masks", {**common, "messages": [*messages, said]})

    # The server turns a picture as its EXIF says.
    seen = ImageOps.exif_transpose(Image.open(chosen.image)).convert("RGB")
    picture = np.asarray(seen, dtype=np.float32).copy()
    for one in found["data"]:
        colour = np.float32(COLOURS[one["index"] % len(COLOURS)])
        inside = coco_mask.decode(one["segmentation"]).astype(bool)
        picture[inside] = (picture[inside] + colour) / 2
        where = f"{one['area']} pixels, box {one['bbox']}, score {one['score']:.2f}"
        print(f"[SEG] {one['index']} ({one['expression']}): {where}")
    Image.fromarray(picture.round().astype(np.uint8)).save(chosen.output)
    print(f"Drawn in {chosen.output}")


def post(url: str, path: str, body: dict[str, object]) -> dict[str, list[dict]]:
    """The server's answer; ends with its sentence where it refuses."""
    answer = httpx.post(f"{url}{path}", json=body, timeout=600)
    if answer.is_error:
        raise SystemExit(answer.json()["error"]["message"])
    return answer.json()


if __name__ == "__main__":
    main()
