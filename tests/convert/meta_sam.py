"""The names of a SAM's tensors in Meta's files, by the modules that its source builds.

(segment_anything 1.0; nothing of the converter is used.)
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel


def sam_state(sam: SamModel) -> dict[str, Tensor]:
    """Under Meta's names, by the modules that its source builds."""
    renamed = {
        _meta_name(name): tensor
        for name, tensor in sam.state_dict().items()
        if name != "prompt_encoder.shared_embedding.positional_embedding"
    }
    expected = {name: tensor.shape for name, tensor in MetaSam(sam.config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
    return renamed


#: Patterns of transformers' names to Meta's, one after the other.
RULES: tuple[tuple[str, str], ...] = (
    (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.#"),
    (r"#", "positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"projection", "proj"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"layer_norm", "norm"),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_out\.", r"\1.layers.2."),
)


def _meta_name(name: str) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


class MetaSam(nn.Module):
    """The modules of Meta's SAM by their attributes' names, without what they do."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        vision, prompt, mask = (
            config.vision_config,
            config.prompt_encoder_config,
            config.mask_decoder_config,
        )
        width, hidden, side = vision.hidden_size, mask.hidden_size, prompt.image_embedding_size
        patch = nn.Conv2d(3, width, vision.patch_size)
        self.image_encoder = _modules(
            patch_embed=_modules(proj=patch),
            blocks=nn.ModuleList(
                self._block(vision, side if layer in vision.global_attn_indexes else 3)
                for layer in range(vision.num_hidden_layers)
            ),
            neck=nn.Sequential(
                nn.Conv2d(width, hidden, 1, bias=False),
                nn.LayerNorm(hidden),
                nn.Conv2d(hidden, hidden, 3, bias=False),
                nn.LayerNorm(hidden),
            ),
        )
        self.image_encoder.pos_embed = nn.Parameter(torch.empty(1, side, side, width))
        channels = prompt.mask_input_channels
        self.prompt_encoder = _modules(
            pe_layer=nn.Module(),
            point_embeddings=nn.ModuleList(nn.Embedding(1, hidden) for _ in range(4)),
            not_a_point_embed=nn.Embedding(1, hidden),
            no_mask_embed=nn.Embedding(1, hidden),
            mask_downscaling=nn.Sequential(
                nn.Conv2d(1, channels // 4, 2),
                nn.LayerNorm(channels // 4),
                nn.GELU(),
                nn.Conv2d(channels // 4, channels, 2),
                nn.LayerNorm(channels),
                nn.GELU(),
                nn.Conv2d(channels, hidden, 1),
            ),
        )
        self.prompt_encoder.pe_layer.register_buffer(
            "positional_encoding_gaussian_matrix", torch.empty(2, vision.num_pos_feats)
        )
        self.mask_decoder = _modules(
            transformer=_modules(
                layers=nn.ModuleList(self._two_way(hidden, mask.mlp_dim) for _ in range(2)),
                final_attn_token_to_image=_attention(hidden, hidden // 2),
                norm_final_attn=nn.LayerNorm(hidden),
            ),
            iou_token=nn.Embedding(1, hidden),
            mask_tokens=nn.Embedding(4, hidden),
            output_upscaling=nn.Sequential(
                nn.ConvTranspose2d(hidden, hidden // 4, 2),
                nn.LayerNorm(hidden // 4),
                nn.GELU(),
                nn.ConvTranspose2d(hidden // 4, hidden // 8, 2),
                nn.GELU(),
            ),
            output_hypernetworks_mlps=nn.ModuleList(
                _perceptron([hidden, hidden, hidden, hidden // 8]) for _ in range(4)
            ),
            iou_prediction_head=_perceptron(
                [hidden, mask.iou_head_hidden_dim, mask.iou_head_hidden_dim, 4]
            ),
        )

    @staticmethod
    def _block(vision: Any, side: int) -> nn.Module:
        width, head = vision.hidden_size, vision.hidden_size // vision.num_attention_heads
        attention = _modules(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        attention.rel_pos_h = nn.Parameter(torch.empty(2 * side - 1, head))
        attention.rel_pos_w = nn.Parameter(torch.empty(2 * side - 1, head))
        return _modules(
            norm1=nn.LayerNorm(width),
            attn=attention,
            norm2=nn.LayerNorm(width),
            mlp=_mlp(width, vision.mlp_dim),
        )

    @staticmethod
    def _two_way(hidden: int, mlp: int) -> nn.Module:
        return _modules(
            self_attn=_attention(hidden, hidden),
            cross_attn_token_to_image=_attention(hidden, hidden // 2),
            cross_attn_image_to_token=_attention(hidden, hidden // 2),
            mlp=_mlp(hidden, mlp),
            **{f"norm{number}": nn.LayerNorm(hidden) for number in range(1, 5)},
        )


def _modules(**children: nn.Module) -> nn.Module:
    parent = nn.Module()
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


def _mlp(width: int, inner: int) -> nn.Module:
    return _modules(lin1=nn.Linear(width, inner), lin2=nn.Linear(inner, width))


def _attention(width: int, inner: int) -> nn.Module:
    return _modules(
        q_proj=nn.Linear(width, inner),
        k_proj=nn.Linear(width, inner),
        v_proj=nn.Linear(width, inner),
        out_proj=nn.Linear(inner, width),
    )


def _perceptron(sizes: Iterable[int]) -> nn.Module:
    pairs = pairwise(sizes)
    return _modules(layers=nn.ModuleList(nn.Linear(one, other) for one, other in pairs))
