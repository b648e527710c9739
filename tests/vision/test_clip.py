"""Scorer and text tower against transformers' own CLIP."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.vision.checkpoint import load_guidance
from vllm_litelvlm.vision.guidance import Guidance
from vllm_litelvlm.vision.text import ClipTextTokenizer, ClipTextTower

TEXT_SETS = [["a red cup"], [], ["a dog", "a red cup", "the woman on the left of the flag"]]


@pytest.fixture(scope="module")
def clip(checkpoint: Checkpoint) -> Any:
    return CLIPModel.from_pretrained(checkpoint.clip, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def guidance(checkpoint: Checkpoint, clip: Any) -> Guidance:
    built = Guidance(clip.config.vision_config, clip.config)
    load_guidance(built.scorer, built.text_tower, {}, str(checkpoint.clip))
    return built


@pytest.fixture(scope="module")
def seen(checkpoint: Checkpoint, clip: Any, photographs: Sequence[Image.Image]) -> Any:
    """What transformers' tower makes of three photographs, with attention maps."""
    processor = AutoProcessor.from_pretrained(checkpoint.clip)
    pixels = processor.image_processor(photographs[:3], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return clip.vision_model(pixels, output_hidden_states=True, output_attentions=True)


@pytest.fixture(scope="module")
def signals(checkpoint: Checkpoint, guidance: Guidance, seen: Any) -> Signals:
    tokenizer = ClipTextTokenizer(str(checkpoint.clip), 77)
    ids = [tokenizer(texts) if texts else torch.zeros(0, 1).int() for texts in TEXT_SETS]
    return guidance.signals(seen.hidden_states[-2], seen.hidden_states[-3], ids, frozenset(Signal))


def test_similarity_is_that_of_clips_own_projections(
    checkpoint: Checkpoint, clip: Any, seen: Any, signals: Signals
) -> None:
    tokenizer = AutoProcessor.from_pretrained(checkpoint.clip).tokenizer
    assert list(signals.text_counts) == [1, 0, 3]
    with torch.no_grad():
        patches = clip.visual_projection(clip.vision_model.post_layernorm(seen.hidden_states[-2]))
        for image, texts in enumerate(TEXT_SETS):
            for number, text in enumerate(texts):
                state = clip.text_model(**tokenizer(text, return_tensors="pt")).pooler_output
                expected = patches[image, 1:] @ clip.text_projection(state)[0]
                found = signals[Signal.SIMILARITY][image, number]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signal", [Signal.CONTEXT, Signal.CONTEXT_NORMALISED])
def test_context_is_equation_5_on_clips_last_layer(
    clip: Any, seen: Any, signals: Signals, signal: Signal
) -> None:
    last = clip.vision_model.encoder.layers[-1]
    with torch.no_grad():
        for image, hidden in enumerate(seen.hidden_states[-2]):
            normed = last.layer_norm1(hidden)
            query = last.self_attn.q_proj(normed[0])
            keys, values = last.self_attn.k_proj(normed[1:]), last.self_attn.v_proj(normed[1:])
            if signal is Signal.CONTEXT_NORMALISED:
                query, keys = query / query.norm(), keys / keys.norm(dim=-1, keepdim=True)
            weights = torch.softmax(keys @ query / 64**0.5, dim=0)
            expected = torch.stack([(w * v).norm() for w, v in zip(weights, values, strict=True)])
            torch.testing.assert_close(signals[signal][image], expected, rtol=1e-4, atol=1e-7)


def test_context_ranks_alike_over_all_and_over_the_remaining_patches(signals: Signals) -> None:
    remaining = torch.arange(576)[torch.arange(576) % 3 > 0]
    scores = signals[Signal.CONTEXT][0][remaining]
    rescaled = scores / 0.37  # another softmax denominator, common to all
    assert torch.equal(scores.argsort(), rescaled.argsort())


def test_cls_attention_is_that_of_the_last_layer_that_the_tower_runs(
    seen: Any, signals: Signals
) -> None:
    expected = seen.attentions[-2].mean(dim=1)[:, 0, 1:]
    torch.testing.assert_close(signals[Signal.CLS_ATTENTION], expected, rtol=1e-4, atol=1e-6)


def test_only_needed_signals_are_computed(guidance: Guidance, seen: Any) -> None:
    ids = [torch.zeros(0, 1).int()] * 3
    found = guidance.signals(seen.hidden_states[-2], None, ids, frozenset({Signal.CONTEXT}))
    assert found.context is not None
    assert found.similarity is found.context_normalised is found.cls_attention is None


def test_equal_texts_are_embedded_once(
    checkpoint: Checkpoint, guidance: Guidance, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    stock = guidance.text_tower.forward

    def spy(token_ids: torch.Tensor) -> torch.Tensor:
        embedded.append(len(token_ids))
        return stock(token_ids)

    monkeypatch.setattr(guidance.text_tower, "forward", spy)
    tokenizer = ClipTextTokenizer(str(checkpoint.clip), 77)
    hidden = torch.randn(3, 577, 64)
    ids = [tokenizer(["a dog", "a cat"]), tokenizer(["a cat"]), tokenizer(["a dog", "one more"])]
    found = guidance.signals(hidden, None, ids, frozenset({Signal.SIMILARITY}))
    assert embedded == [3]
    assert list(found.text_counts) == [2, 1, 2]


@pytest.mark.parametrize("legacy", [True, False])
def test_end_token_is_pooled_and_padding_has_no_influence(legacy: bool) -> None:
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        bos_token_id=98,
        eos_token_id=2 if legacy else 99,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    tower = ClipTextTower(config)
    whole = CLIPTextModelWithProjection(config).eval()
    whole.load_state_dict(tower.model.state_dict())
    ids = torch.tensor([[98, 5, 6, 99]])
    padded = torch.tensor([[98, 5, 6, 99, 99, 99, 99]])
    with torch.no_grad():
        states = whole.text_model(input_ids=ids).last_hidden_state
        expected = whole.text_projection(states[:, 3])
    torch.testing.assert_close(tower(ids), expected)
    torch.testing.assert_close(tower(padded), expected)
