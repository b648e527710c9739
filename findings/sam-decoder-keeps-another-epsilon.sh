#!/usr/bin/env bash
# transformers 5.19.0 and segment-anything 1.0 with torch 2.13.0.
#
# SAM's mask decoder norms the tokens and the image in its two-way transformer with nn.LayerNorm as it comes,
# with an epsilon of 1e-5. transformers' SamMaskDecoderConfig has a layer_norm_eps of 1e-6, and uses it for the
# four norms of every block (the last norm behind them is 1e-5 in both). A checkpoint in SAM's own form says
# nothing about it, so SAM's weights under a default configuration give other mask logits than SAM's own modules
# do: in a small decoder of random weights by 5e-6 where the logits are 0.02, about a hundred times what rounding
# makes. With layer_norm_eps=1e-5 they agree. So small a gap is in the way of tests that compare the two closely.
# The 1e-6 of the image encoder and the prompt encoder is SAM's own.
#
# Fails if the default configuration gives the original's logits, or 1e-5 does not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=$folder/venv/bin/pip
"$pip" install --quiet torch==2.13.0 transformers==5.19.0
# Its modules alone: the package itself imports torchvision.
"$pip" download --quiet --no-deps --dest "$folder" segment-anything==1.0
python3 -m zipfile -e "$folder"/segment_anything-1.0-*.whl "$folder/wheel"

PYTHONPATH=$folder/wheel/segment_anything "$folder/venv/bin/python" - <<'PY'
import re

import torch
from modeling.mask_decoder import MaskDecoder
from modeling.transformer import TwoWayTransformer
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder
from transformers.utils import logging

logging.set_verbosity_error()
WIDTH, INNER, HEADS, SIDE = 32, 64, 4, 8


def renamed(name):
    """A weight's name in transformers."""
    for pattern, other in (
        (r"norm_final_attn", "layer_norm_final_attn"),
        (r"\.norm(\d)", r".layer_norm\1"),
        (r"output_upscaling\.0", "upscale_conv1"),
        (r"output_upscaling\.1", "upscale_layer_norm"),
        (r"output_upscaling\.3", "upscale_conv2"),
    ):
        name = re.sub(pattern, other, name)
    if "hypernetworks" in name or "prediction" in name:
        name = name.replace("layers.0", "proj_in").replace("layers.2", "proj_out").replace("layers.1", "layers.0")
    return name


torch.manual_seed(0)
transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=HEADS, mlp_dim=INNER)
original = MaskDecoder(transformer_dim=WIDTH, transformer=transformer, iou_head_hidden_dim=WIDTH).eval()
norms = [module for module in original.modules() if isinstance(module, torch.nn.LayerNorm)]
print(f"the original's {len(norms)} norms:", {norm.eps for norm in norms})
weights = {renamed(name): weight for name, weight in original.state_dict().items()}
image, places, dense = torch.randn(3, 1, WIDTH, SIDE, SIDE)
points = torch.randn(1, 2, WIDTH)
with torch.no_grad():
    expected, _ = original(image, places, points, dense, multimask_output=True)
print(f"logits are {expected.abs().mean():.4f} on average")


def gap(**settings):
    config = SamMaskDecoderConfig(
        hidden_size=WIDTH, mlp_dim=INNER, num_attention_heads=HEADS, iou_head_hidden_dim=WIDTH, **settings
    )
    decoder = SamMaskDecoder(config).eval()
    decoder.load_state_dict(weights)
    with torch.no_grad():
        masks, _ = decoder(image, places, points[None], dense, multimask_output=True)
    difference = (masks[0] - expected).abs().max().item()
    print(f"layer_norm_eps {config.layer_norm_eps}: they differ by {difference:.1e} at most")
    return difference


default, same = gap(), gap(layer_norm_eps=1e-5)
assert SamMaskDecoderConfig().layer_norm_eps == 1e-6
assert same < 1e-6 and default > 20 * same
PY
