"""The tiny checkpoint has the layout that is served, and masks worth testing with."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.grounding import build_grounding
from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.grounding.layout import read_sam_config, seg_token_index
from vllm_litelvlm.grounding.sam import Sam
from vllm_litelvlm.grounding.segmenter import Segmenter


def test_checkpoint_is_a_llava_with_the_token_and_the_projection(built: Checkpoint) -> None:
    config = LlavaConfig.from_pretrained(built.llava)
    assert config.architectures == ["LlavaSegForConditionalGeneration"]
    assert config.model_type == "llava"
    tokenizer = AutoProcessor.from_pretrained(built.llava).tokenizer
    ids = tokenizer("Sure, it is [SEG].", add_special_tokens=False).input_ids
    assert ids.count(seg_token_index(config)) == 1
    assert "[SEG]" in tokenizer.decode(ids, skip_special_tokens=True)
    assert config.text_config.vocab_size == len(tokenizer)
    _, report = LlavaForConditionalGeneration.from_pretrained(built.llava, output_loading_info=True)
    assert not report["missing_keys"]
    assert sorted(report["unexpected_keys"]) == [
        f"text_hidden_fcs.0.{number}.{kind}" for number in (0, 2) for kind in ("bias", "weight")
    ]
    assert read_sam_config(str(built.llava)).mask_decoder_config.layer_norm_eps == 1e-5
    assert {file.name for file in (built.llava / "sam").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_masks_of_expressions_and_pictures_differ(
    sam: Sam, prompts: Tensor, photographs: list[Image.Image]
) -> None:
    segmenter = Segmenter(sam)
    masks = [segmenter.masks(picture.resize((200, 200)), prompts) for picture in photographs]
    alike = [
        (left.pixels & right.pixels).sum() / (left.pixels | right.pixels).sum()
        for group in (*masks, *zip(*masks, strict=True))
        for left, right in itertools.combinations(group, 2)
    ]
    assert np.median(alike) < 0.6
    assert max(alike) < 0.99
    assert all(0.3 < mask.score < 1.3 for group in masks for mask in group)


def test_complete_build_is_used_again_and_one_without_weights_has_none(
    built: Checkpoint, tmp_path: Path
) -> None:
    weights = built.llava / "sam/model.safetensors"
    before = weights.stat().st_mtime_ns
    assert build_grounding(built.llava.parent) == built
    assert weights.stat().st_mtime_ns == before
    bare = build_grounding(tmp_path, weights=False).llava
    assert not list(bare.rglob("*.safetensors"))
    assert (bare / "sam/config.json").read_text() == (built.llava / "sam/config.json").read_text()


@pytest.mark.parametrize("index", [None, -1, "[SEG]"])
def test_configuration_without_the_tokens_id_is_refused(index: object) -> None:
    with pytest.raises(CompatibilityError, match=r"seg_token_index .*; masks need the id"):
        seg_token_index(SimpleNamespace(seg_token_index=index))
