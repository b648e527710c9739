"""Ask a server for masks, and draw them.

Serve a checkpoint with [SEG] and a SAM (``litelvlm convert glamm`` writes one):

    vllm serve FOLDER --plugin litelvlm
    python examples/masks.py photo.jpg "the red cup" "a spoon" --budget 64
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
    """Draw every mask over the picture, and tell areas and scores."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("image", type=Path, help="a file")
    parser.add_argument("expressions", nargs="+", help="what to find in it")
    parser.add_argument("--url", default="http://localhost:8000", help="of the server")
    parser.add_argument("--budget", type=int, help="visual tokens to keep (default: the server's)")
    parser.add_argument("--separate", action="store_true", help="each expression by itself")
    parser.add_argument("--output", type=Path, default=Path("masks.png"), help="(%(default)s)")
    chosen = parser.parse_args()

    encoded = base64.b64encode(chosen.image.read_bytes()).decode()
    body = {
        "image": f"data:image/{chosen.image.suffix.lstrip('.')};base64,{encoded}",
        "expressions": chosen.expressions,
        "conversation": "separate" if chosen.separate else "rounds",
    }
    if chosen.budget is not None:
        body["mm_processor_kwargs"] = {"litelvlm": {"budget": chosen.budget}}
    answer = httpx.post(f"{chosen.url}/v1/masks", json=body, timeout=600)
    if answer.is_error:
        raise SystemExit(answer.json()["error"]["message"])
    found = answer.json()

    # The server turns a picture as its EXIF says.
    seen = ImageOps.exif_transpose(Image.open(chosen.image)).convert("RGB")
    picture = np.asarray(seen, dtype=np.float32).copy()
    for one in found["data"]:
        colour = np.float32(COLOURS[one["index"] % len(COLOURS)])
        inside = coco_mask.decode(one["segmentation"]).astype(bool)
        picture[inside] = (picture[inside] + colour) / 2
        where = f"{one['area']} pixels, box {one['bbox']}, score {one['score']:.2f}"
        print(f"{one['expression']}: {where}")
    Image.fromarray(picture.round().astype(np.uint8)).save(chosen.output)
    print(f"{found['usage']['prompt_tokens']} prompt tokens; drawn in {chosen.output}")


if __name__ == "__main__":
    main()
