"""Guidance by a SigLIP against transformers' own, and what is refused."""

import json
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaConfig, SiglipConfig, SiglipTextConfig

from tests.pruning.rederivation import Calls
from tests.pruning.test_eadp import sharpest
from tests.vision.made_up import MadeUpImages
from tests.vision.siglip_rederivation import SlowSiglip
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.siglip import build_siglip
from vllm_litelvlm.errors import CompatibilityError, OptionsError, WeightsError
from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.batch import prune
from vllm_litelvlm.pruning.order import Order
from vllm_litelvlm.pruning.registry import (
    build_pruner,
    method_names,
    offered_methods,
    pruner_for,
)
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.pruning.window import Window
from vllm_litelvlm.vision.frame import window
from vllm_litelvlm.vision.siglip_checkpoint import read_siglip_config
from vllm_litelvlm.vision.siglip_guidance import SiglipGuidance
from vllm_litelvlm.vision.siglip_text import SiglipTextTokenizer
from vllm_litelvlm.vision.tower_kinds import kind_of
from vllm_litelvlm.vision.weights import ClipWeights

#: What the scorer computes; the rest comes from elsewhere.
SCORES = SiglipGuidance.available - {Signal.FEATURES, Signal.PROJECTED, Signal.WORD_COSINE}
TEXT_SETS = [["a red cup"], [], ["A dog!", "a red cup", "the woman on the left of the flag " * 9]]
IMAGE_BYTES = 196 * 64 * 4 + 196 * 4
TRAITS = Traits("SigLIP-LLaVA", SiglipGuidance.available, tokens=196, has_cls=False)


