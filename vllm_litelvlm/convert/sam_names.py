"""SAM's tensors: their names in Meta's files, and in transformers'."""

from collections.abc import Iterator

#: Module to module, with a weight and a bias each.
MODULES = {
    "image_encoder.patch_embed.proj": "vision_encoder.patch_embed.projection",
    "image_encoder.neck.1": "vision_encoder.neck.layer_norm1",
    "image_encoder.neck.3": "vision_encoder.neck.layer_norm2",
    "prompt_encoder.mask_downscaling.0": "prompt_encoder.mask_embed.conv1",
    "prompt_encoder.mask_downscaling.1": "prompt_encoder.mask_embed.layer_norm1",
    "prompt_encoder.mask_downscaling.3": "prompt_encoder.mask_embed.conv2",
    "prompt_encoder.mask_downscaling.4": "prompt_encoder.mask_embed.layer_norm2",
    "prompt_encoder.mask_downscaling.6": "prompt_encoder.mask_embed.conv3",
    "mask_decoder.transformer.norm_final_attn": "mask_decoder.transformer.layer_norm_final_attn",
    "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
    "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
    "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
}
#: Single tensors.
TENSORS = {
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    "image_encoder.neck.0.weight": "vision_encoder.neck.conv1.weight",
    "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (
        "shared_image_embedding.positional_embedding"
    ),
    "prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
    "prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
    "mask_decoder.iou_token.weight": "mask_decoder.iou_token.weight",
    "mask_decoder.mask_tokens.weight": "mask_decoder.mask_tokens.weight",
}
#: Two box corners, a point inside and one outside.
POINTS = 4
ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def sam_names(layers: int, decoder_layers: int, masks: int, iou_layers: int) -> dict[str, str]:
    """Meta's name to transformers' name of every tensor.

    Args:
        layers: of the image encoder.
        decoder_layers: of the mask decoder's transformer.
        masks: mask tokens.
        iou_layers: of the head that predicts the IoU.
    """
    names = dict(TENSORS)
    for number in range(POINTS):
        theirs = f"prompt_encoder.point_embeddings.{number}.weight"
        names[theirs] = f"prompt_encoder.point_embed.{number}.weight"
    for number in range(layers):
        for side in "hw":
            theirs = f"image_encoder.blocks.{number}.attn.rel_pos_{side}"
            names[theirs] = f"vision_encoder.layers.{number}.attn.rel_pos_{side}"
    modules = {
        **MODULES,
        **dict(_image_layers(layers)),
        **dict(_decoder_layers(decoder_layers)),
        **dict(_head("mask_decoder.iou_prediction_head", iou_layers)),
    }
    for number in range(masks):
        modules |= dict(_head(f"mask_decoder.output_hypernetworks_mlps.{number}", layers=3))
    for theirs, ours in modules.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names


def _image_layers(layers: int) -> Iterator[tuple[str, str]]:
    for number in range(layers):
        theirs, ours = f"image_encoder.blocks.{number}", f"vision_encoder.layers.{number}"
        yield from ((f"{theirs}.norm{one}", f"{ours}.layer_norm{one}") for one in (1, 2))
        same = ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
        yield from ((f"{theirs}.{module}", f"{ours}.{module}") for module in same)


def _decoder_layers(layers: int) -> Iterator[tuple[str, str]]:
    transformer = "mask_decoder.transformer"
    for number in range(layers):
        layer = f"{transformer}.layers.{number}"
        yield from ((f"{layer}.norm{one}", f"{layer}.layer_norm{one}") for one in range(1, 5))
        same = [f"{layer}.mlp.lin1", f"{layer}.mlp.lin2"]
        same += [f"{layer}.{attention}.{one}" for attention in ATTENTIONS for one in PROJECTIONS]
        yield from zip(same, same, strict=True)
    final = [f"{transformer}.final_attn_token_to_image.{one}" for one in PROJECTIONS]
    yield from zip(final, final, strict=True)


def _head(head: str, layers: int) -> Iterator[tuple[str, str]]:
    """A perceptron, whose first and last layers have names of their own in transformers."""
    yield f"{head}.layers.0", f"{head}.proj_in"
    for number in range(1, layers - 1):
        yield f"{head}.layers.{number}", f"{head}.layers.{number - 1}"
    yield f"{head}.layers.{layers - 1}", f"{head}.proj_out"
