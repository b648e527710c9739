"""Scorer and text tower against transformers' own CLIP."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from tests.pruning.rederivation import Calls
from tests.pruning.test_eadp import sharpest
from tests.vision.made_up import MadeUpImages
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.vision.clip_guidance import ClipGuidance
from vllm_litelvlm.vision.text import ClipTextTokenizer, ClipTextTower
from vllm_litelvlm.vision.weights import ClipWeights

#: What the scorer computes; the rest comes from elsewhere.
SCORES = frozenset(Signal) - {
    *(Signal.FEATURES, Signal.PROJECTED, Signal.WORD_COSINE, Signal.TOWER),
}
TEXT_SETS = [["a red cup"], [], ["a dog", "a red cup", "the woman on the left of the flag"]]


@pytest.fixture(scope="module")
def clip(checkpoint: Checkpoint) -> Any:
    return CLIPModel.from_pretrained(checkpoint.clip, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def guidance(checkpoint: Checkpoint, clip: Any) -> ClipGuidance:
    built = ClipGuidance(clip.config.vision_config, clip.config)
    ClipWeights(built.scorer, built.text_tower).load({}, str(checkpoint.clip))
    return built


@pytest.fixture(scope="module")
def seen(checkpoint: Checkpoint, clip: Any, photographs: Sequence[Image.Image]) -> Any:
    """What transformers' tower makes of three photographs, with attention maps."""
    processor = AutoProcessor.from_pretrained(checkpoint.clip)
    pixels = processor.image_processor(photographs[:3], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return clip.vision_model(pixels, output_hidden_states=True, output_attentions=True)


@pytest.fixture(scope="module")
def signals(checkpoint: Checkpoint, guidance: ClipGuidance, seen: Any) -> Signals:
    tokenizer = ClipTextTokenizer(str(checkpoint.clip), 77)
    ids = [tokenizer(texts) if texts else torch.zeros(0, 1).int() for texts in TEXT_SETS]
    return guidance.signals(MadeUpImages(*seen.hidden_states[-2:-4:-1]), ids, SCORES)


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


def test_cosine_is_that_of_clips_own_projections(
    checkpoint: Checkpoint, clip: Any, seen: Any, signals: Signals
) -> None:
    tokenizer = AutoProcessor.from_pretrained(checkpoint.clip).tokenizer
    with torch.no_grad():
        patches = clip.visual_projection(clip.vision_model.post_layernorm(seen.hidden_states[-2]))
        for image, texts in enumerate(TEXT_SETS):
            for number, text in enumerate(texts):
                state = clip.text_model(**tokenizer(text, return_tensors="pt")).pooler_output
                expected = torch.cosine_similarity(
                    patches[image, 1:], clip.text_projection(state), dim=-1
                )
                found = signals[Signal.COSINE][image, number]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_token_cosine_goes_by_the_states_of_all_tokens(
    checkpoint: Checkpoint, clip: Any, seen: Any, signals: Signals
) -> None:
    """Of each text alone, so that padding beside a longer one would show."""
    tokenizer = AutoProcessor.from_pretrained(checkpoint.clip).tokenizer
    with torch.no_grad():
        patches = clip.visual_projection(clip.vision_model.post_layernorm(seen.hidden_states[-2]))
        for image, texts in enumerate(TEXT_SETS):
            for number, text in enumerate(texts):
                output = clip.text_model(**tokenizer(text, return_tensors="pt"))
                states = torch.cat([output.pooler_output, output.last_hidden_state[0]])
                tokens = clip.text_projection(states)
                cosines = torch.cosine_similarity(tokens[:, None], patches[image, None, 1:], dim=-1)
                calls, own = Calls(), [True] * (len(tokens) - 1)
                expected = sharpest(cosines.double().numpy(), own, calls)
                assert calls.closest > 1e-4
                found = signals[Signal.TOKEN_COSINE][image, number].double()
                torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


def test_word_cosine_is_of_projected_patches_and_embedded_words(
    guidance: ClipGuidance, seen: Any
) -> None:
    images = MadeUpImages(seen.hidden_states[-2])
    words = [torch.tensor(ids, dtype=torch.int32) for ids in ([5, 7, 9], [], [2])]
    ids = [torch.zeros(0, 1, dtype=torch.int32)] * 3
    found = guidance.signals(images, ids, frozenset({Signal.WORD_COSINE}), words)
    assert list(found.word_counts) == [3, 0, 1]
    assert found[Signal.WORD_COSINE].shape == (3, 3, 576)
    for image, own in enumerate(words):
        projected = images.project(images.hidden[image, 1:])
        for number, word in enumerate(own):
            expected = torch.cosine_similarity(projected, images.embed(word)[None], dim=-1)
            torch.testing.assert_close(found[Signal.WORD_COSINE][image, number], expected)


def test_value_is_the_patches_own_way_through_the_last_layer(
    checkpoint: Checkpoint, clip: Any, seen: Any, signals: Signals
) -> None:
    tokenizer = AutoProcessor.from_pretrained(checkpoint.clip).tokenizer
    last, tower = clip.vision_model.encoder.layers[-1], clip.vision_model
    with torch.no_grad():
        for image, hidden in enumerate(seen.hidden_states[-2]):
            values = last.self_attn.v_proj(last.layer_norm1(hidden[1:]))
            path = clip.visual_projection(tower.post_layernorm(last.self_attn.out_proj(values)))
            for number, text in enumerate(TEXT_SETS[image]):
                state = clip.text_model(**tokenizer(text, return_tensors="pt")).pooler_output
                expected = path @ clip.text_projection(state)[0]
                found = signals[Signal.VALUE][image, number]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_last_attention_and_keys_are_those_of_one_head_of_full_width(
    clip: Any, seen: Any, signals: Signals
) -> None:
    last = clip.vision_model.encoder.layers[-1]
    with torch.no_grad():
        for image, hidden in enumerate(seen.hidden_states[-2]):
            normed = last.layer_norm1(hidden)
            query, keys = last.self_attn.q_proj(normed), last.self_attn.k_proj(normed)
            whole = torch.softmax(query @ keys.T * 64**-0.5, dim=-1)
            found = signals[Signal.LAST_ATTENTION][image]
            torch.testing.assert_close(found, whole[0, 1:], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(
                signals[Signal.LAST_KEYS][image], keys[1:], rtol=1e-4, atol=1e-5
            )


def test_keys_are_means_over_the_heads_of_the_feature_layer(
    clip: Any, seen: Any, signals: Signals
) -> None:
    layer = clip.vision_model.encoder.layers[-2]
    with torch.no_grad():
        keys = layer.self_attn.k_proj(layer.layer_norm1(seen.hidden_states[-3][:, 1:]))
    heads = keys.split(16, dim=-1)
    assert len(heads) == 4
    expected = sum(heads) / 4
    torch.testing.assert_close(signals[Signal.KEYS], expected, rtol=1e-4, atol=1e-5)


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


def test_only_needed_signals_are_computed(guidance: ClipGuidance, seen: Any) -> None:
    ids = [torch.zeros(0, 1).int()] * 3
    found = guidance.signals(MadeUpImages(seen.hidden_states[-2]), ids, frozenset({Signal.CONTEXT}))
    assert set(found.values) == {Signal.FEATURES, Signal.CONTEXT}


def test_equal_texts_are_embedded_once(
    checkpoint: Checkpoint, guidance: ClipGuidance, monkeypatch: pytest.MonkeyPatch
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
    found = guidance.signals(MadeUpImages(hidden), ids, frozenset({Signal.SIMILARITY}))
    assert embedded == [3]
    assert list(found.text_counts) == [2, 1, 2]


def text_config(end: int) -> CLIPTextConfig:
    """A small text tower whose configuration names ``end`` as its end token."""
    return CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        bos_token_id=98,
        eos_token_id=end,
        pad_token_id=1,
    )


@pytest.mark.parametrize("legacy", [True, False])
def test_end_token_is_pooled_and_padding_has_no_influence(legacy: bool) -> None:
    config = text_config(end=2 if legacy else 99)
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


@pytest.fixture(scope="module")
def uneven(clip: Any, seen: Any) -> tuple[Any, ClipGuidance]:
    """A CLIP whose norms are not the identity, in double precision, and guidance filled from it.

    Fresh norms scale by one, so that one taken for another would go unnoticed.
    """
    torch.manual_seed(1)
    double = copy.deepcopy(clip)
    with torch.no_grad():
        for module in double.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_(std=0.3)
    built = ClipGuidance(clip.config.vision_config, clip.config)
    for part in (built.scorer, built.text_tower):
        names = part.clip_names()
        tensors = double.state_dict()
        for own, parameter in part.named_parameters():
            parameter.data.copy_(tensors[names[own]])
    return double.double(), built


def test_every_norm_and_projection_is_in_its_own_place(
    checkpoint: Checkpoint, uneven: tuple[Any, ClipGuidance], photographs: Sequence[Image.Image]
) -> None:
    double, built = uneven
    processor = AutoProcessor.from_pretrained(checkpoint.clip)
    pixels = processor.image_processor(photographs[3], return_tensors="pt")["pixel_values"]
    ids = ClipTextTokenizer(str(checkpoint.clip), 77)(["the rocket", "a cloud of white smoke"])
    with torch.no_grad():
        seen = double.vision_model(
            pixels.double(), output_hidden_states=True, output_attentions=True
        )
        aligned = double.visual_projection(
            double.vision_model.post_layernorm(seen.hidden_states[-2][0, 1:])
        )
        states = double.text_model(input_ids=ids.long()).pooler_output
        similarity = double.text_projection(states) @ aligned.T
        last = double.vision_model.encoder.layers[-1]
        normed = last.layer_norm1(seen.hidden_states[-2][0])
        query, keys = last.self_attn.q_proj(normed[0]), last.self_attn.k_proj(normed[1:])
        lengths = last.self_attn.v_proj(normed[1:]).norm(dim=-1)
        context = torch.softmax(keys @ query / 64**0.5, dim=0) * lengths
    both = MadeUpImages(seen.hidden_states[-2].float(), seen.hidden_states[-3].float())
    found = built.signals(both, [ids], SCORES)
    close = {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(found[Signal.SIMILARITY][0], similarity, **close)
    torch.testing.assert_close(
        found[Signal.CONTEXT][0], context, rtol=1e-3, atol=1e-6, check_dtype=False
    )
    attention = seen.attentions[-2][0, :, 0, 1:].mean(dim=0)
    torch.testing.assert_close(found[Signal.CLS_ATTENTION][0], attention, **close)
    assert not torch.allclose(attention, attention.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_computed_in_float32_whatever_the_towers_dtype(
    guidance: ClipGuidance, seen: Any, dtype: torch.dtype
) -> None:
    hidden, feature_input = seen.hidden_states[-2].to(dtype), seen.hidden_states[-3].to(dtype)
    ids = [torch.tensor([[1971, 300, 1972]])] * 3
    half = guidance.signals(MadeUpImages(hidden, feature_input), ids, SCORES)
    full = guidance.signals(MadeUpImages(hidden.float(), feature_input.float()), ids, SCORES)
    for signal in SCORES:
        assert half[signal].dtype == torch.float32
        assert torch.equal(half[signal], full[signal])


def test_image_alone_gets_the_scores_that_it_gets_in_a_batch(
    checkpoint: Checkpoint, guidance: ClipGuidance, seen: Any, signals: Signals
) -> None:
    ids = ClipTextTokenizer(str(checkpoint.clip), 77)(TEXT_SETS[2])
    hidden, feature_input = seen.hidden_states[-2][2:], seen.hidden_states[-3][2:]
    alone = guidance.signals(MadeUpImages(hidden, feature_input), [ids], SCORES)
    for signal in SCORES:
        torch.testing.assert_close(alone[signal][0], signals[signal][2], rtol=1e-4, atol=1e-5)


def test_texts_padded_to_another_length_are_the_same_text(
    checkpoint: Checkpoint, guidance: ClipGuidance, seen: Any
) -> None:
    tokenizer = ClipTextTokenizer(str(checkpoint.clip), 77)
    short = tokenizer(["a dog"])
    padded = tokenizer(["a dog", "the woman on the left of the flag"])
    assert padded.shape[1] > short.shape[1]
    hidden = seen.hidden_states[-2][:1]
    needs = frozenset({Signal.SIMILARITY})
    alone = guidance.signals(MadeUpImages(hidden), [short], needs)[Signal.SIMILARITY][0, 0]
    beside = guidance.signals(MadeUpImages(hidden), [padded], needs)[Signal.SIMILARITY][0, 0]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("end", "ids", "pooled"),
    [
        (2, [98, 2, 6, 99], 3),  # the legacy end token is not looked for: the highest id is
        (2, [98, 2, 99, 99], 2),
        (50, [98, 60, 50, 70, 50], 2),  # the first, though other ids are higher
    ],
)
def test_pooled_position_follows_the_configured_end_token(
    end: int, ids: list[int], pooled: int
) -> None:
    torch.manual_seed(0)
    tower = ClipTextTower(text_config(end))
    with torch.no_grad():
        states = tower.model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        candidates = tower.model.text_projection(states)
    found = tower(torch.tensor([ids], dtype=torch.int32))[0]
    distances = (candidates - found).norm(dim=-1)
    assert distances.argmin() == pooled
    torch.testing.assert_close(found, candidates[pooled])
