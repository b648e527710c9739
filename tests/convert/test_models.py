"""The converted models compute what the GLaMM's parts compute."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, SamModel

from tests.convert.builder import ADDED, MASK, PIXELS, SAM_PIXELS, Source, make_source, write_glamm
from tests.convert.conftest import Converted
from vllm_litelvlm.convert import writing
from vllm_litelvlm.convert.glamm import convert_glamm

TEXT = "USER: The <im_start><image><im_end> is.\nWhere? ASSISTANT: It is [SEG].</s>"


def pixels(seed: int, size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def reference_logits(source: Source, ids: list[int], image_id: int, images: Tensor) -> Tensor:
    """Of the source's weights, put together by hand: CLIP, two layers, the Llama."""
    seen = source.clip.vision_model(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    state = source.state
    inner = F.gelu(
        seen @ state["model.mm_projector.0.weight"].T + state["model.mm_projector.0.bias"]
    )
    features = inner @ state["model.mm_projector.2.weight"].T + state["model.mm_projector.2.bias"]
    at = ids.index(image_id)
    embed = source.llama.get_input_embeddings()
    whole = torch.cat(
        [embed(torch.tensor(ids[:at])), features[0], embed(torch.tensor(ids[at + 1 :]))]
    )
    return source.llama(inputs_embeds=whole[None]).logits


@torch.no_grad()
def test_llava_gives_the_logits_of_its_parts(converted: Converted) -> None:
    model, loaded = LlavaForConditionalGeneration.from_pretrained(
        converted.output, output_loading_info=True
    )
    assert not loaded["missing_keys"]
    assert not loaded["mismatched_keys"]
    assert all(name.startswith("text_hidden_fcs.") for name in loaded["unexpected_keys"])
    image_id = model.config.image_token_id
    tokenizer = AutoProcessor.from_pretrained(converted.output).tokenizer
    ids = tokenizer(TEXT).input_ids
    at = ids.index(image_id)
    images = pixels(1, PIXELS)
    prompt = torch.tensor([ids[:at] + 16 * [image_id] + ids[at + 1 :]])
    logits = model.eval()(input_ids=prompt, pixel_values=images).logits
    expected = reference_logits(converted.source, ids, image_id, images)
    own = expected.shape[-1]
    torch.testing.assert_close(logits[..., :own], expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.5
    # The row that was added answers as often as <unk>, and never before it.
    assert logits.shape[-1] == own + 1 == image_id + 1
    assert torch.equal(logits[..., image_id], logits[..., tokenizer.unk_token_id])


@torch.no_grad()
def test_sam_is_the_source_bit_by_bit(converted: Converted) -> None:
    model, loaded = SamModel.from_pretrained(converted.output / "sam", output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model, source = model.eval(), converted.source.sam
    images = pixels(2, SAM_PIXELS)
    seen = source.get_image_embeddings(images)
    assert torch.equal(model.get_image_embeddings(images), seen)
    text = torch.randn(1, 3, 1, MASK, generator=torch.Generator().manual_seed(3))

    def masks(sam: SamModel) -> Tensor:
        """As GLaMM asks for them, one of each text."""
        dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(seen)
        found, _ = sam.mask_decoder(
            image_embeddings=seen,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=text,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return found

    assert torch.equal(masks(model), masks(source))
    assert masks(source).std() > 0.1
    asked = {
        "image_embeddings": seen,
        "input_points": torch.tensor([[[[9.0, 12.0], [40.0, 22.0]]]]),
        "input_labels": torch.tensor([[[1, 0]]]),
        "input_masks": pixels(4, SAM_PIXELS // 2)[:, :1],
    }
    assert torch.equal(model(**asked).pred_masks, source(**asked).pred_masks)
    del asked["input_points"], asked["input_labels"]
    asked["input_boxes"] = torch.tensor([[[3.0, 4.0, 50.0, 60.0]]])
    ours, theirs = model(**asked), source(**asked)
    assert torch.equal(ours.pred_masks, theirs.pred_masks)
    assert torch.equal(ours.iou_scores, theirs.iou_scores)
    assert model.config.mask_decoder_config.layer_norm_eps == 1e-5


def test_configuration_and_names_are_those_of_llava_hf(converted: Converted) -> None:
    config = json.loads((converted.output / "config.json").read_text())
    pieces = converted.source.pieces
    assert config["model_type"] == "llava"
    assert config["architectures"] == ["LlavaSegForConditionalGeneration"]
    assert config["seg_token_index"] == pieces + ADDED.index("[SEG]")
    assert config["image_token_index"] == pieces + len(ADDED)
    assert config["vision_feature_layer"] == -2
    assert config["vision_feature_select_strategy"] == "default"
    assert config["projector_hidden_act"] == "gelu"
    assert config["image_seq_length"] == 16
    assert config["dtype"] == "float32"
    text = config["text_config"]
    assert (text["rms_norm_eps"], text["max_position_embeddings"]) == (1e-5, 512)
    assert (text["bos_token_id"], text["eos_token_id"], text["pad_token_id"]) == (1, 2, 0)
    assert AutoConfig.from_pretrained(converted.output).seg_token_index == config["seg_token_index"]
    with safe_open(converted.output / "model.safetensors", "pt") as file:
        names = set(file.keys())
        for layer in ("0.0", "0.2"):
            for kind in ("weight", "bias"):
                name = f"text_hidden_fcs.{layer}.{kind}"
                expected = converted.source.state[f"model.{name}"]
                assert torch.equal(file.get_tensor(name), expected)
    assert {name.split(".")[0] for name in names} == {
        "language_model",
        "multi_modal_projector",
        "text_hidden_fcs",
        "vision_tower",
    }
    assert "language_model.model.layers.1.self_attn.q_proj.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias" in names
    assert "multi_modal_projector.linear_2.weight" in names
    assert not any("region" in name or "inv_freq" in name for name in names)
    images = json.loads((converted.output / "preprocessor_config.json").read_text())
    assert images["crop_size"] == {"height": PIXELS, "width": PIXELS}
    images = json.loads((converted.output / "sam/preprocessor_config.json").read_text())
    assert images["size"] == {"longest_edge": SAM_PIXELS}
    assert images["mask_size"] == {"longest_edge": SAM_PIXELS // 2}
    assert AutoProcessor.from_pretrained(converted.output / "sam").target_size == SAM_PIXELS


@torch.no_grad()
def test_shards_dtype_and_spare_row(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows that no token has: the first becomes the image's, and stays what it was."""
    source = make_source(spare_rows=2)
    glamm = write_glamm(tmp_path / "glamm", source, "bins")
    monkeypatch.setattr(writing, "SHARD_SIZE", 100_000)
    shown: list[tuple[int, int]] = []
    read = convert_glamm(
        glamm, tmp_path / "output", str(clip), torch.bfloat16, show=lambda *at: shown.append(at)
    )
    assert shown[-1][0] == shown[-1][1] > 0
    index = json.loads((tmp_path / "output/model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    files = {file.name: file for file in (tmp_path / "output").glob("*.safetensors")}
    assert files.keys() == shards
    assert len(shards) > 2
    assert all(name.endswith(f"-of-{len(shards):05}.safetensors") for name in shards)
    weights = 0
    for name, file in files.items():
        with safe_open(file, "pt") as opened:
            assert {one for one, where in index["weight_map"].items() if where == name} == set(
                opened.keys()
            )
            for one in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(one)
                assert tensor.dtype == torch.bfloat16
                weights += tensor.nbytes
                if one == "language_model.lm_head.weight":
                    assert torch.equal(tensor, source.state["lm_head.weight"].bfloat16())
    assert index["metadata"]["total_size"] == weights
    config = AutoConfig.from_pretrained(tmp_path / "output")
    assert config.text_config.vocab_size == source.state["lm_head.weight"].shape[0]
    assert config.image_token_id == read.vocabulary.image_id == source.pieces + len(ADDED)
    assert config.dtype == torch.bfloat16
    model, loaded = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "output", output_loading_info=True
    )
    assert model.dtype == torch.bfloat16
    assert not loaded["missing_keys"]
    assert (tmp_path / "output/sam/model.safetensors").stat().st_size > writing.SHARD_SIZE
    assert SamModel.from_pretrained(tmp_path / "output/sam").dtype == torch.bfloat16
