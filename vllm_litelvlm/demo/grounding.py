"""Builds a LLaVA with masks, in the layout of :mod:`vllm_litelvlm.grounding.layout`, and its CLIP.

Weights are random: what it segments is nonsense, but every expression has a mask of its own, which
depends on the picture and covers some of it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AddedToken,
    CLIPModel,
    LlamaTokenizer,
    LlavaForConditionalGeneration,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
)

from vllm_litelvlm.demo.checkpoint import (
    Checkpoint,
    Geometry,
    build,
    llava_config,
    llava_processor,
    spread,
    write_parts,
)
from vllm_litelvlm.demo.vocabularies import llama_tokenizer
from vllm_litelvlm.grounding.head import TextProjection
from vllm_litelvlm.grounding.layout import (
    ARCHITECTURE,
    PROJECTION,
    SAM_FOLDER,
    SEG_TOKEN,
    SEG_TOKEN_KEY,
)


@dataclass(frozen=True)
class GroundingGeometry(Geometry):
    """Sizes of the LLaVA, and of the SAM beside it; the names are those of :class:`Geometry`."""

    sam_image_size: int = 256
    sam_patch_size: int = 16
    sam_width: int = 64
    sam_layers: int = 2
    sam_heads: int = 2
    sam_window: int = 7
    #: Of prompts, features and the mask decoder.
    sam_prompt_width: int = 256
    sam_decoder_mlp: int = 128


#: For tests: seconds to build, a tenth of one for a mask.
TINY_GROUNDING = GroundingGeometry()


def build_grounding(
    folder: Path,
    geometry: GroundingGeometry = TINY_GROUNDING,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    weights: bool = True,
) -> Checkpoint:
    """Write ``folder/llava`` and ``folder/clip``; an existing complete build is used again.

    SAM's weights are float32, whatever the ``dtype`` of the others. Without ``weights`` they are
    for ``vllm serve --load-format=dummy``, and there are no masks.
    """

    def write(llava: Path, _: Geometry, clip: CLIPModel, dtype: torch.dtype) -> None:
        _write_llava(llava, geometry, clip, dtype)
        _write_sam(llava / SAM_FOLDER, geometry)

    return build(folder, write, geometry, dtype, seed, weights=weights)


def _write_llava(
    folder: Path, geometry: GroundingGeometry, clip: CLIPModel, dtype: torch.dtype
) -> None:
    tokenizer = seg_tokenizer(llama_tokenizer(geometry.vocabulary))
    seg_token = {SEG_TOKEN_KEY: tokenizer.convert_tokens_to_ids(SEG_TOKEN)}
    config = llava_config(geometry, clip, tokenizer, dtype, ARCHITECTURE, **seg_token)
    processor = llava_processor(geometry, tokenizer)
    write_parts(folder, config, LlavaForConditionalGeneration, clip, processor)
    if clip.device.type == "meta":
        return
    projection = TextProjection(geometry.llm_width, geometry.sam_prompt_width)
    spread(projection)
    with torch.no_grad():
        projection.get_parameter("0.2.weight").mul_(2)
    file = folder / "model.safetensors"
    tensors = load_file(file) | {
        f"{PROJECTION}.{name}": tensor.to(dtype) for name, tensor in projection.state_dict().items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def sam_config(geometry: GroundingGeometry) -> SamConfig:
    """Of the SAM; every second layer looks beyond its window, the last one among them."""
    side, prompt_width = geometry.sam_image_size, geometry.sam_prompt_width
    square = {"image_size": side, "patch_size": geometry.sam_patch_size}
    return SamConfig(
        architectures=["SamModel"],
        dtype=torch.float32,
        vision_config={
            **square,
            "hidden_size": geometry.sam_width,
            "mlp_dim": 2 * geometry.sam_width,
            "num_hidden_layers": geometry.sam_layers,
            "num_attention_heads": geometry.sam_heads,
            "window_size": geometry.sam_window,
            "global_attn_indexes": list(range(geometry.sam_layers - 1, 0, -2)),
            "output_channels": prompt_width,
            "num_pos_feats": prompt_width // 2,
        },
        prompt_encoder_config={**square, "hidden_size": prompt_width},
        mask_decoder_config={
            "hidden_size": prompt_width,
            "mlp_dim": geometry.sam_decoder_mlp,
            "iou_head_hidden_dim": prompt_width,
            "layer_norm_eps": 1e-5,
        },
    )


def sam_image_processor(geometry: GroundingGeometry) -> SamImageProcessorPil:
    """SAM's: the longer side resized, the rest of the square padded."""
    side = geometry.sam_image_size
    return SamImageProcessorPil(
        size={"longest_edge": side}, pad_size={"height": side, "width": side}
    )


