"""Builds a LLaVA with a SigLIP tower, and that SigLIP, in the published layouts, random weights.

The language model answers nonsense; the rest is as with published weights: the file layout and
tensor names of ``google/siglip-base-patch16-224`` (or SigLIP-2's tokenizer), and of a LLaVA that
reads its last layer but one: as ``llava-hf/llava-interleave-qwen-0.5b-hf``, whose tower lacks the
last layer and the pooling head, or with all layers.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTokenizer,
)

from vllm_litelvlm.demo.checkpoint import Checkpoint, _published_name, spread
from vllm_litelvlm.demo.vocabularies import CHAT_TEMPLATE, gemma_tokenizer, llama_tokenizer

#: Of the tower in a LLaVA: all layers, or all but the last and no head.
Layout = Literal["whole", "shortened"]


@dataclass(frozen=True)
class SiglipGeometry:
    """Sizes of the parts; widths and counts as in the configurations of transformers."""

    width: int = 64
    layers: int = 4
    heads: int = 4
    mlp: int = 160
    image_size: int = 224
    patch_size: int = 16
    text_layers: int = 2
    text_tokens: int = 64
    text_vocabulary: int = 1000
    llm_width: int = 64
    llm_layers: int = 2
    llm_heads: int = 2
    llm_mlp: int = 128
    vocabulary: int = 2048
    positions: int = 4096


#: For tests: seconds to build and to run.
TINY_SIGLIP = SiglipGeometry()


def build_siglip(
    folder: Path,
    layout: Layout = "shortened",
    geometry: SiglipGeometry = TINY_SIGLIP,
    generation: Literal[1, 2] = 1,
    seed: int = 0,
) -> Checkpoint:
    """Write ``folder/llava`` and ``folder/clip``, float32; ``generation`` 2 is of SigLIP-2."""
    built = Checkpoint(llava=folder / "llava", clip=folder / "clip")
    marker = folder / "complete"
    described = f"{layout} {geometry} {generation} {seed}"
    if marker.is_file() and marker.read_text() == described:
        return built
    torch.manual_seed(seed)
    siglip = _write_siglip(built.clip, geometry, generation)
    _write_llava(built.llava, geometry, siglip, layout)
    marker.write_text(described)
    return built


def _write_siglip(folder: Path, geometry: SiglipGeometry, generation: int) -> SiglipModel:
    folder.mkdir(parents=True, exist_ok=True)
    if generation == 1:
        tokenizer = siglip_tokenizer(folder, geometry.text_vocabulary, geometry.text_tokens)
    else:
        tokenizer = gemma_tokenizer(geometry.text_vocabulary, geometry.text_tokens)
    common = {
        "hidden_size": geometry.width,
        "intermediate_size": geometry.mlp,
        "num_attention_heads": geometry.heads,
    }
    config = SiglipConfig(
        vision_config={**common, "num_hidden_layers": geometry.layers, **_square(geometry)},
        text_config={
            **common,
            "num_hidden_layers": geometry.text_layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": geometry.text_tokens,
            "projection_size": geometry.width,
            "pad_token_id": tokenizer.pad_token_id,
            # As published, whatever the tokenizer has.
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    )
    model = SiglipModel(config).eval()
    spread(model)
    with torch.no_grad():
        for module in model.modules():
            # Fresh norms are the identity, so that one taken for another would go unnoticed.
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        pooling = model.vision_model.head.attention
        pooling.in_proj_weight.normal_(std=1.5 * geometry.width**-0.5)
        pooling.in_proj_bias.normal_(std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor(geometry).save_pretrained(folder)
    return model


def _square(geometry: SiglipGeometry) -> dict[str, int]:
    return {"image_size": geometry.image_size, "patch_size": geometry.patch_size}


def _write_llava(
    folder: Path, geometry: SiglipGeometry, siglip: SiglipModel, layout: Layout
) -> None:
    tokenizer = llama_tokenizer(geometry.vocabulary)
    shortened = layout == "shortened"
    tower: dict[str, Any] = siglip.config.vision_config.to_dict()
    if shortened:
        tower |= {"num_hidden_layers": geometry.layers - 1, "vision_use_head": False}
    config = LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        dtype=torch.float32,
        vision_config=tower,
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
            dtype=torch.float32,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(geometry.image_size // geometry.patch_size) ** 2,
        vision_feature_layer=-1 if shortened else -2,
        vision_feature_select_strategy="full",
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        _llava_tensors(config, siglip, shortened),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
    LlavaProcessor(
        image_processor=image_processor(geometry),
        tokenizer=tokenizer,
        patch_size=geometry.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _llava_tensors(config: LlavaConfig, siglip: SiglipModel, shortened: bool) -> dict[str, Tensor]:
    """The tower of ``siglip``, and the rest with random weights, under the published names."""
    model = LlavaForConditionalGeneration(config).eval()
    spread(model.model.language_model)
    spread(model.model.multi_modal_projector)
    last = f"vision_model.encoder.layers.{siglip.config.vision_config.num_hidden_layers - 1}."
    without = (last, "vision_model.head.") if shortened else ()
    state = {
        f"vision_tower.{name}": tensor
        for name, tensor in siglip.state_dict().items()
        if name.startswith("vision_model.") and not name.startswith(without)
    }
    for name, tensor in model.state_dict().items():
        published = _published_name(name)
        if published is not None:
            state[published] = tensor
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def image_processor(geometry: SiglipGeometry) -> SiglipImageProcessorPil:
    """SigLIP's: the whole picture resized to a square, whatever its shape."""
    side = geometry.image_size
    return SiglipImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def siglip_tokenizer(folder: Path, size: int, max_tokens: int) -> SiglipTokenizer:
    """SigLIP's (SentencePiece, unigrams, the end token for padding) of ``size`` entries.

    It reads its vocabulary from a file, which is written to ``folder``.
    """
    sentences = (line for text in topics.values() for line in text.lower().splitlines())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        vocab_size=size,
        model_type="unigram",
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        num_threads=1,
        minloglevel=2,
        control_symbols=["<pad>"],
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=max_tokens)
