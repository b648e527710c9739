#!/usr/bin/env bash
# transformers 5.19.0 and segment-anything 1.0 with torch 2.13.0.
#
# SamModel(config) without a checkpoint, as one would train a small SAM from scratch, cannot be trained from:
# - SamVisionConfig's initializer_range is 1e-10, where other models have 0.02 and SAM's mask decoder has it, too.
#   All weights of a fresh image encoder start so, and its features differ by 1e-20 between two pictures of noise.
#   SAM's own image encoder, as fresh, tells them apart by more than 1.
# - The random waves by which points and the places of an image are told have a deviation of half the image
#   encoder's width (640 for the largest published SAM); SAM's own have 1. Waves so short tell no neighbours apart.
# Both go unnoticed with a checkpoint, which has all of these weights. For a training of one's own they have to be
# started by hand.
#
# Fails if transformers' fresh encoder tells the pictures apart, or SAM's own does not, or the waves agree.
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
import torch
from modeling.image_encoder import ImageEncoderViT
from modeling.prompt_encoder import PositionEmbeddingRandom
from transformers import SamConfig, SamModel
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(0)
SIDE, PATCH, WIDTH, OUT = 128, 16, 64, 256
config = SamConfig(
    vision_config={
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": WIDTH,
        "mlp_dim": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "window_size": 4,
        "global_attn_indexes": [1],
    },
    prompt_encoder_config={"image_size": SIDE, "patch_size": PATCH},
)
ours = SamModel(config).eval()
original = ImageEncoderViT(
    img_size=SIDE,
    patch_size=PATCH,
    embed_dim=WIDTH,
    depth=2,
    num_heads=2,
    mlp_ratio=2,
    out_chans=OUT,
    window_size=4,
    global_attn_indexes=(1,),
    use_rel_pos=True,
).eval()
one, other = torch.randn(2, 1, 3, SIDE, SIDE)
with torch.no_grad():
    apart = {
        "transformers": ours.vision_encoder(one)[0] - ours.vision_encoder(other)[0],
        "segment-anything": original(one) - original(other),
    }
apart = {name: float(difference.abs().max()) for name, difference in apart.items()}
waves = {
    "transformers": float(ours.shared_image_embedding.positional_embedding.detach().std()),
    "segment-anything": float(PositionEmbeddingRandom(OUT // 2).positional_encoding_gaussian_matrix.std()),
}
print("initializer_range:", config.vision_config.initializer_range)
print("weights of the encoder:", float(ours.vision_encoder.patch_embed.projection.weight.detach().std()))
print("features of two pictures differ by", apart)
print("deviation of the waves", waves)
assert config.vision_config.initializer_range == 1e-10
assert apart["transformers"] < 1e-12
assert apart["segment-anything"] > 1
assert 0.4 * WIDTH < waves["transformers"] < 0.6 * WIDTH
assert 0.8 < waves["segment-anything"] < 1.2
PY