def seg_tokenizer(tokenizer: LlamaTokenizer) -> LlamaTokenizer:
    """The tokenizer with the token [SEG]: as in GLaMM no special one.

    So it stays in texts that are decoded without those.
    """
    tokenizer.add_tokens([AddedToken(SEG_TOKEN, normalized=False)])
    return tokenizer


def _write_sam(folder: Path, geometry: GroundingGeometry) -> None:
    config = sam_config(geometry)
    model = SamModel(config).eval()
    if model.device.type == "meta":
        config.save_pretrained(folder)
    else:
        _spread_sam(model)
        model.save_pretrained(folder)
    sam_image_processor(geometry).save_pretrained(folder)


@torch.no_grad()
def _spread_sam(model: SamModel) -> None:
    """As :func:`~vllm_litelvlm.demo.checkpoint.spread`, so that masks have many shapes."""
    spread(model)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            # Fresh norms are the identity, so that one taken for another would go unnoticed.
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
        elif isinstance(module, nn.Conv2d):
            module.weight.normal_(std=1.5 * module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.ConvTranspose2d):
            # Much the same for all four pixels that are made of one: masks in pieces, not in dots.
            scale = module.in_channels**-0.5
            same = torch.randn(*module.weight.shape[:2], 1, 1) * 1.5 * scale
            module.weight.normal_(std=0.25 * scale).add_(same)
    vision, decoder = model.vision_encoder, model.mask_decoder
    vision.pos_embed.normal_(std=0.5)
    for layer in vision.layers:
        layer.attn.rel_pos_h.normal_(std=0.5)
        layer.attn.rel_pos_w.normal_(std=0.5)
    # One parameter; the prompt encoder has the same.
    model.shared_image_embedding.positional_embedding.normal_(std=0.5)
    # What is the same in all places would make masks all empty or all full.
    vision.neck.layer_norm2.bias.zero_()
    for layer in decoder.transformer.layers:
        layer.cross_attn_image_to_token.out_proj.weight.mul_(0.3)
        layer.cross_attn_image_to_token.out_proj.bias.zero_()
        layer.layer_norm4.bias.zero_()
    decoder.mask_tokens.weight.mul_(0.2)
    decoder.iou_prediction_head.proj_out.weight.mul_(0.1)
    decoder.iou_prediction_head.proj_out.bias.fill_(0.7)
    _balance(model)


def _balance(model: SamModel) -> None:
    """Turn what reads the mask features away from what they have in common everywhere."""
    seen: list[Tensor] = []
    decoder, size = model.mask_decoder, model.config.vision_config.image_size
    hook = decoder.upscale_conv2.register_forward_hook(lambda *call: seen.append(call[2]))
    blobs = F.interpolate(torch.randn(1, 3, 8, 8), (size, size), mode="bicubic")
    decoder(
        image_embeddings=model.vision_encoder(blobs).last_hidden_state,
        image_positional_embeddings=model.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=2 * torch.randn(1, 32, 1, decoder.hidden_size),
        dense_prompt_embeddings=model.prompt_encoder(None, None, None, None)[1],
        multimask_output=False,
    )
    hook.remove()
    common = F.normalize(F.gelu(seen[0]).mean((0, 2, 3)), dim=0)
    for reader in decoder.output_hypernetworks_mlps:
        last = reader.proj_out  # [features, width]
        last.weight.sub_(torch.outer(common, common @ last.weight))
        last.bias.sub_(common * (common @ last.bias))
