"""Writes both models in the published layouts of ``llava-hf`` and of CLIP."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPProcessor,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
)

from vllm_litelvlm.demo.checkpoint import (
    Checkpoint,
    Geometry,
    clip_config,
    image_processor,
    llava_processor,
)
from vllm_litelvlm.demo.grounding import GroundingGeometry, sam_image_processor
from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.language import Tokenizers
from vllm_litelvlm.demo.training.llava import Llava
from vllm_litelvlm.demo.training.pointing import Pointer
from vllm_litelvlm.demo.vocabularies import IMAGE_TOKEN
from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.grounding.layout import (
    ARCHITECTURE,
    PROJECTION,
    SAM_FOLDER,
    SEG_TOKEN,
    SEG_TOKEN_KEY,
)
from vllm_litelvlm.vision.checkpoint import CONFIG_KEY

#: What the exported weights are rounded to: the very weights that training computed with.
EXPORTED = torch.bfloat16
#: The folder of the CLIP in that of the LLaVA, whose configuration names it.
_CLIP = "clip"
#: Tensors with a row for every token.
_BY_TOKEN = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@dataclass(frozen=True)
class Exporter:
    """Writes checkpoints of one geometry and language: a LLaVA in ``folder``, its CLIP in it."""

    folder: Path
    geometry: Geometry
    tokenizers: Tokenizers

    @property
    def written(self) -> Checkpoint:
        """Where the models are written."""
        return exported_in(self.folder)

    def write_clip(self, clip: Clip) -> None:
        """The whole CLIP, loadable by CLIPModel."""
        folder = self.written.clip
        folder.mkdir(parents=True, exist_ok=True)
        config = self._clip_config
        config.architectures, config.dtype = ["CLIPModel"], EXPORTED
        config.text_config.pad_token_id = self.tokenizers.clip.pad_token_id
        config.save_pretrained(folder)
        _save(clip_tensors(clip), folder)
        processor = CLIPProcessor(image_processor(self.geometry), self.tokenizers.clip)
        processor.save_pretrained(folder)

    def write_llava(self, clip: Clip, llava: Llava, pointer: Pointer | None = None) -> None:
        """The LLaVA with the CLIP's vision tower, loadable by LlavaForConditionalGeneration.

        With ``pointer`` in the layout of :mod:`vllm_litelvlm.grounding.layout`.
        """
        folder, tokenizer = self.written.llava, self.tokenizers.llama
        folder.mkdir(parents=True, exist_ok=True)
        self._llava_config(pointer).save_pretrained(folder)
        tower = {
            f"vision_tower.{name}": tensor
            for name, tensor in clip_tensors(clip).items()
            if name.startswith("vision_model.")
        }
        _save({**tower, **llava_tensors(llava, pointer)}, folder)
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
        llava_processor(self.geometry, tokenizer).save_pretrained(folder)
        if pointer is not None:
            assert isinstance(self.geometry, GroundingGeometry)
            sam = folder / SAM_FOLDER
            sam.mkdir(exist_ok=True)
            pointer.sam.config.save_pretrained(sam)
            _save(pointer.sam.state_dict(), sam)
            sam_image_processor(self.geometry).save_pretrained(sam)

    @property
    def _clip_config(self) -> CLIPConfig:
        return clip_config(self.geometry, self.tokenizers.clip)

    def _llava_config(self, pointer: Pointer | None) -> LlavaConfig:
        geometry, tokenizer = self.geometry, self.tokenizers.llama
        seg: dict[str, Any] = {}
        if pointer is not None:
            seg[SEG_TOKEN_KEY] = tokenizer.convert_tokens_to_ids(SEG_TOKEN)
        return LlavaConfig(
            architectures=[ARCHITECTURE if seg else "LlavaForConditionalGeneration"],
            dtype=EXPORTED,
            vision_config=self._clip_config.vision_config,
            text_config=LlamaConfig(
                architectures=["LlamaForCausalLM"],
                hidden_size=geometry.llm_width,
                intermediate_size=geometry.llm_mlp,
                num_hidden_layers=geometry.llm_layers,
                num_attention_heads=geometry.llm_heads,
                num_key_value_heads=geometry.llm_heads,
                vocab_size=len(tokenizer),
                max_position_embeddings=geometry.positions,
                rms_norm_eps=1e-5,
                tie_word_embeddings=False,
                dtype=EXPORTED,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=(geometry.image_size // geometry.patch_size) ** 2,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            **{CONFIG_KEY: {"clip_model": _CLIP}, **seg},
        )


def exported_in(folder: Path) -> Checkpoint:
    """Where an :class:`Exporter` of that folder writes, or the folder that its model names."""
    config = folder / "config.json"
    own = json.loads(config.read_text()).get(CONFIG_KEY, {}) if config.is_file() else {}
    return Checkpoint(llava=folder, clip=folder / own.get("clip_model", _CLIP))


@torch.no_grad()
def read_exported(
    checkpoint: Checkpoint, clip: Clip, llava: Llava, pointer: Pointer | None = None
) -> None:
    """Give the models the weights that were exported.

    A language model that had no [SEG] keeps its own rows for that token, and ``pointer`` its own
    weights where none were exported.

    Raises WeightsError where there are none, or those of another geometry.
    """
    seg = pointer if (checkpoint.llava / SAM_FOLDER).is_dir() else None
    parts = [
        (checkpoint.clip, clip_tensors(clip)),
        (checkpoint.llava, llava_tensors(llava, seg)),
    ]
    if seg is not None:
        parts.append((checkpoint.llava / SAM_FOLDER, seg.sam.state_dict()))
    for folder, tensors in parts:
        file = folder / "model.safetensors"
        if not file.is_file():
            raise WeightsError(f"{file} does not exist; name the folder of an exported model.")
        saved = load_file(file)
        for name, tensor in tensors.items():
            if pointer is not None and seg is None and name in _BY_TOKEN:
                tensor = tensor[:-1]
            if name not in saved or saved[name].shape != tensor.shape:
                raise WeightsError(f"{file} has no {name!r} of shape {tuple(tensor.shape)}.")
            tensor.copy_(saved[name])  # a view of the model's own


def clip_tensors(clip: Clip) -> dict[str, Tensor]:
    """The weights under the names of a CLIP checkpoint."""
    vision, text = clip.vision, clip.text
    patch = round((vision.patch_embedding.in_features / 3) ** 0.5)
    kernel = vision.patch_embedding.weight.unflatten(1, (3, patch, patch))
    tensors = {
        "logit_scale": clip.logit_scale,
        "visual_projection.weight": vision.visual_projection.weight,
        "text_projection.weight": text.text_projection.weight,
        "vision_model.embeddings.class_embedding": vision.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": kernel,
        "vision_model.embeddings.position_embedding.weight": vision.position_embedding,
        "text_model.embeddings.token_embedding.weight": text.token_embedding,
        "text_model.embeddings.position_embedding.weight": text.position_embedding,
    }
    for name, norm in (
        ("vision_model.pre_layrnorm", vision.pre_layrnorm),
        ("vision_model.post_layernorm", vision.post_layernorm),
        ("text_model.final_layer_norm", text.final_layer_norm),
    ):
        tensors |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    for tower, layers in (("vision_model", vision.layers), ("text_model", text.layers)):
        for number, layer in enumerate(layers):
            prefix = f"{tower}.encoder.layers.{number}"
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in _clip_layer(layer)}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _clip_layer(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in layer.named_parameters():
        module, _, kind = name.rpartition(".")
        if module == "qkv":
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                yield f"self_attn.{part}_proj.{kind}", piece
        else:
            level = {"out_proj": "self_attn.", "fc1": "mlp.", "fc2": "mlp."}.get(module, "")
            yield f"{level}{name}", tensor


def llava_tensors(llava: Llava, pointer: Pointer | None = None) -> dict[str, Tensor]:
    """Projector and language model under the names of ``llava-hf``'s checkpoints.

    And the projection from [SEG] where there is one.
    """
    tensors: dict[str, Tensor] = {
        "language_model.model.embed_tokens.weight": llava.embed_tokens,
        "language_model.model.norm.weight": llava.norm.weight,
        "language_model.lm_head.weight": llava.lm_head.weight,
    }
    for name, linear in (("linear_1", llava.linear_1), ("linear_2", llava.linear_2)):
        prefix = f"multi_modal_projector.{name}"
        tensors |= {f"{prefix}.weight": linear.weight, f"{prefix}.bias": linear.bias}
    for number, layer in enumerate(llava.layers):
        prefix = f"language_model.model.layers.{number}"
        for name, tensor in layer.named_parameters():
            if name == "qkv.weight":
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    tensors[f"{prefix}.self_attn.{part}_proj.weight"] = piece
            elif name == "gate_up.weight":
                for part, piece in zip(("gate", "up"), tensor.chunk(2), strict=True):
                    tensors[f"{prefix}.mlp.{part}_proj.weight"] = piece
            else:
                level = {"o_proj.weight": "self_attn.", "down_proj.weight": "mlp."}.get(name, "")
                tensors[f"{prefix}.{level}{name}"] = tensor
    if pointer is not None:
        projection = pointer.text_hidden_fcs.named_parameters()
        tensors |= {f"{PROJECTION}.{name}": tensor for name, tensor in projection}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    """Rounded, but for single numbers, which training does not round either."""
    rounded = {
        name: tensor.to("cpu", EXPORTED if tensor.dim() else torch.float32).contiguous().clone()
        for name, tensor in tensors.items()
    }
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
