"""The model that ships and answers with masks."""

import json
from dataclasses import replace
from types import SimpleNamespace

import torch

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.grounding import seg_tokenizer
from vllm_litelvlm.demo.run import SHIPPED, SHIPPED_MASKS
from vllm_litelvlm.demo.training.batches import BatchMaker
from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.export import exported_in, read_exported
from vllm_litelvlm.demo.training.language import Tokenizers
from vllm_litelvlm.demo.training.llava import Llava
from vllm_litelvlm.demo.training.mask_batches import MaskBatchMaker
from vllm_litelvlm.demo.training.mask_validation import mask_figures, meant
from vllm_litelvlm.demo.training.pointing import Pointer
from vllm_litelvlm.demo.training.schedule import MASKS
from vllm_litelvlm.demo.training.settings import TRAINED_MASKS
from vllm_litelvlm.grounding.layout import read_sam_config, seg_token_index
from vllm_litelvlm.vision.checkpoint import find_clip_model


def test_model_is_small_and_says_what_it_is() -> None:
    assert sum(file.stat().st_size for file in SHIPPED_MASKS.rglob("*.safetensors")) < 14.5e6
    assert (SHIPPED_MASKS / "README.md").read_text().startswith("---\nlicense:")
    stages = {json.loads(line)["stage"] for line in (SHIPPED_MASKS / "training.jsonl").open()}
    assert stages >= {stage.name for stage in MASKS}


def test_model_finds_its_clip_and_its_parts() -> None:
    tokenizers = Tokenizers.of(Checkpoint(SHIPPED_MASKS, SHIPPED / "clip"))
    config = SimpleNamespace(**json.loads((SHIPPED_MASKS / "config.json").read_text()))
    found = find_clip_model(None, config, str(SHIPPED_MASKS))
    assert (SHIPPED / "clip").samefile(found)
    assert exported_in(SHIPPED_MASKS).clip.samefile(found)  # which a training may begin with
    assert seg_token_index(config) == len(tokenizers.llama) - 1
    assert read_sam_config(str(SHIPPED_MASKS)).prompt_encoder_config.hidden_size == 128


def test_model_segments_what_expressions_mean() -> None:
    checkpoint = Checkpoint(SHIPPED_MASKS, SHIPPED / "clip")
    tokenizers = Tokenizers.of(checkpoint)
    seg_tokenizer(tokenizers.llama)  # has it already
    clip = Clip(TRAINED_MASKS, len(tokenizers.clip))
    llava = Llava(TRAINED_MASKS, len(tokenizers.llama))
    pointer = Pointer(TRAINED_MASKS)
    read_exported(checkpoint, clip, llava, pointer)
    stage = replace(MASKS[-1], batch=4)
    maker = MaskBatchMaker(BatchMaker(stage, 2, 0, 14, 24, tokenizers, split="val"))
    batches = map(maker.masks, range(4))
    with torch.no_grad():
        figures = mask_figures(pointer, meant(clip, llava, pointer, batches))
    assert figures["masks.ciou"] > 0.7
    assert figures["masks.above_half"] > 0.8
