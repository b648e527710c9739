"""MetaCLIP as published by its authors is a CLIP; MetaCLIP 2 has a model type of its own."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel, LlavaConfig, MetaClip2VisionConfig

from tests.vision.made_up import MadeUpImages
from vllm_litelvlm.demo.checkpoint import TINY, Checkpoint, build_checkpoint
from vllm_litelvlm.errors import CompatibilityError, WeightsError
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.vision.checkpoint import read_clip_config
from vllm_litelvlm.vision.text import ClipTextTokenizer
from vllm_litelvlm.vision.tower_kinds import kind_of
from vllm_litelvlm.vision.weights import ClipWeights

TEXTS = ["a red cup", "the dog on the left"]


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def metaclip(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """224 pixels, 256 patches, texts narrower than images, and either activation.

    ``facebook/metaclip-h14-fullcc2.5b`` has model_type "clip" too, and the same tensor names.
    """
    sizes = replace(TINY, image_size=224, vision_width=80, text_width=64, projection=64)
    built = build_checkpoint(tmp_path_factory.mktemp("metaclip"), sizes)
    file = built.clip / "config.json"
    fields = json.loads(file.read_text())
    for part in ("text_config", "vision_config"):
        fields[part]["hidden_act"] = request.param
    file.write_text(json.dumps(fields))
    return built


def test_metaclip_guides_as_the_clip_that_it_is(
    metaclip: Checkpoint, photographs: Sequence[Image.Image]
) -> None:
    config = LlavaConfig.from_pretrained(metaclip.llava)
    kind = kind_of(config)
    kind.check(config)
    built = kind.guide(str(metaclip.clip), config, torch.float32)
    ClipWeights(built.scorer, built.text_tower).load({}, str(metaclip.clip))
    whole = CLIPModel.from_pretrained(metaclip.clip, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(metaclip.clip)
    pixels = processor.image_processor(photographs[0], return_tensors="pt")["pixel_values"]
    ids = ClipTextTokenizer(str(metaclip.clip), 77)(TEXTS)
    with torch.no_grad():
        seen = whole.vision_model(pixels, output_hidden_states=True, output_attentions=True)
        patches = whole.visual_projection(
            whole.vision_model.post_layernorm(seen.hidden_states[-2][0, 1:])
        )
        texts = whole.text_projection(whole.text_model(input_ids=ids.long()).pooler_output)
    assert patches.shape == (256, 64)
    images = MadeUpImages(seen.hidden_states[-2], seen.hidden_states[-3])
    needs = frozenset({Signal.SIMILARITY, Signal.CLS_ATTENTION, Signal.CONTEXT})
    found = built.signals(images, [ids], needs)
    expected = texts @ patches.T
    torch.testing.assert_close(found[Signal.SIMILARITY][0], expected, rtol=1e-5, atol=1e-4)
    attention = seen.attentions[-2].mean(dim=1)[:, 0, 1:]
    torch.testing.assert_close(found[Signal.CLS_ATTENTION], attention, rtol=1e-4, atol=1e-6)


def test_metaclip_2_is_refused_as_a_tower_and_as_a_clip(
    metaclip: Checkpoint, tmp_path: Path
) -> None:
    config = LlavaConfig.from_pretrained(metaclip.llava)
    other = Path(shutil.copytree(metaclip.clip, tmp_path / "other"))
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**fields, "model_type": "metaclip_2"}))
    with pytest.raises(WeightsError, match="its model_type is 'metaclip_2', not 'clip'"):
        read_clip_config(str(other), config.vision_config)
    config.vision_config = MetaClip2VisionConfig()
    told = "needs a CLIP or SigLIP vision tower; this model's is 'metaclip_2_vision_model'"
    with pytest.raises(CompatibilityError, match=told):
        kind_of(config)
