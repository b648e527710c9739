"""Builds a LLaVA-NeXT checkpoint and its CLIP in the published layouts, with random weights.

The language model answers nonsense; everything else is as with the published weights: the file
layout, configuration and tensor names of ``llava-hf/llava-v1.6-vicuna-7b-hf``.
"""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    CLIPModel,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from vllm_litelvlm.demo.checkpoint import (
    TINY,
    Checkpoint,
    Geometry,
    build,
    llama_config,
    write_parts,
)
from vllm_litelvlm.demo.vocabularies import CHAT_TEMPLATE, llama_tokenizer

#: Heights and widths of the canvases that tiles are cut from, in tiles.
CANVASES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
#: For tests: tiles of 64 patches, so that an image comes to 336 tokens at the most.
TINY_NEXT = replace(TINY, image_size=112)


def build_llava_next(
    folder: Path,
    geometry: Geometry = TINY_NEXT,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    weights: bool = True,
) -> Checkpoint:
    """Write ``folder/llava`` and ``folder/clip``; an existing complete build is used again.

    Without ``weights`` they are for ``vllm serve --load-format=dummy``.
    """
    return build(folder, _write_llava_next, geometry, dtype, seed, weights=weights)


def _write_llava_next(
    folder: Path, geometry: Geometry, clip: CLIPModel, dtype: torch.dtype
) -> None:
    tokenizer = llama_tokenizer(geometry.vocabulary)
    side = geometry.image_size
    canvases = [[down * side, across * side] for down, across in CANVASES]
    config = LlavaNextConfig(
        architectures=["LlavaNextForConditionalGeneration"],
        dtype=dtype,
        vision_config=clip.config.vision_config,
        text_config=llama_config(geometry, len(tokenizer), dtype),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // geometry.patch_size) ** 2,
        image_grid_pinpoints=canvases,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        use_image_newline_parameter=True,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=canvases,
        ),
        tokenizer=tokenizer,
        patch_size=geometry.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    write_parts(folder, config, LlavaNextForConditionalGeneration, clip, processor)
