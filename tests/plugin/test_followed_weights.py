"""ClipGuidance takes what comes, keeps what does not, and begins anew with the whole tower."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, LlavaConfig

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.plugin.models import weights as module
from vllm_litelvlm.plugin.models.weights import FollowedWeights
from vllm_litelvlm.vision.clip_guidance import ClipGuidance

PREFIX = "vision_tower.vision_model.encoder.layers"
LAST_NORM, FEATURE_NORM = f"{PREFIX}.3.layer_norm1.weight", f"{PREFIX}.2.layer_norm1.weight"


class Followed:
    """A FollowedWeights whose tower stands in for vLLM's: it has names and one layer alone."""

    def __init__(self, checkpoint: Checkpoint, load_format: str = "auto") -> None:
        config = CLIPConfig.from_pretrained(checkpoint.clip)
        self.guidance = ClipGuidance(config.vision_config, config)
        self.guidance.add_text_cache(4)
        self.tensors = load_file(checkpoint.llava / "model.safetensors")
        self.model_config = SimpleNamespace(
            model=str(checkpoint.llava), hf_config=LlavaConfig.from_pretrained(checkpoint.llava)
        )
        given = SimpleNamespace(
            own={"clip_model": str(checkpoint.clip)}, server=SimpleNamespace(clip_model=None)
        )
        self.weights = FollowedWeights(
            self.guidance,
            Tower(self.tensors),
            given,  # type: ignore[arg-type]
            SimpleNamespace(  # type: ignore[arg-type]
                model_config=self.model_config,
                load_config=SimpleNamespace(load_format=load_format),
            ),
        )

    def load(self, tensors: dict[str, Tensor]) -> set[str]:
        return self.weights.load(tensors.items(), stock)

    @property
    def last_norm(self) -> Tensor:
        return self.guidance.scorer.last_norm.weight


class Tower(nn.Module):
    """The parameters of a tower that ends before the last layer, as they are in the checkpoint."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = [name for name in tensors if name.startswith("vision_tower.")]
        layer = SimpleNamespace(layer_norm1=nn.LayerNorm(64), self_attn=attention())
        self.vision_model = SimpleNamespace(encoder=SimpleNamespace(layers=[layer]))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name in self.names:
            if ".layers.3." not in name and "post_layernorm" not in name:
                yield name.removeprefix("vision_tower."), nn.Parameter(torch.zeros(1))


def attention(input_scale: Tensor | None = None) -> Any:
    linear = nn.Linear(64, 3 * 64)
    method = SimpleNamespace(apply=lambda layer, x, bias: nn.functional.linear(x, layer.weight))
    fused = SimpleNamespace(
        weight=linear.weight, bias=linear.bias, quant_method=method, input_scale=input_scale
    )
    return SimpleNamespace(qkv_proj=fused, tp_size=1)


def stock(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, _ in weights]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The CLIPs that were read from disk."""
    from vllm_litelvlm.vision import weights

    seen: list[str] = []
    read = weights._read_clip_tensors

    def noted(clip: str) -> dict[str, Tensor]:
        seen.append(clip)
        return read(clip)

    monkeypatch.setattr(weights, "_read_clip_tensors", noted)
    return seen


def test_partial_loads_bring_what_they_bring_and_read_no_clip(
    checkpoint: Checkpoint, reads: list[str]
) -> None:
    followed = Followed(checkpoint)
    followed.load(followed.tensors)
    assert reads == [str(checkpoint.clip)]
    before = {name: tensor.clone() for name, tensor in followed.weights.buffers()}
    followed.load({"language_model.model.norm.weight": torch.zeros(64)})
    followed.load({LAST_NORM: torch.full((64,), 3.0)})
    assert reads == [str(checkpoint.clip)]
    after = dict(followed.weights.buffers())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["litelvlm.scorer.last_norm.weight"]
    assert followed.last_norm.unique().tolist() == [3.0]


def test_whole_load_begins_anew(checkpoint: Checkpoint, reads: list[str]) -> None:
    """A checkpoint without the last layer gets the CLIP's, whatever was there before."""
    followed = Followed(checkpoint)
    followed.load({**followed.tensors, LAST_NORM: torch.full((64,), 3.0)})
    assert followed.last_norm.unique().tolist() == [3.0]
    without = {
        name: tensor for name, tensor in followed.tensors.items() if ".layers.3." not in name
    }
    followed.load(without)
    theirs = load_file(checkpoint.clip / "model.safetensors")
    name = "vision_model.encoder.layers.3.layer_norm1.weight"
    assert torch.equal(followed.last_norm, theirs[name])
    assert len(reads) == 2


