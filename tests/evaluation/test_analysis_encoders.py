"""Scores of both kinds of encoder, against the model itself and slow arithmetic."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.vocabularies import clip_tokenizer
from vllm_litelvlm.errors import CompatibilityError, WeightsError
from vllm_litelvlm.evaluation.analysis.checkpoint import load_encoder
from vllm_litelvlm.evaluation.analysis.clip_encoder import ClipEncoder
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.siglip_encoder import SiglipEncoder

TEXTS = ["the red cup on the left", "dog"]
SIDE, PATCH = 70, 14


def build_siglip(folder: Path, **vision: Any) -> Path:
    """A SigLIP with random weights in the published layout."""
    torch.manual_seed(1)
    tokenizer = clip_tokenizer(600, max_tokens=16)
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    config = SiglipConfig(
        vision_config={**sizes, "image_size": SIDE, "patch_size": PATCH, **vision},
        text_config={
            **sizes,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "projection_size": 32,
        },
    )
    model = SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(checkpoint: Checkpoint) -> Encoder:
    return load_encoder(str(checkpoint.clip), "cpu")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(build_siglip(tmp_path_factory.mktemp("siglip"))), "cpu")


def scores_of(encoder: Encoder, images: Sequence[Image.Image]) -> dict[Score, Tensor]:
    """Of every image with both texts."""
    owners = [number for number in range(len(images)) for _ in TEXTS]
    pixels = [encoder.preprocessor.pixels(image) for image in images]
    scores = encoder.scores(pixels, owners, TEXTS * len(images))
    return {score: torch.stack(rows) for score, rows in scores.items()}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


@torch.no_grad()
def test_scores_of_clip_agree_with_slow_arithmetic(
    clip: Encoder, checkpoint: Checkpoint, photographs: list[Image.Image]
) -> None:
    found = scores_of(clip, photographs[:2])
    model = CLIPModel.from_pretrained(checkpoint.clip, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.clip)
    layer = model.vision_model.encoder.layers[-1]
    for number, (image, text) in enumerate((i, t) for i in photographs[:2] for t in TEXTS):
        pixels = clip.preprocessor.pixels(image).values[None]
        out = model.vision_model(pixels, output_hidden_states=True, output_attentions=True)
        ids = tokenizer([text], return_tensors="pt")["input_ids"]
        embedding = model.text_projection(model.text_model(ids).pooler_output)[0]
        for state, eos, cls in (
            (out.hidden_states[-2], Score.EOS, Score.CLS),
            (out.hidden_states[-1], Score.EOS_LAST, Score.CLS_LAST),
        ):
            aligned = model.visual_projection(model.vision_model.post_layernorm(state[0]))
            close(found[eos][number], torch.stack([row @ embedding for row in aligned[1:]]))
            close(found[cls][number], torch.stack([row @ aligned[0] for row in aligned[1:]]))
        aligned = model.visual_projection(
            model.vision_model.post_layernorm(out.hidden_states[-2][0])
        )
        cosine = torch.cosine_similarity(aligned[1:], embedding[None])
        close(found[Score.EOS_COSINE][number], cosine)
        close(found[Score.CLS_ATTENTION][number], out.attentions[-1][0, :, 0, 1:].mean(dim=0))
        normed = layer.layer_norm1(out.hidden_states[-2][0])
        value = layer.self_attn.v_proj(normed)[1:]
        path = model.vision_model.post_layernorm(layer.self_attn.out_proj(value))
        close(found[Score.VALUE][number], model.visual_projection(path) @ embedding)
        logits = layer.self_attn.k_proj(normed)[1:] @ layer.self_attn.q_proj(normed)[0]
        weights = (logits / math.sqrt(normed.shape[1])).softmax(dim=0)
        close(found[Score.CONTEXT][number], (weights[:, None] * value).norm(dim=1))


@torch.no_grad()
def test_attention_of_the_end_token_is_the_models_and_sums_to_1(
    clip: Encoder, checkpoint: Checkpoint
) -> None:
    assert isinstance(clip, ClipEncoder)
    model = CLIPModel.from_pretrained(checkpoint.clip, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.clip)
    texts = [*TEXTS, "word " * 100]
    for text, found in zip(texts, clip.text_attention(texts), strict=True):
        ids = tokenizer([text], return_tensors="pt", truncation=True, max_length=77)["input_ids"]
        layers = model.text_model(ids, output_attentions=True).attentions
        expected = torch.stack([layer[0, :, -1].mean(dim=0) for layer in layers])
        assert found.weights.shape == (2, ids.shape[1])
        close(found.weights, expected)
        close(found.weights.sum(dim=1), torch.ones(2))
        spelled = [text[start:stop] for start, stop in found.spans[1:-1]]
        assert "".join(spelled) == text.replace(" ", "")[: len("".join(spelled))]


@torch.no_grad()
def test_scores_of_siglip_agree_with_slow_arithmetic(
    siglip: Encoder, photographs: list[Image.Image]
) -> None:
    assert isinstance(siglip, SiglipEncoder)
    found = scores_of(siglip, photographs[:2])
    model = SiglipModel.from_pretrained(siglip.name, attn_implementation="eager").eval()
    vision, head = model.vision_model, model.vision_model.head
    for number, (image, text) in enumerate((i, t) for i in photographs[:2] for t in TEXTS):
        pixels = siglip.preprocessor.pixels(image).values[None]
        out = vision(pixels, output_hidden_states=True, output_attentions=True)
        tokens = siglip.tokenizer([text], padding="max_length", max_length=16, return_tensors="pt")
        embedding = model.text_model(tokens["input_ids"]).pooler_output[0]
        early = vision.post_layernorm(out.hidden_states[-2])
        late = vision.post_layernorm(out.hidden_states[-1])
        close(found[Score.EOS][number], early[0] @ embedding)
        close(found[Score.EOS_COSINE][number], torch.cosine_similarity(early[0], embedding[None]))
        close(found[Score.EOS_LAST][number], late[0] @ embedding)
        close(found[Score.CLS][number], early[0] @ head(early)[0])
        close(found[Score.CLS_LAST][number], late[0] @ out.pooler_output[0])
        alone = torch.cat([head(late[:, place : place + 1]) for place in range(late.shape[1])])
        close(found[Score.VALUE][number], alone @ embedding)
        received = out.attentions[-1][0].mean(dim=0).mean(dim=0)
        close(found[Score.RECEIVED][number], received)
        _, weights = head.attention(head.probe, late, late, need_weights=True)
        close(found[Score.CLS_ATTENTION][number], weights[0, 0])
        matrix, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
        query = head.probe[0, 0] @ matrix[:32].T + bias[:32]
        key, value = (late[0] @ matrix[at : at + 32].T + bias[at : at + 32] for at in (32, 64))
        share = (key @ query / math.sqrt(32)).softmax(dim=0)
        close(found[Score.CONTEXT][number], (share[:, None] * value).norm(dim=1))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_do_not_depend_on_the_batch(
    kind: str, photographs: list[Image.Image], request: pytest.FixtureRequest
) -> None:
    encoder: Encoder = request.getfixturevalue(kind)
    together = scores_of(encoder, photographs[:2])
    alone = scores_of(encoder, photographs[1:2])
    assert list(together) == list(encoder.labels)
    for score, values in alone.items():
        assert values.shape == (len(TEXTS), encoder.patches)
        close(together[score][len(TEXTS) :], values)


def test_checkpoint_of_another_architecture_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CompatibilityError, match=r"is a 'llava' model; allowed: CLIP"):
        load_encoder(str(checkpoint.llava), "cpu")


def test_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No checkpoint can be read"):
        load_encoder(str(tmp_path / "nothing"), "cpu")


def test_siglip_without_pooling_head_is_refused(tmp_path: Path) -> None:
    folder = build_siglip(tmp_path, vision_use_head=False)
    with pytest.raises(CompatibilityError, match="no pooling head"):
        load_encoder(str(folder), "cpu")
