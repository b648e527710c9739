"""ClipGuidance with caches: what is computed when, and that nothing else changes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from tests.vision.made_up import MadeUpImages
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.vision.clip_guidance import ClipGuidance
from vllm_litelvlm.vision.text import ClipTextTokenizer
from vllm_litelvlm.vision.weights import ClipWeights

#: What LiteLVLM reads, and what its cache keeps.
NEEDS = frozenset({Signal.FEATURES, Signal.SIMILARITY, Signal.CONTEXT})
EVERYTHING = frozenset(Signal) - {Signal.WORD_COSINE, Signal.TOWER}
IMAGE_BYTES = 577 * 64 * 4 + 576 * 4


@pytest.fixture(scope="module")
def build(checkpoint: Checkpoint) -> Any:
    config = CLIPModel.config_class.from_pretrained(checkpoint.clip)

    def guidance(
        images: float = 0, texts: int = 0, needs: frozenset[Signal] = NEEDS
    ) -> ClipGuidance:
        built = ClipGuidance(config.vision_config, config)
        ClipWeights(built.scorer, built.text_tower).load({}, str(checkpoint.clip))
        built.add_feature_cache(int(images * IMAGE_BYTES), torch.float32, needs)
        built.add_text_cache(texts)
        return built

    return guidance


@pytest.fixture(scope="module")
def tokenize(checkpoint: Checkpoint) -> Any:
    return ClipTextTokenizer(str(checkpoint.clip), 77)


def pictures(names: str) -> MadeUpImages:
    """One made-up image a letter; equal letters are equal images."""
    states = []
    for name in names:
        generator = torch.Generator().manual_seed(ord(name))
        states.append(torch.randn(2, 577, 64, generator=generator))
    hidden, feature_input = torch.stack(states, dim=1)
    return MadeUpImages(hidden, feature_input, names=list(names))


def assert_same(left: Signals, right: Signals) -> None:
    """Up to the rounding of another batch."""
    assert left.values.keys() == right.values.keys()
    assert list(left.text_counts) == list(right.text_counts)
    for name, value in left.values.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=5e-5)


def test_another_text_about_an_image_runs_no_tower(build: Any, tokenize: Any) -> None:
    cached, plain = build(images=4), build()
    for names, texts, ran in [
        ("ab", ["a cup", "a dog"], [[0, 1]]),
        ("ba", ["a spoon", "a dog"], []),
        ("acb", ["a", "b", "c"], [[1]]),
        ("aa", ["a", "b"], []),
    ]:
        images, ids = pictures(names), [tokenize([text]) for text in texts]
        found = cached.signals(images, ids, NEEDS)
        assert images.ran == ran
        assert_same(found, plain.signals(pictures(names), ids, NEEDS))


def test_equal_images_of_a_batch_are_seen_once_without_a_cache(build: Any, tokenize: Any) -> None:
    images = pictures("abab")
    ids = [tokenize([text]) for text in ("one", "two", "three", "two")]
    found = build().signals(images, ids, NEEDS)
    assert images.ran == [[0, 1]]
    apart = build().signals(MadeUpImages(images.hidden), ids, NEEDS)
    assert_same(found, apart)


@pytest.mark.parametrize("slots", [0, 0.5, 1, 2, 3])
def test_small_cache_changes_nothing_but_how_often_the_tower_runs(
    build: Any, tokenize: Any, slots: float
) -> None:
    cached, plain = build(images=slots, texts=2), build()
    for names in ("a", "ab", "cab", "bbcd", "a", "dcba", "ad"):
        ids = [tokenize([f"the {name}"]) for name in names]
        found = cached.signals(pictures(names), ids, EVERYTHING)
        assert_same(found, plain.signals(pictures(names), ids, EVERYTHING))


def test_signals_of_the_tower_that_are_not_kept_run_it(build: Any, tokenize: Any) -> None:
    cached, ids = build(images=4), [tokenize(["a cup"])]
    cached.signals(pictures("a"), ids, NEEDS)
    images = pictures("a")
    found = cached.signals(images, ids, NEEDS | {Signal.KEYS})
    assert images.ran == [[0]]
    assert_same(found, build().signals(pictures("a"), ids, NEEDS | {Signal.KEYS}))
    keeping = build(images=4, needs=frozenset({Signal.KEYS}))
    for ran in ([[0]], []):
        images = pictures("a")
        keeping.signals(images, ids, frozenset({Signal.FEATURES, Signal.KEYS}))
        assert images.ran == ran


def test_method_inside_the_tower_runs_it_by_itself(build: Any, tokenize: Any) -> None:
    images = pictures("ab")
    images.tower = object()
    signals = build(images=4).signals(images, [tokenize(["a"])] * 2, frozenset({Signal.TOWER}))
    assert images.ran == []
    assert signals.tower is images.tower
    assert not signals.values


def test_texts_are_embedded_once_while_they_are_kept(
    build: Any, tokenize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, plain = build(texts=3), build()
    embedded: list[int] = []
    stock = cached.text_tower.forward

    def spy(token_ids: torch.Tensor) -> torch.Tensor:
        embedded.append(len(token_ids))
        return stock(token_ids)

    monkeypatch.setattr(cached.text_tower, "forward", spy)

    def ask(*texts: Sequence[str]) -> list[int]:
        ids = [tokenize(some) if some else torch.zeros(0, 1).int() for some in texts]
        images = "abc"[: len(texts)]
        found = cached.signals(pictures(images), ids, NEEDS)
        assert_same(found, plain.signals(pictures(images), ids, NEEDS))
        new, embedded[:] = list(embedded), []
        return new

    assert ask(["a dog", "a cat"], [], ["a dog"]) == [2]
    assert ask(["a cat"], ["one more", "a dog"]) == [1]
    assert ask([], []) == []
    assert ask(["a fourth"]) == [1]
    assert ask(["a dog", "one more"]) == []
    assert ask(["a cat"]) == [1]


def test_new_weights_empty_the_caches(build: Any, tokenize: Any) -> None:
    cached, ids = build(images=4, texts=4), [tokenize(["a cup"])]
    cached.signals(pictures("a"), ids, NEEDS)
    cached.forget()
    images = pictures("a")
    cached.signals(images, ids, NEEDS)
    assert images.ran == [[0]]
    assert (cached.text_cache.queries, cached.text_cache.hits) == (1, 0)


@pytest.mark.parametrize("images", [0, 4])
def test_values_of_the_last_layer_are_projected_once_for_context_and_text(
    build: Any, tokenize: Any, images: int
) -> None:
    needs = frozenset({Signal.FEATURES, Signal.VALUE, Signal.CONTEXT})
    guidance = build(images=images, needs=needs)
    projected: list[int] = []
    for name in ("last_norm", "last_value"):
        getattr(guidance.scorer, name).register_forward_hook(
            lambda *call: projected.append(len(call[2]))
        )
    ids = [tokenize(["a cup"]), tokenize(["a dog", "a cat"])]
    found = guidance.signals(pictures("ab"), ids, needs)
    assert projected == [2, 2]
    alone = build()
    for signal in (Signal.VALUE, Signal.CONTEXT):
        some = alone.signals(pictures("ab"), ids, frozenset({Signal.FEATURES, signal}))
        assert torch.equal(found[signal], some[signal])


def test_text_about_a_kept_image_projects_its_values_alone(build: Any, tokenize: Any) -> None:
    needs = frozenset({Signal.FEATURES, Signal.VALUE, Signal.CONTEXT})
    cached, plain = build(images=4, needs=needs), build()
    cached.signals(pictures("a"), [tokenize(["a cup"])], needs)
    for names in ("a", "ab", "ba"):
        ids = [tokenize([f"the {name}"]) for name in names]
        found = cached.signals(pictures(names), ids, needs)
        assert_same(found, plain.signals(pictures(names), ids, needs))