def test_loads_in_buckets_after_a_dummy_start_complete_guidance_once(
    checkpoint: Checkpoint, reads: list[str]
) -> None:
    whole, bucketed = Followed(checkpoint), Followed(checkpoint, "dummy")
    whole.load(whole.tensors)
    bucketed.weights.up_to_date()
    del reads[:]
    items = list(bucketed.tensors.items())
    for start in range(0, len(items), 7):
        bucketed.load(dict(items[start : start + 7]))
    assert reads == [str(checkpoint.clip)]
    expected = dict(whole.weights.buffers())
    for name, tensor in bucketed.weights.buffers():
        if "feature_" not in name:  # the tower's own
            assert torch.equal(tensor, expected[name]), name


def test_state_that_was_loaded_without_load_weights_is_completed_from_the_clip(
    checkpoint: Checkpoint, reads: list[str]
) -> None:
    followed = Followed(checkpoint, "sharded_state")
    followed.weights.up_to_date()
    followed.weights.up_to_date()
    assert reads == [str(checkpoint.clip)]


def test_feature_layer_is_read_from_the_tower_again_after_a_reset(checkpoint: Checkpoint) -> None:
    followed = Followed(checkpoint)
    followed.load(followed.tensors)
    layer = followed.weights._tower.vision_model.encoder.layers[-1]
    scorer = followed.weights.up_to_date().scorer
    fused = layer.self_attn.qkv_proj
    assert torch.equal(scorer.feature_key.weight, fused.weight[64:128])
    assert torch.equal(scorer.feature_query.bias, fused.bias[:64])
    layer.layer_norm1.weight.data.fill_(5.0)
    assert followed.weights.up_to_date().scorer.feature_norm.weight.unique().tolist() == [1.0]
    followed.weights.forget()
    assert followed.weights.up_to_date().scorer.feature_norm.weight.unique().tolist() == [5.0]


@pytest.mark.parametrize(
    ("name", "forgets"), [(FEATURE_NORM, True), ("language_model.model.norm.weight", False)]
)
def test_caches_are_emptied_by_weights_of_the_tower_alone(
    checkpoint: Checkpoint, name: str, forgets: bool
) -> None:
    followed = Followed(checkpoint)
    followed.load(followed.tensors)
    cache = followed.guidance.text_cache
    assert cache is not None
    cache.write([b"a"], {"embedding": torch.ones(1, 48)})
    followed.load({name: torch.ones(64)})
    assert len(cache) == (0 if forgets else 1)


def test_reload_from_a_model_with_a_clip_of_its_own_reads_that(
    checkpoint: Checkpoint, reads: list[str], tmp_path: Path
) -> None:
    followed = Followed(checkpoint)
    followed.load(followed.tensors)
    other = Path(copytree(checkpoint.llava, tmp_path / "other"))
    clip = Path(copytree(checkpoint.clip, other / "clip"))
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**fields, "litelvlm": {"clip_model": "clip"}}))
    theirs = load_file(clip / "model.safetensors")
    theirs["visual_projection.weight"] = torch.full((48, 64), 2.0)
    save_file(theirs, clip / "model.safetensors", metadata={"format": "pt"})
    followed.model_config.model = str(other)
    followed.load(followed.tensors)
    assert reads == [str(checkpoint.clip), str(clip)]
    assert followed.guidance.scorer.projection.weight.unique().tolist() == [2.0]


def test_reload_from_a_folder_of_weights_alone_keeps_the_clip(
    checkpoint: Checkpoint, reads: list[str], tmp_path: Path
) -> None:
    followed = Followed(checkpoint)
    followed.model_config.model = str(tmp_path)
    followed.load(followed.tensors)
    assert reads == [str(checkpoint.clip)]


def test_weights_that_cannot_be_read_change_nothing(checkpoint: Checkpoint) -> None:
    followed = Followed(checkpoint)
    followed.load(followed.tensors)
    before = followed.last_norm.clone()
    with pytest.raises(WeightsError, match=r"has shape \[3\]; expected \[64\]"):
        followed.load({LAST_NORM: torch.ones(64), f"{PREFIX}.3.layer_norm1.bias": torch.ones(3)})
    assert torch.equal(followed.last_norm, before)


def test_static_activation_scales_are_refused_by_name(checkpoint: Checkpoint) -> None:
    followed = Followed(checkpoint)
    followed.weights._last_layer.self_attn = attention(torch.ones(1))
    with pytest.raises(WeightsError, match="static activation scales"):
        followed.load(followed.tensors)


def test_guidance_is_no_part_of_a_models_module_tree() -> None:
    assert not issubclass(ClipGuidance, nn.Module)
    assert not issubclass(module.FollowedWeights, nn.Module)
