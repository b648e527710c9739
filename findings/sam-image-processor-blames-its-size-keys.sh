#!/usr/bin/env bash
# transformers 5.19.0 with torch 2.13.0, torchvision 0.28.0 and pillow 13.0.0.
#
# SAM's image processor makes a picture's longer side 1024 pixels and rounds the shorter. Where a picture is more
# than 2048 times as long as it is thin (3000 x 1, say), the shorter side rounds to 0, which the resizing beneath
# takes for a size that was not given. The picture is refused with an error about the processor's settings: the
# size "must contain 'height' and 'width' keys", and it goes on to print both. Nothing says that the picture is
# at fault, so who catches errors of pictures by what they say misses it. 2048 x 1 becomes 1024 x 1, and passes.
# The processor without torchvision does the same.
#
# Fails if one of the two takes the thin picture, or refuses it in other words, or refuses the one that passes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 transformers==5.19.0 pillow==13.0.0
export PYTHONPATH=$folder
# PyPI's torchvision is of a GPU's torch, and beside a CPU's lacks two operators that its import names.
"$folder/venv/bin/python" -c 'import torchvision' 2>/dev/null || cat >"$folder/sitecustomize.py" <<'PY'
import torch

library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY

"$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { tail -20 "$folder/log"; exit 1; }
from PIL import Image
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam.image_processing_sam import SamImageProcessor

for kind in (SamImageProcessor, SamImageProcessorPil):
    processor = kind()
    print(f"{kind.__name__}, {processor.size}, {processor.pad_size}")
    for size in ((2048, 1), (3000, 1), (1, 3000)):
        picture = Image.new("RGB", size)
        try:
            made = processor(images=picture, return_tensors="pt")
        except ValueError as error:
            print(f"    {size}: {error}")
            assert size != (2048, 1)
            assert "must contain 'height' and 'width' keys" in str(error)
            assert "width=1024" in str(error) or "height=1024" in str(error)
        else:
            print(f"    {size}: {made['reshaped_input_sizes'].tolist()} in {list(made['pixel_values'].shape)}")
            assert size == (2048, 1), "it takes the thin picture now"
PY
