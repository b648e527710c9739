"""Guidance by a SigLIP follows the model's weights, and asks nothing of the tower's own layers."""

from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaConfig

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.siglip import Layout, build_siglip
from vllm_litelvlm.plugin.models.weights import FollowedWeights
from vllm_litelvlm.vision.tower_guidance import TowerGuidance
from vllm_litelvlm.vision.tower_kinds import kind_of

LAST_NORM = "vision_model.encoder.layers.3.layer_norm1.weight"


def followed(
    checkpoint: Checkpoint, siglip: Path | None = None, **tensors: Tensor
) -> tuple[TowerGuidance, FollowedWeights]:
    """Guidance after a load of a LLaVA, some of whose tensors are others."""
    config = LlavaConfig.from_pretrained(checkpoint.llava)
    clip = str(siglip or checkpoint.clip)
    guidance = kind_of(config).guide(clip, config, torch.float32)
    given: Any = SimpleNamespace(own={"clip_model": clip}, server=SimpleNamespace(clip_model=None))
    vllm_config: Any = SimpleNamespace(
        model_config=SimpleNamespace(model=str(checkpoint.llava), hf_config=config),
        load_config=SimpleNamespace(load_format="auto"),
    )
    weights = FollowedWeights(guidance, nn.Module(), given, vllm_config)
    theirs = load_file(checkpoint.llava / "model.safetensors")
    theirs |= {f"vision_tower.{name}": tensor for name, tensor in tensors.items()}
    weights.load(theirs.items(), lambda streamed: [name for name, _ in streamed])
    return guidance, weights


@pytest.mark.parametrize("layout", ["whole", "shortened"])
def test_what_the_llava_has_comes_from_it_and_the_rest_from_the_siglip(
    tmp_path: Path, layout: Layout
) -> None:
    checkpoint = build_siglip(tmp_path, layout)
    siglip = Path(copytree(checkpoint.clip, tmp_path / "other"))
    tensors = load_file(siglip / "model.safetensors")
    tensors[LAST_NORM] = torch.full((64,), 5.0)
    tensors["vision_model.post_layernorm.weight"] = torch.full((64,), 5.0)
    save_file(tensors, siglip / "model.safetensors", metadata={"format": "pt"})
    guidance, weights = followed(checkpoint, siglip)
    # A tower without its last layer has the norm behind it all the same.
    assert (guidance.scorer.last_norm.weight == 5).all() == (layout == "shortened")
    assert not (guidance.scorer.post_norm.weight == 5).any()
    assert weights.up_to_date() is guidance
    buffers = dict(weights.buffers())
    assert torch.equal(buffers["litelvlm.scorer.probe"], tensors["vision_model.head.probe"])
    assert "litelvlm.text_tower.model.head.weight" in buffers


def test_new_weights_of_the_tower_empty_the_caches(tmp_path: Path) -> None:
    guidance, weights = followed(build_siglip(tmp_path, "whole"))
    guidance.add_text_cache(2)
    assert guidance.text_cache is not None
    guidance.text_cache.write([b"a"], {"embedding": torch.ones(1, 128)})
    new = {f"vision_tower.{LAST_NORM}": torch.full((64,), 3.0)}
    weights.load(new.items(), lambda streamed: [name for name, _ in streamed])
    assert len(guidance.text_cache) == 0
    assert guidance.scorer.last_norm.weight.unique().tolist() == [3.0]
