"""What kind of SAM a checkpoint holds, by the shapes of its tensors.

Compared with Meta's own code (segment_anything 1.0) with random weights: the same masks, and of its
three published sizes the same geometry.
"""

import re
from collections.abc import Mapping

from transformers import SamConfig

from vllm_litelvlm.errors import WeightsError

#: Of the mask decoder's attention: in no shape, but the same in every published size of SAM.
DECODER_HEADS = 8
#: PyTorch's default, which Meta's mask decoder has; transformers' default is 1e-6.
DECODER_EPSILON = 1e-5

Shapes = Mapping[str, tuple[int, ...]]


def sam_config(shapes: Shapes) -> SamConfig:
    """The configuration of a SAM with tensors of these shapes, by Meta's names.

    Everything but the heads of the mask decoder is in the shapes. A layer of the image encoder
    has a table of relative positions with a row for every distance: 2 x side - 1 of them, of the
    window or, where the layer sees everything, of the image; and as wide as an attention head.

    Raises WeightsError naming the tensor that is missing or has a shape that no SAM has.
    """
    width, channels, patch, _ = _shape(shapes, "image_encoder.patch_embed.proj.weight", 4)
    _, side, columns, _ = _shape(shapes, "image_encoder.pos_embed", 4)
    if side != columns:
        raise WeightsError(
            f"SAM's 'image_encoder.pos_embed' is of {side} x {columns} patches; expected a square."
        )
    image = side * patch
    layers = _count(shapes, r"image_encoder\.blocks")
    window, everywhere = _windows(shapes, layers, side)
    hidden, _, _, _ = _shape(shapes, "image_encoder.neck.0.weight", 4)
    mlp, _ = _shape(shapes, "image_encoder.blocks.0.mlp.lin1.weight", 2)
    return SamConfig(
        architectures=["SamModel"],
        vision_config={
            "hidden_size": width,
            "output_channels": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": _heads(shapes, width),
            "num_channels": channels,
            "image_size": image,
            "patch_size": patch,
            "mlp_ratio": mlp / width,
            "mlp_dim": mlp,
            "window_size": window,
            "global_attn_indexes": everywhere,
            "num_pos_feats": _shape(
                shapes, "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", 2
            )[1],
        },
        prompt_encoder_config={
            "hidden_size": hidden,
            "image_size": image,
            "patch_size": patch,
            "mask_input_channels": _shape(shapes, "prompt_encoder.mask_downscaling.3.weight", 4)[0],
        },
        mask_decoder_config=_decoder(shapes, hidden),
    )


def _decoder(shapes: Shapes, hidden: int) -> dict[str, int | float]:
    transformer = "mask_decoder.transformer"
    mlp, _ = _shape(shapes, f"{transformer}.layers.0.mlp.lin1.weight", 2)
    name = f"{transformer}.final_attn_token_to_image.q_proj.weight"
    inner, _ = _shape(shapes, name, 2)
    if hidden % inner or inner % DECODER_HEADS:
        raise WeightsError(
            f"SAM's {name!r} has {inner} rows; expected a divisor of the width {hidden} that is a "
            f"multiple of {DECODER_HEADS}, the heads of every published SAM."
        )
    return {
        "hidden_size": hidden,
        "mlp_dim": mlp,
        "num_hidden_layers": _count(shapes, rf"{transformer}\.layers"),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": hidden // inner,
        "num_multimask_outputs": _shape(shapes, "mask_decoder.mask_tokens.weight", 2)[0] - 1,
        "iou_head_depth": _count(shapes, r"mask_decoder\.iou_prediction_head\.layers"),
        "iou_head_hidden_dim": _shape(
            shapes, "mask_decoder.iou_prediction_head.layers.0.weight", 2
        )[0],
        "layer_norm_eps": DECODER_EPSILON,
    }


def _heads(shapes: Shapes, width: int) -> int:
    name = "image_encoder.blocks.0.attn.rel_pos_h"
    _, head = _shape(shapes, name, 2)
    if width % head:
        raise WeightsError(
            f"SAM's {name!r} is {head} wide, an attention head; expected a divisor of the image "
            f"encoder's width {width}."
        )
    return width // head


def _windows(shapes: Shapes, layers: int, side: int) -> tuple[int, list[int]]:
    """The side of a window, and the layers that see the whole image."""
    names = [f"image_encoder.blocks.{number}.attn.rel_pos_h" for number in range(layers)]
    rows = [_shape(shapes, name, 2)[0] for name in names]
    whole = 2 * side - 1
    windowed = {count: name for name, count in zip(names, rows, strict=True) if count != whole}
    if len(windowed) > 1 or any(count % 2 == 0 for count in windowed):
        found = ", ".join(f"{count} in {name!r}" for count, name in windowed.items())
        raise WeightsError(
            f"SAM's tables of relative positions have rows that fit no window: {found}. Expected "
            f"{whole} where a layer sees all {side} x {side} patches, and one odd number elsewhere."
        )
    window = (next(iter(windowed), whole) + 1) // 2
    return window, [number for number, count in enumerate(rows) if count == whole]


def _count(shapes: Shapes, layers: str) -> int:
    """How many there are of something numbered, whose name this pattern is."""
    numbers = (re.match(rf"{layers}\.(\d+)\.", name) for name in shapes)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise WeightsError(f"SAM's tensor {name!r} is missing.")
    shape = shapes[name]
    if len(shape) != dimensions or 0 in shape:
        raise WeightsError(
            f"SAM's tensor {name!r} has shape {list(shape)}; expected {dimensions} dimensions."
        )
    return shape
