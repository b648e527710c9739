"""Builds a LLaVA-1.5 checkpoint and its CLIP in the published layouts, with random weights.

The language model answers nonsense; everything else is as with the published weights: the file
layout and tensor names of ``llava-hf/llava-1.5-7b-hf`` and ``openai/clip-vit-large-patch14-336``,
336-pixel images, 576 visual tokens, features of layer -2, a two-layer projector, a Llama decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vllm_litelvlm.demo.vocabularies import CHAT_TEMPLATE, clip_tokenizer, llama_tokenizer


@dataclass(frozen=True)
class Geometry:
    """Sizes of the parts; widths and counts as in the configurations of transformers."""

    vision_width: int = 64
    vision_layers: int = 4
    vision_heads: int = 4
    image_size: int = 336
    patch_size: int = 14
    text_width: int = 64
    text_layers: int = 2
    projection: int = 48
    llm_width: int = 64
    llm_layers: int = 2
    llm_heads: int = 2
    llm_kv_heads: int = 2
    llm_mlp: int = 128
    vocabulary: int = 2048
    clip_vocabulary: int = 2048
    positions: int = 4096
    #: Rows of the embedding, where the tokenizer has fewer entries.
    embeddings: int = 0

    @property
    def text_heads(self) -> int:
        """Heads of CLIP's text tower: of width 64, or one."""
        return max(1, self.text_width // 64)


#: For tests: seconds to build and to run.
TINY = Geometry()
#: For the demo: large enough that pruning is felt on a CPU.
SMALL = Geometry(
    vision_width=256,
    vision_layers=6,
    text_width=128,
    projection=128,
    llm_width=768,
    llm_layers=12,
    llm_heads=12,
    llm_kv_heads=12,
    llm_mlp=2048,
    vocabulary=8192,
)
#: The 1.1-billion-parameter language model and the CLIP-L/336 of the README's first figures.
LARGE = Geometry(
    vision_width=1024,
    vision_layers=24,
    vision_heads=16,
    text_width=768,
    text_layers=12,
    projection=768,
    llm_width=2048,
    llm_layers=22,
    llm_heads=32,
    llm_kv_heads=4,
    llm_mlp=5632,
    vocabulary=8192,
)


#: LLaVA-1.5-7B.
LLAVA_7B = replace(
    LARGE, llm_width=4096, llm_layers=32, llm_kv_heads=32, llm_mlp=11008, embeddings=32064
)


@dataclass(frozen=True)
class Checkpoint:
    """Folders of a built LLaVA and the CLIP that its vision tower was taken from."""

    llava: Path
    clip: Path


def build_checkpoint(
    folder: Path,
    geometry: Geometry = TINY,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    weights: bool = True,
) -> Checkpoint:
    """Write ``folder/llava`` and ``folder/clip``; an existing complete build is used again.

    Without ``weights`` they are for ``vllm serve --load-format=dummy``.
    """
    return build(folder, _write_llava, geometry, dtype, seed, weights=weights)


def build(
    folder: Path,
    write_llava: Callable[[Path, Geometry, CLIPModel, torch.dtype], None],
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    weights: bool = True,
) -> Checkpoint:
    """As :func:`build_checkpoint`, with a LLaVA of the kind that a function writes."""
    built = Checkpoint(llava=folder / "llava", clip=folder / "clip")
    marker = folder / "complete"
    described = f"{geometry} {dtype} {seed} {weights}"
    if marker.is_file() and marker.read_text() == described:
        return built
    torch.manual_seed(seed)
    with torch.device("cpu" if weights else "meta"):
        clip = _write_clip(built.clip, geometry)
        write_llava(built.llava, geometry, clip, dtype)
    marker.write_text(described)
    return built


def _write_clip(folder: Path, geometry: Geometry) -> CLIPModel:
    tokenizer = clip_tokenizer(geometry.clip_vocabulary, max_tokens=77)
    model = CLIPModel(clip_config(geometry, tokenizer)).eval()
    spread(model)
    if model.device.type == "meta":
        model.config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    CLIPProcessor(image_processor(geometry), tokenizer).save_pretrained(folder)
    return model


def clip_config(geometry: Geometry, tokenizer: CLIPTokenizer) -> CLIPConfig:
    """Of the CLIP."""
    return CLIPConfig(
        vision_config={
            "hidden_size": geometry.vision_width,
            "intermediate_size": 4 * geometry.vision_width,
            "num_hidden_layers": geometry.vision_layers,
            "num_attention_heads": geometry.vision_heads,
            "image_size": geometry.image_size,
            "patch_size": geometry.patch_size,
            "projection_dim": geometry.projection,
        },
        text_config={
            "hidden_size": geometry.text_width,
            "intermediate_size": 4 * geometry.text_width,
            "num_hidden_layers": geometry.text_layers,
            "num_attention_heads": geometry.text_heads,
            "vocab_size": len(tokenizer),
            "projection_dim": geometry.projection,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        projection_dim=geometry.projection,
    )


def _write_llava(folder: Path, geometry: Geometry, clip: CLIPModel, dtype: torch.dtype) -> None:
    tokenizer = llama_tokenizer(geometry.vocabulary)
    config = llava_config(geometry, clip, tokenizer, dtype, "LlavaForConditionalGeneration")
    write_parts(
        folder, config, LlavaForConditionalGeneration, clip, llava_processor(geometry, tokenizer)
    )


def llava_config(
    geometry: Geometry,
    clip: CLIPModel,
    tokenizer: LlamaTokenizer,
    dtype: torch.dtype,
    architecture: str,
    **further: Any,
) -> LlavaConfig:
    """Of a LLaVA-1.5 on the tower of ``clip``; ``further`` are fields of its own."""
    return LlavaConfig(
        architectures=[architecture],
        dtype=dtype,
        vision_config=clip.config.vision_config,
        text_config=llama_config(geometry, len(tokenizer), dtype),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(geometry.image_size // geometry.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **further,
    )


def llama_config(geometry: Geometry, vocabulary: int, dtype: torch.dtype) -> LlamaConfig:
    """Of the language model, whose tokenizer has so many entries."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=geometry.llm_width,
        intermediate_size=geometry.llm_mlp,
        num_hidden_layers=geometry.llm_layers,
        num_attention_heads=geometry.llm_heads,
        num_key_value_heads=geometry.llm_kv_heads,
        vocab_size=max(vocabulary, geometry.embeddings),
        max_position_embeddings=geometry.positions,
        rms_norm_eps=1e-5,
        dtype=dtype,
    )


def write_parts(folder: Path, config: Any, model: Any, clip: CLIPModel, processor: Any) -> None:
    """A LLaVA of some kind, whose class in transformers is ``model``, on the tower of ``clip``."""
    folder.mkdir(parents=True, exist_ok=True)
    if clip.device.type != "meta":
        tensors = _llava_tensors(model(config).eval(), clip, config.dtype)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=processor.tokenizer.pad_token_id
    ).save_pretrained(folder)
    processor.save_pretrained(folder)


def _llava_tensors(model: Any, clip: CLIPModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tower of ``clip``, and the rest with random weights, under the published names."""
    spread(model.model.language_model)
    spread(model.model.multi_modal_projector)
    state = {
        f"vision_tower.{name}": tensor
        for name, tensor in clip.state_dict().items()
        if name.startswith("vision_model.")
    }
    for name, tensor in model.state_dict().items():
        published = _published_name(name)
        if published is not None:
            state[published] = tensor
    return {name: tensor.to(dtype).contiguous().clone() for name, tensor in state.items()}


def _published_name(name: str) -> str | None:
    """The name in llava-hf's files of a tensor of transformers 5; None for the vision tower's."""
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    if name.startswith(("model.multi_modal_projector.", "model.image_newline")):
        return name.removeprefix("model.")
    return f"language_model.{name}" if name.startswith("lm_head.") else None


def llava_processor(geometry: Geometry, tokenizer: LlamaTokenizer) -> LlavaProcessor:
    """LLaVA-1.5's, with the chat template of ``llava-hf``."""
    return LlavaProcessor(
        image_processor=image_processor(geometry),
        tokenizer=tokenizer,
        patch_size=geometry.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def image_processor(geometry: Geometry) -> CLIPImageProcessorPil:
    """CLIP's: the shorter side resized, the centre cropped."""
    side = geometry.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def spread(module: nn.Module) -> None:
    """Weights large enough that outputs really depend on the image and on every token.

    The usual start (deviation 0.02) makes a small untrained model nearly constant.
    """
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.Linear):
                child.weight.normal_(std=1.5 * child.in_features**-0.5)
                if child.bias is not None:
                    child.bias.normal_(std=0.1)
            elif isinstance(child, nn.Embedding):
                child.weight.normal_(std=1.0)
            else:  # experts, [experts, out, in]
                for weight in child.parameters(recurse=False):
                    if weight.ndim == 3:
                        weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