@pytest.fixture(scope="module", params=[1, 2], ids=["SigLIP", "SigLIP-2"])
def siglip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return build_siglip(tmp_path_factory.mktemp("siglip"), generation=request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its tower has all layers."""
    return build_siglip(tmp_path_factory.mktemp("whole"), "whole")


def filled(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> SiglipGuidance:
    config = LlavaConfig.from_pretrained(checkpoint.llava)
    built = kind_of(config).guide(str(checkpoint.clip), config, dtype)
    assert isinstance(built, SiglipGuidance)
    ClipWeights(built.scorer, built.text_tower).load({}, str(checkpoint.clip))
    return built


@pytest.fixture(scope="module")
def guidance(siglip: Checkpoint) -> SiglipGuidance:
    return filled(siglip)


@pytest.fixture(scope="module")
def slow(siglip: Checkpoint) -> SlowSiglip:
    return SlowSiglip(siglip.clip)


@pytest.fixture(scope="module")
def seen(slow: SlowSiglip, photographs: Sequence[Image.Image]) -> list[dict[str, torch.Tensor]]:
    return [slow.see(image) for image in photographs[:3]]


@pytest.fixture(scope="module")
def images(seen: Any) -> MadeUpImages:
    return MadeUpImages(torch.stack([one["hidden"].float() for one in seen]), has_cls=False)


@pytest.fixture(scope="module")
def text_ids(siglip: Checkpoint) -> list[torch.Tensor]:
    tokenizer = SiglipTextTokenizer(str(siglip.clip), 64)
    return [tokenizer(texts) if texts else torch.zeros(0, 1).int() for texts in TEXT_SETS]


@pytest.fixture(scope="module")
def signals(guidance: SiglipGuidance, images: MadeUpImages, text_ids: Any) -> Signals:
    return guidance.signals(images, text_ids, SCORES)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """By 1e-5 of the largest there is, and of one."""
    scale = max(1.0, float(expected.abs().max()))
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * scale
    assert expected.std() > 100 * (found - expected).abs().max()  # it tells patches apart


@pytest.mark.parametrize(
    "signal",
    ["cls_attention", "keys", "last_attention", "last_keys", "context", "context_normalised"],
)
def test_signal_of_an_image_is_that_of_transformers(
    seen: Any, signals: Signals, signal: str
) -> None:
    for image, one in enumerate(seen):
        assert_close(signals[Signal(signal)][image], one[signal])


@pytest.mark.parametrize("signal", ["similarity", "cosine", "value"])
def test_signal_of_a_text_is_that_of_transformers(
    slow: SlowSiglip, seen: Any, signals: Signals, signal: str
) -> None:
    assert list(signals.text_counts) == [1, 0, 3]
    for image, texts in enumerate(TEXT_SETS):
        if texts:
            expected = slow.compare(seen[image], texts)[signal]
            assert_close(signals[Signal(signal)][image, : len(texts)], expected)


def test_token_cosine_goes_by_a_texts_own_tokens(
    slow: SlowSiglip, seen: Any, signals: Signals
) -> None:
    """Its whole is the mean embedding; padding counts for nothing."""
    for image, texts in enumerate(TEXT_SETS):
        for number, text in enumerate(texts):
            patches = slow.model.vision_model.post_layernorm(seen[image]["hidden"])
            tokens = torch.cat([slow.mean_embedding(text)[None], slow.token_embeddings(text)])
            cosines = torch.cosine_similarity(tokens[:, None], patches[None], dim=-1).detach()
            calls, own = Calls(), [True] * (len(tokens) - 1)
            expected = torch.tensor(sharpest(cosines.double().numpy(), own, calls))
            assert calls.closest > 1e-4
            found = signals[Signal.TOKEN_COSINE][image, number].double()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_analyses_have_the_same_arithmetic(
    siglip: Checkpoint, seen: Any, signals: Signals, photographs: Sequence[Image.Image]
) -> None:
    from vllm_litelvlm.evaluation.analysis.encoder import Score
    from vllm_litelvlm.evaluation.analysis.siglip_encoder import SiglipEncoder

    slow = SlowSiglip(siglip.clip)
    encoder = SiglipEncoder("made up", slow.model, slow.processor, slow.tokenizer)
    hidden = torch.stack([one["hidden"] for one in seen])
    last = slow.model.vision_model.encoder.layers[-1](hidden, attention_mask=None)
    texts = torch.stack([slow.trained_embedding("a red cup")] * 2)
    scores = encoder._scores(hidden, last, torch.tensor([0, 2]), texts)
    same = {
        Score.CONTEXT: Signal.CONTEXT,
        Score.RECEIVED: Signal.CLS_ATTENTION,
    }
    for score, signal in same.items():
        for pair, image in enumerate([0, 2]):
            assert_close(signals[signal][image], scores[score][pair].detach())
    for pair, (image, text) in enumerate([(0, 0), (2, 1)]):
        assert_close(signals[Signal.VALUE][image, text], scores[Score.VALUE][pair].detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_signals_are_float32_and_near_in_a_towers_dtype(
    siglip: Checkpoint, images: MadeUpImages, text_ids: Any, signals: Signals, dtype: torch.dtype
) -> None:
    half = MadeUpImages(images.hidden.to(dtype), has_cls=False)
    found = filled(siglip, dtype).signals(half, text_ids, SCORES)
    for signal in SCORES:
        assert found[signal].dtype == torch.float32
        if signal is Signal.TOKEN_COSINE:  # which tokens are a text's sharpest may turn
            continue
        off = (found[signal] - signals[signal])[[0, 2]].abs().mean()
        assert off < 0.05 * signals[signal][[0, 2]].std(), signal


def test_kept_features_serve_another_text_without_the_tower(
    siglip: Checkpoint, images: MadeUpImages, text_ids: Any, signals: Signals
) -> None:
    cached = filled(siglip)
    cached.add_feature_cache(3 * IMAGE_BYTES, torch.float32, frozenset({Signal.CONTEXT}))
    cached.add_text_cache(2)
    assert cached.feature_cache is not None
    assert cached.feature_cache.slots == 3
    for ran in ([[0, 1, 2]], []):
        again = MadeUpImages(images.hidden, has_cls=False)
        found = cached.signals(again, text_ids, SCORES)
        assert again.ran == ran
        for signal in SCORES:
            torch.testing.assert_close(found[signal], signals[signal], rtol=1e-5, atol=1e-5)
    assert cached.keeps_features(images.keys)
    cached.forget()
    assert not cached.keeps_features(images.keys)


def test_only_needed_signals_are_computed_and_the_tower_gives_one_hidden_state(
    guidance: SiglipGuidance, images: MadeUpImages, text_ids: Any
) -> None:
    needs = frozenset({Signal.FEATURES, Signal.KEYS, Signal.CLS_ATTENTION})
    found = guidance.signals(images, text_ids, needs)  # there is no hidden state -3 to give
    assert set(found.values) == needs
    assert torch.equal(found.patch_tokens, images.hidden)
    assert found.cls_tokens.shape == (3, 0, 64)


def test_every_method_but_those_inside_the_tower_is_offered() -> None:
    assert offered_methods(TRAITS) == [name for name in method_names() if name != "tome"]
    with pytest.raises(OptionsError, match=r"goes by tower .*; SigLIP-LLaVA models do not"):
        pruner_for(PruningOptions(method="tome"), TRAITS)


def test_absent_cls_takes_no_position() -> None:
    visionzip, prumerge = build_pruner("visionzip", {}), build_pruner("prumerge", {})
    assert TRAITS.places(visionzip, 196) == range(196)
    assert TRAITS.places(prumerge, 196) == range(197)
    assert Traits("CLIP").places(visionzip, 196) == range(-1, 196)


def test_window_of_a_tower_without_cls_has_its_own_patches(
    guidance: SiglipGuidance, images: MadeUpImages, text_ids: Any
) -> None:
    shown = Window(14, top=3, bottom=11, left=0, right=14)
    for method in offered_methods(TRAITS):
        pruner = build_pruner(method, {})
        words = [torch.arange(len(ids), dtype=torch.int32) for ids in text_ids]
        signals = guidance.signals(images, text_ids, pruner.needs | {Signal.FEATURES}, words)
        budget = 112 if method == "keep-all" else 30
        orders = [Order(pruner, budget, window=shown)] * 3
        for image, one in enumerate(prune(signals, orders, [None] * 3)):
            kept = [place for place in one.indices.tolist() if place < 196]
            assert all(3 * 14 <= place < 11 * 14 for place in kept), method
            if method in ("context", "litelvlm", "random"):
                assert torch.equal(one.tokens, images.hidden[image, one.indices]), method


def test_padding_is_told_by_the_patches_that_the_tower_really_has() -> None:
    """Of 384 pixels, 27 patches of 14 leave the last six out."""
    side = Fraction(384, 14)
    assert window((100, 100), side) is None
    found = window((384, 192), side)
    assert found is not None
    # Pixels 96 to 288 are in rows 6 (84 to 98) to 20 (280 to 294).
    assert (found.top, found.bottom, found.left, found.right) == (6, 21, 0, 27)
    assert window((640, 480), Fraction(24)) == window((640, 480), 24)


def test_texts_have_full_length_and_say_what_is_their_own(siglip: Checkpoint) -> None:
    stock = AutoTokenizer.from_pretrained(siglip.clip)
    texts = ["A red cup", "", "the dog </s><eos><pad>", "a cup " * 80]
    ids = SiglipTextTokenizer(str(siglip.clip), 64)(texts)
    assert (ids.shape, ids.dtype) == ((4, 64), torch.int32)
    plain = torch.where(ids < 0, ~ids, ids)
    for number in (0, 1, 3):
        expected = stock(
            texts[number].lower(), padding="max_length", truncation=True, max_length=64
        )["input_ids"]
        assert plain[number].tolist() == expected
    words = stock("a red cup", add_special_tokens=False)["input_ids"]
    assert (ids[0] >= 0).sum() == len(words)
    assert ((ids[1] >= 0).sum(), plain[1, 0]) == (1, stock.eos_token_id)
    # What spells a special token is a text like others.
    special = {stock.eos_token_id, stock.pad_token_id}
    assert not special & set(ids[2][ids[2] >= 0].tolist())
    assert (ids[3] >= 0).tolist() == [True] * 63 + [False]


def test_tower_in_a_llava_comes_first_and_the_siglip_fills_in(whole: Checkpoint) -> None:
    config = LlavaConfig.from_pretrained(whole.llava)
    built = kind_of(config).guide(str(whole.clip), config, torch.float32)
    name = "vision_model.encoder.layers.3.mlp.fc1.bias"
    ClipWeights(built.scorer, built.text_tower).load(
        {name: torch.full((160,), 7.0)}, str(whole.clip)
    )
    assert built.scorer.last_widen.bias.unique().tolist() == [7.0]
    theirs = load_file(whole.clip / "model.safetensors")
    assert torch.equal(built.scorer.probe, theirs["vision_model.head.probe"])
    names = built.scorer.clip_names() | built.text_tower.clip_names()
    assert set(names.values()) < set(theirs)


def test_missing_tensor_is_named_with_the_siglip_where_it_was_looked_for(
    whole: Checkpoint, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(whole.clip, tmp_path / "clip"))
    tensors = load_file(copy / "model.safetensors")
    del tensors["vision_model.head.probe"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    config = LlavaConfig.from_pretrained(whole.llava)
    built = kind_of(config).guide(str(copy), config, torch.float32)
    told = r"head\.probe' is neither in the model's checkpoint nor in the SigLIP at"
    with pytest.raises(WeightsError, match=told):
        ClipWeights(built.scorer, built.text_tower).load({}, str(copy))


def test_both_published_layouts_read_the_last_layer_but_one(
    siglip: Checkpoint, whole: Checkpoint
) -> None:
    for checkpoint, layers, layer in ((siglip, 3, -1), (whole, 4, -2)):
        config = LlavaConfig.from_pretrained(checkpoint.llava)
        assert (config.vision_config.num_hidden_layers, config.vision_feature_layer) == (
            layers,
            layer,
        )
        kind_of(config).check(config)
        found = read_siglip_config(str(checkpoint.clip), config)
        assert found.vision_config.num_hidden_layers == 4
        config.vision_feature_layer = 3
        read_siglip_config(str(checkpoint.clip), config)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"vision_feature_select_strategy": "default"}, "strategy 'full' with a SigLIP"),
        ({"vision_feature_layer": [-2, -1]}, r"one vision_feature_layer; .* is \[-2, -1\]"),
    ],
)
def test_features_that_are_no_patches_of_one_layer_are_refused(
    whole: Checkpoint, fault: dict[str, Any], sentence: str
) -> None:
    config = LlavaConfig.from_pretrained(whole.llava)
    for name, value in fault.items():
        setattr(config, name, value)
    with pytest.raises(CompatibilityError, match=sentence):
        kind_of(config).check(config)


@pytest.mark.parametrize(("layer", "runs"), [(-1, 4), (-3, 2), (1, 1)])
def test_other_layers_are_refused_by_naming_both(whole: Checkpoint, layer: int, runs: int) -> None:
    config = LlavaConfig.from_pretrained(whole.llava)
    config.vision_feature_layer = layer
    told = rf"layer 3 of the 4 that .* has; .* vision_feature_layer {layer} is layer {runs}\."
    with pytest.raises(CompatibilityError, match=told):
        read_siglip_config(str(whole.clip), config)


def test_siglip_has_to_be_named(whole: Checkpoint) -> None:
    config = LlavaConfig.from_pretrained(whole.llava)
    with pytest.raises(WeightsError, match=r"geometry does not tell which\. Name .*'clip_model'"):
        kind_of(config).find(None, config, str(whole.llava))
    assert kind_of(config).find("here", config, str(whole.llava)) == "here"


@pytest.mark.parametrize(
    ("part", "fault", "sentence"),
    [
        ("vision_config", {"hidden_size": 32}, "has hidden_size 32, the model's vision tower 64"),
        ("vision_config", {"image_size": 384}, "has image_size 384, the model's vision tower 224"),
        ("vision_config", {"vision_use_head": False}, "has no pooling head"),
        ("text_config", {"projection_size": 32}, "texts of width 32 and images of width 64"),
    ],
)
def test_siglip_that_does_not_fit_is_refused_by_naming_the_difference(
    whole: Checkpoint, tmp_path: Path, part: str, fault: dict[str, Any], sentence: str
) -> None:
    fields = json.loads((whole.clip / "config.json").read_text())
    fields[part] |= fault
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = LlavaConfig.from_pretrained(whole.llava)
    with pytest.raises(WeightsError, match=sentence):
        read_siglip_config(str(tmp_path), config)


def test_other_checkpoints_are_no_siglip(
    whole: Checkpoint, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = LlavaConfig.from_pretrained(whole.llava)
    for folder, reason in ((checkpoint.clip, "model_type is 'clip'"), (tmp_path, "")):
        with pytest.raises(WeightsError, match=rf"No SigLIP configuration at .*{reason}"):
            read_siglip_config(str(folder), config)
    with pytest.raises(WeightsError, match="No SigLIP tokenizer at"):
        SiglipTextTokenizer(str(tmp_path), 64)
    with pytest.raises(CompatibilityError, match="CLIP or SigLIP vision tower"):
        kind_of(SiglipTextConfig())
    assert SiglipConfig.from_pretrained(whole.clip).model_type == "siglip"
