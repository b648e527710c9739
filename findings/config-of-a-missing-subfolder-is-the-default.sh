#!/usr/bin/env bash
# transformers 5.19.0 with torch 2.13.0.
#
# Where a local folder exists and the subfolder that was asked for does not, get_config_dict of a configuration
# class returns two empty dictionaries, and from_pretrained of the class makes its default configuration of them:
# SamConfig becomes SAM's ViT-B, whatever the folder holds. Nothing is raised or logged. It is the same for a
# subfolder, or a folder, that has no config.json, and for other classes' configurations. A folder that is not
# there at all raises.
# AutoConfig and AutoModel raise, but blame the folder's config.json for its lack of a model_type, which it has.
# SamModel raises for want of weights. Where the subfolder has weights without a config.json, SamModel loads them
# into the default geometry: it raises for their shapes, or, told to ignore these, gives a ViT-B.
#
# Fails if the configuration class raises or logs for the missing subfolder, or if one of the others changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0
cd "$folder"

HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { tail -20 "$folder/log"; exit 1; }
import logging
from pathlib import Path

from transformers import AutoConfig, AutoModel, LlamaConfig, SamConfig, SamModel
from transformers.utils import logging as theirs

logged = []
handler = logging.Handler()
handler.emit = lambda record: logged.append(record.getMessage())
theirs.get_logger().addHandler(handler)

SamModel(SamConfig(
    vision_config={
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "mlp_dim": 64,
        "output_channels": 32, "num_pos_feats": 16, "global_attn_indexes": [0],
    },
    prompt_encoder_config={"hidden_size": 32, "image_size": 64},
    mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
)).save_pretrained("model")
Path("model/empty").mkdir()
Path("model/weights").mkdir()
Path("model/weights/model.safetensors").write_bytes(Path("model/model.safetensors").read_bytes())
logged.clear()


def width(config):
    return config.vision_config.hidden_size


def raised(load, **options):
    try:
        load(**options)
    except Exception as error:
        line = str(error).splitlines()[0]
        print(f"{load.__self__.__name__}.from_pretrained, {options}: {type(error).__name__}: {line}")
        return type(error), line
    raise AssertionError(f"{load.__self__.__name__} raises nothing now")


assert width(SamConfig.from_pretrained("model")) == 32
for place, options in (
    ("model", {"subfolder": "missing"}), ("model", {"subfolder": "empty"}),
    ("model", {"subfolder": "weights"}), ("model/empty", {}),
):
    dictionaries = SamConfig.get_config_dict(place, **options)
    config = SamConfig.from_pretrained(place, **options)
    print(f"SamConfig, {place}, {options}: {dictionaries}, vision {width(config)} wide")
    assert dictionaries == ({}, {}) and config.to_dict() == SamConfig().to_dict()
assert LlamaConfig.from_pretrained("model", subfolder="missing").to_dict() == LlamaConfig().to_dict()
print("logged of that:", logged)
assert not logged
raised(SamConfig.from_pretrained, pretrained_model_name_or_path="absent")

asked = {"pretrained_model_name_or_path": "model", "subfolder": "missing"}
for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
    kind, line = raised(load, **asked)
    assert kind is ValueError and "model_type" in line and "missing" not in line
kind, line = raised(SamModel.from_pretrained, **asked)
assert kind is OSError and "model.safetensors" in line and "missing" not in line
asked["subfolder"] = "weights"
assert raised(SamModel.from_pretrained, **asked)[0] is RuntimeError
loaded = SamModel.from_pretrained(**asked, ignore_mismatched_sizes=True)
print(f"SamModel told to ignore shapes: vision {width(loaded.config)} wide")
assert width(loaded.config) == 768
PY
