"""Where weights come from, and what is said when they are not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPVisionConfig, LlavaConfig, SiglipVisionConfig

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import CompatibilityError, WeightsError
from vllm_litelvlm.vision.checkpoint import (
    check_tower,
    default_clip_model,
    read_clip_config,
)
from vllm_litelvlm.vision.clip_guidance import ClipGuidance
from vllm_litelvlm.vision.weights import ClipWeights, TowerTap


@pytest.fixture
def guidance(checkpoint: Checkpoint) -> ClipGuidance:
    config = CLIPConfig.from_pretrained(checkpoint.clip)
    return ClipGuidance(config.vision_config, config)


def changed_clip(checkpoint: Checkpoint, folder: Path, name: str, tensor: Any) -> str:
    """A copy of the CLIP with one tensor replaced, or left out if None."""
    copy = Path(shutil.copytree(checkpoint.clip, folder / "clip"))
    tensors = load_file(copy / "model.safetensors")
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


@pytest.mark.parametrize(
    "name",
    [
        "visual_projection.weight",
        "text_projection.weight",
        "vision_model.post_layernorm.bias",
        "vision_model.encoder.layers.3.self_attn.q_proj.weight",
        "text_model.encoder.layers.1.mlp.fc1.weight",
    ],
)
def test_missing_tensor_is_named_with_where_it_was_looked_for(
    checkpoint: Checkpoint, guidance: ClipGuidance, tmp_path: Path, name: str
) -> None:
    clip = changed_clip(checkpoint, tmp_path, name, None)
    with pytest.raises(WeightsError) as raised:
        ClipWeights(guidance.scorer, guidance.text_tower).load({}, clip)
    message = str(raised.value)
    assert f"'{name}' is neither in the model's checkpoint nor in the CLIP at '{clip}'" in message


def test_misshapen_tensor_is_named(checkpoint: Checkpoint, guidance: ClipGuidance) -> None:
    name = "vision_model.post_layernorm.bias"
    with pytest.raises(WeightsError, match=rf"{name}.*model's checkpoint has shape \[3\].*\[64\]"):
        ClipWeights(guidance.scorer, guidance.text_tower).load(
            {name: torch.zeros(3)}, str(checkpoint.clip)
        )


def test_misshapen_tensor_of_the_clip_is_not_taken_for_a_loaded_one(
    checkpoint: Checkpoint, guidance: ClipGuidance, tmp_path: Path
) -> None:
    clip = changed_clip(checkpoint, tmp_path, "visual_projection.weight", torch.zeros(5, 64))
    shapes = (
        r"visual_projection\.weight' of the CLIP at .* has shape \[5, 64\]; expected \[48, 64\]"
    )
    with pytest.raises(WeightsError, match=shapes):
        ClipWeights(guidance.scorer, guidance.text_tower).load({}, clip)


@pytest.mark.parametrize("damage", ["without weights", "corrupt"])
def test_clip_whose_weights_cannot_be_read_is_refused(
    checkpoint: Checkpoint, guidance: ClipGuidance, tmp_path: Path, damage: str
) -> None:
    clip = Path(shutil.copytree(checkpoint.clip, tmp_path / "clip"))
    if damage == "corrupt":
        (clip / "model.safetensors").write_bytes(b"not a checkpoint")
    else:
        (clip / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights of the CLIP at .* cannot be read"):
        ClipWeights(guidance.scorer, guidance.text_tower).load({}, str(clip))


def test_text_tower_goes_by_the_outer_projection_width(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    clip = Path(shutil.copytree(checkpoint.clip, tmp_path / "clip"))
    fields = json.loads((clip / "config.json").read_text())
    fields["text_config"]["projection_dim"] = 7
    (clip / "config.json").write_text(json.dumps(fields))
    tower = CLIPConfig.from_pretrained(checkpoint.clip).vision_config
    config = read_clip_config(str(clip), tower)
    built = ClipGuidance(tower, config)
    ClipWeights(built.scorer, built.text_tower).load({}, str(clip))


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"model_type": "clip", "vision_config": {"hidden_size": 64}}']
)
def test_configuration_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match="No CLIP configuration at"):
        read_clip_config(str(tmp_path), CLIPVisionConfig())


def test_model_checkpoint_comes_before_the_clip(
    checkpoint: Checkpoint, guidance: ClipGuidance
) -> None:
    name = "vision_model.post_layernorm.bias"
    tower = {name: torch.full((64,), 7.0)}
    ClipWeights(guidance.scorer, guidance.text_tower).load(tower, str(checkpoint.clip))
    assert guidance.scorer.post_norm.bias.unique().tolist() == [7.0]
    theirs = load_file(checkpoint.clip / "model.safetensors")["visual_projection.weight"]
    assert torch.equal(guidance.scorer.projection.weight, theirs)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("level", ["", "vision_model."])
def test_tower_tensors_are_found_under_every_published_name(
    guidance: ClipGuidance, prefix: str, level: str
) -> None:
    tap = TowerTap(guidance.scorer.clip_names().values())
    wanted = f"{prefix}vision_tower.{level}encoder.layers.3.layer_norm1.weight"
    others = [f"{prefix}vision_tower.{level}embeddings.class_embedding", "lm_head.weight"]
    passed = dict(tap((name, torch.ones(64)) for name in [wanted, *others]))
    assert list(tap.found) == ["vision_model.encoder.layers.3.layer_norm1.weight"]
    assert list(passed) == [
        f"{prefix}vision_tower.vision_model.encoder.layers.3.layer_norm1.weight",
        f"{prefix}vision_tower.vision_model.embeddings.class_embedding",
        "lm_head.weight",
    ]


def test_published_geometries_have_a_default_and_others_are_asked_for() -> None:
    large = CLIPVisionConfig(
        hidden_size=1024,
        num_attention_heads=16,
        num_hidden_layers=24,
        patch_size=14,
        image_size=336,
    )
    assert default_clip_model(large) == "openai/clip-vit-large-patch14-336"
    with pytest.raises(WeightsError, match=r"width 96, 12 layers.*'clip_model'"):
        default_clip_model(CLIPVisionConfig(hidden_size=96))


def test_clip_of_another_geometry_is_refused(checkpoint: Checkpoint) -> None:
    tower = CLIPConfig.from_pretrained(checkpoint.clip).vision_config
    tower.num_hidden_layers = 24
    with pytest.raises(WeightsError, match="num_hidden_layers 4, the model's vision tower 24"):
        read_clip_config(str(checkpoint.clip), tower)


def test_folder_without_a_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No CLIP configuration at"):
        read_clip_config(str(tmp_path), CLIPVisionConfig())


def test_other_towers_and_features_are_refused() -> None:
    check_tower(LlavaConfig(vision_config=CLIPVisionConfig()))
    with pytest.raises(CompatibilityError, match="'siglip_vision_model'"):
        check_tower(LlavaConfig(vision_config=SiglipVisionConfig()))
    with pytest.raises(CompatibilityError, match="-1 and 'default'"):
        check_tower(LlavaConfig(vision_config=CLIPVisionConfig(), vision_feature_layer=-1))


@pytest.mark.parametrize(
    ("width", "layers", "patch", "image", "clip"),
    [
        (1024, 24, 14, 336, "openai/clip-vit-large-patch14-336"),
        (1024, 24, 14, 224, "openai/clip-vit-large-patch14"),
        (768, 12, 16, 224, "openai/clip-vit-base-patch16"),
        (768, 12, 32, 224, "openai/clip-vit-base-patch32"),
    ],
)
def test_published_geometry_has_its_clip(
    width: int, layers: int, patch: int, image: int, clip: str
) -> None:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 8}
    assert default_clip_model(CLIPVisionConfig(**sizes, patch_size=patch, image_size=image)) == clip
    other = CLIPVisionConfig(**sizes, patch_size=patch, image_size=image + patch)
    with pytest.raises(WeightsError, match=rf"patch {patch}, image {image + patch}\)"):
        default_clip_model(other)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "patch_size", "image_size"])
def test_clip_that_is_not_the_towers_is_refused_by_naming_the_difference(
    checkpoint: Checkpoint, name: str
) -> None:
    folder = str(checkpoint.clip)
    tower = CLIPConfig.from_pretrained(folder).vision_config
    assert read_clip_config(folder, tower).projection_dim == 48
    theirs = getattr(tower, name)
    setattr(tower, name, 2 * theirs)
    with pytest.raises(WeightsError) as raised:
        read_clip_config(folder, tower)
    assert f"at {folder!r} has {name} {theirs}, the model's vision tower {2 * theirs}" in str(
        raised.value
    )
    assert "'clip_model'" in str(raised.value)


def test_configuration_of_another_kind_of_model_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(WeightsError, match="its model_type is 'llava', not 'clip'"):
        read_clip_config(str(checkpoint.llava), CLIPVisionConfig())


@pytest.mark.parametrize("layer", [-2, 11])
def test_second_to_last_layer_may_be_counted_from_either_end(layer: int) -> None:
    twelve = CLIPVisionConfig(num_hidden_layers=12)
    check_tower(LlavaConfig(vision_config=twelve, vision_feature_layer=layer))
    with pytest.raises(CompatibilityError, match=f"this model's are {layer + 1} and 'default'"):
        check_tower(LlavaConfig(vision_config=twelve, vision_feature_layer=layer + 1))


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"vision_feature_select_strategy": "full"}, "-2 and 'full'"),
        ({"vision_feature_layer": [-2, -5]}, r"\[-2, -5\] and 'default'"),
    ],
)
def test_other_features_are_refused_by_naming_them(fault: dict[str, Any], named: str) -> None:
    with pytest.raises(CompatibilityError, match=f"{named}. Serve it without --plugin litelvlm"):
        check_tower(LlavaConfig(vision_config=CLIPVisionConfig(), **fault))


def test_configuration_without_a_tower_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="needs a CLIP vision tower; this model's is"):
        check_tower(CLIPConfig().text_config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tap_keeps_a_copy_and_passes_the_tensor_itself(
    guidance: ClipGuidance, dtype: torch.dtype
) -> None:
    tap = TowerTap(guidance.scorer.clip_names().values())
    tensor = torch.ones(64, dtype=dtype)
    [(_, passed)] = tap([("vision_tower.vision_model.post_layernorm.weight", tensor)])
    assert passed is tensor
    tensor.zero_()
    kept = tap.found["vision_model.post_layernorm.weight"]
    assert kept.dtype == dtype
    assert kept.tolist() == [1.0] * 64


@pytest.mark.parametrize(
    "name",
    [
        "text_tower.vision_tower.vision_model.post_layernorm.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.linear_1.weight",
    ],
)
def test_tap_leaves_other_names_alone(guidance: ClipGuidance, name: str) -> None:
    tap = TowerTap(guidance.scorer.clip_names().values())
    assert [passed for passed, _ in tap([(name, torch.ones(64))])] == [name]
    assert not tap.found


def test_tap_finds_everything_of_the_tower_in_a_published_checkpoint(
    checkpoint: Checkpoint, guidance: ClipGuidance
) -> None:
    tap = TowerTap(guidance.scorer.clip_names().values())
    weights = load_file(checkpoint.llava / "model.safetensors")
    assert sorted(name for name, _ in tap(weights.items())) == sorted(weights)
    wanted = set(guidance.scorer.clip_names().values())
    assert wanted - set(tap.found) == {"visual_projection.weight"}
    ClipWeights(guidance.scorer, guidance.text_tower).load(tap.found, str(checkpoint.clip))
    theirs = load_file(checkpoint.clip / "model.safetensors")
    for module in (guidance.scorer, guidance.text_tower):
        parameters = dict(module.named_parameters())
        assert set(module.clip_names()) == set(parameters)
        for own, name in module.clip_names().items():
            assert torch.equal(parameters[own], theirs[name]), name


def test_clip_saved_by_old_versions_is_read(
    checkpoint: Checkpoint, guidance: ClipGuidance, tmp_path: Path
) -> None:
    """As the published files are: pickled, with the positions that are no parameters any more."""
    copy = Path(shutil.copytree(checkpoint.clip, tmp_path / "clip"))
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    tensors["vision_model.embeddings.position_ids"] = torch.arange(577)[None]
    torch.save(tensors, copy / "pytorch_model.bin")
    ClipWeights(guidance.scorer, guidance.text_tower).load({}, str(copy))
    assert torch.equal(guidance.scorer.projection.weight, tensors["visual_projection.weight"])
