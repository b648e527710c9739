"""Writes a small GLaMM in its authors' layout, knowing nothing of the converter."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    SamConfig,
    SamModel,
)

from tests.convert.meta_sam import sam_state
from vllm_litelvlm.demo.checkpoint import spread

ADDED = ("<im_start>", "<im_end>", "<bbox>", "<point>", "[SEG]", "<p>", "</p>")
WIDTH, MASK, PIXELS, SAM_PIXELS = 64, 32, 56, 64


@dataclass
class Source:
    """What a GLaMM is made of."""

    llama: LlamaForCausalLM
    clip: CLIPModel
    sam: SamModel
    sentencepiece: bytes
    #: By GLaMM's names.
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def pieces(self) -> int:
        return len(sentencepiece.SentencePieceProcessor(model_proto=self.sentencepiece))

    @property
    def config(self) -> dict[str, object]:
        """GLaMM's flat config.json."""
        return {
            "architectures": ["GLaMMForCausalLM"],
            "model_type": "llava",
            "vocab_size": self.state["lm_head.weight"].shape[0],
            "hidden_size": WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": -1,
            "use_cache": False,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_hidden_size": 32,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": True,
            "num_reg_features": 4,
            "out_dim": MASK,
            "train_mask_decoder": True,
        }


def make_source(spare_rows: int = 0) -> Source:
    """Random weights, with so many rows of the embedding that no token has."""
    torch.manual_seed(0)
    model = train_sentencepiece("bpe")
    rows = len(sentencepiece.SentencePieceProcessor(model_proto=model)) + len(ADDED) + spare_rows
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
        )
    ).eval()
    spread(llama)
    source = Source(llama, _clip(), _sam(), model)
    source.state = {**llama.state_dict(), **_projections(), **_regions()}
    for name, tensor in sam_state(source.sam).items():
        source.state[f"model.grounding_encoder.{name}"] = tensor
    for layer in range(2):  # as the transformers of GLaMM's time wrote
        source.state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    return source


def train_sentencepiece(kind: str, **settings: object) -> bytes:
    """A tokenizer.model with Llama's settings: BPE, bytes, no normalisation."""
    written = io.BytesIO()
    lines = (line for text in list(topics.values())[:12] for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=written,
        model_type=kind,
        minloglevel=2,
        **{
            "vocab_size": 600,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "allow_whitespace_only_pieces": True,
            "num_threads": 1,
            **settings,
        },
    )
    return written.getvalue()


def write_glamm(folder: Path, source: Source, kind: str) -> Path:
    """As "bins" in three shards and an index, or as one "safetensors" file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(source.config))
    if kind == "safetensors":
        save_file(source.state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        write_bins(folder, source.state)
    (folder / "tokenizer.model").write_bytes(source.sentencepiece)
    ids = {token: source.pieces + place for place, token in enumerate(ADDED)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    mark = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    marks = {
        f"{name}_token": {"content": token, **mark}
        for name, token in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))
    }
    (folder / "special_tokens_map.json").write_text(json.dumps({**marks, "pad_token": "<unk>"}))
    told = {
        **{name: {"__type": "AddedToken", **token} for name, token in marks.items()},
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1536,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def write_bins(folder: Path, state: dict[str, Tensor]) -> None:
    names = list(state)
    index: dict[str, str] = {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05}-of-00003.bin"
        shard = {name: state[name] for name in names[number::3]}
        torch.save(shard, folder / file)
        index |= dict.fromkeys(shard, file)
    told = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(told))


def write_clip(folder: Path, source: Source, kind: str) -> Path:
    """The CLIP, as a .bin in the format of PyTorch before 1.6 or as safetensors."""
    source.clip.save_pretrained(folder)
    crop = {"height": PIXELS, "width": PIXELS}
    CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size=crop).save_pretrained(folder)
    if kind == "bins":
        (folder / "model.safetensors").unlink()
        state = source.clip.state_dict()
        state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


def _clip() -> CLIPModel:
    model = CLIPModel(
        CLIPConfig(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": PIXELS,
                "patch_size": 14,
            },
            text_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "vocab_size": 20,
            },
        )
    ).eval()
    spread(model)
    return model


def _sam() -> SamModel:
    """With windows that do not divide the 8 x 8 patches, and two layers that see all of them."""
    model = SamModel(
        SamConfig(
            vision_config={
                "hidden_size": 48,
                "output_channels": MASK,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "image_size": SAM_PIXELS,
                "patch_size": 8,
                "window_size": 3,
                "global_attn_indexes": [1, 3],
                "num_pos_feats": MASK // 2,
                "mlp_dim": 80,
            },
            prompt_encoder_config={
                "hidden_size": MASK,
                "image_size": SAM_PIXELS,
                "patch_size": 8,
                "mask_input_channels": 12,
            },
            mask_decoder_config={
                "hidden_size": MASK,
                "mlp_dim": 56,
                "num_attention_heads": 8,
                "iou_head_hidden_dim": 40,
                "layer_norm_eps": 1e-5,  # Meta's
            },
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model


def _projections() -> dict[str, Tensor]:
    sizes = {
        "model.mm_projector.0": (32, WIDTH),
        "model.mm_projector.2": (WIDTH, WIDTH),
        "model.text_hidden_fcs.0.0": (WIDTH, WIDTH),
        "model.text_hidden_fcs.0.2": (WIDTH, MASK),
    }
    state = {}
    for name, (columns, rows) in sizes.items():
        state[f"{name}.weight"] = torch.randn(rows, columns) * columns**-0.5
        state[f"{name}.bias"] = torch.randn(rows) * 0.1
    return state


def _regions() -> dict[str, Tensor]:
    return {
        "model.region_encoder.mlvl_fuse.input_conv.0.weight": torch.randn(8, 10, 1, 1),
        "model.region_encoder.roi_align.pos_embedd.0.bias": torch.randn(8),
    }
