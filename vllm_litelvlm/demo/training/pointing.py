"""What turns the state at [SEG] into a mask: a projection, and a SAM of transformers."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamImageProcessorPil, SamModel

from vllm_litelvlm.demo.grounding import GroundingGeometry, sam_config
from vllm_litelvlm.demo.training.clip import sine_positions
from vllm_litelvlm.grounding.head import TextProjection

#: The longest and the shortest wave by which a box is told, in sides of the picture.
_WAVES = 2.0, 0.125


class Pointer(nn.Module):
    """The projection from [SEG], and the SAM that it prompts."""

    def __init__(self, geometry: GroundingGeometry) -> None:
        super().__init__()
        self.text_hidden_fcs = TextProjection(geometry.llm_width, geometry.sam_prompt_width)
        self.sam = SamModel(sam_config(geometry))
        _start(self.sam)
        colours = SamImageProcessorPil()
        self.mean: Tensor
        self.deviation: Tensor
        for name, of_one in (("mean", colours.image_mean), ("deviation", colours.image_std)):
            self.register_buffer(name, torch.tensor(of_one) * 255, persistent=False)

    @property
    def trained(self) -> list[nn.Module]:
        """The parts of SAM that have a share in a mask which a vector alone prompts."""
        sam = self.sam
        return [sam.vision_encoder, sam.mask_decoder, sam.prompt_encoder.no_mask_embed]

    def features(self, pixels: Tensor) -> Tensor:
        """SAM's features, [images, prompt width, grid, grid].

        ``pixels`` uint8 [images, side, side, 3], of SAM's own side.
        """
        x = ((pixels.float() - self.mean) / self.deviation).movedim(-1, 1)
        x = x.to(self.sam.vision_encoder.pos_embed.dtype)
        encoded: Tensor = self.sam.vision_encoder(x).last_hidden_state
        return encoded

    def masks(self, features: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, float32 [images, masks, 4 grid, 4 grid], and scores, float32 [images, masks].

        As :meth:`vllm_litelvlm.grounding.sam.Sam.decode`, of several pictures and with gradients.
        ``prompts`` [images, masks, prompt width].
        """
        sam = self.sam
        _, dense = sam.prompt_encoder(None, None, None, None)
        places = sam.get_image_wide_positional_embeddings()
        logits, scores = sam.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=places.expand(len(features), -1, -1, -1).to(features),
            sparse_prompt_embeddings=prompts[:, :, None].to(features),
            dense_prompt_embeddings=dense.expand_as(features).to(features),
            multimask_output=False,
        )
        return logits[:, :, 0].float(), scores[..., 0].float()


def box_prompts(boxes: Tensor, width: int, blur: float | Tensor = 0.0) -> Tensor:
    """Boxes as prompts, sines of their sides: what SAM learns by first, and [SEG] is led to.

    With ``blur``, the deviation of sides that are not quite known, the mean of such prompts, as
    one gives who is led to the right ones and unsure: of short waves little is left.

    ``boxes`` float32 [..., 4] in shares of the picture's side; ``blur`` as them, or one number for
    several of them; float32 [..., width].
    """
    longest, shortest = (math.log(wave) for wave in _WAVES)
    turns = 2 * math.pi / torch.linspace(longest, shortest, width // 8, device=boxes.device).exp()
    angles = boxes[..., None] * turns
    left = torch.exp(-0.5 * (torch.as_tensor(blur, device=boxes.device)[..., None] * turns) ** 2)
    told = torch.cat([angles.sin() * left, angles.cos() * left], dim=-1).flatten(-2)
    return F.pad(told, (0, width - told.shape[-1]))


@torch.no_grad()
def _start(sam: SamModel) -> None:
    """A start that can be trained from: transformers' own is for weights that are loaded."""
    for module in sam.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    vision = sam.vision_encoder
    for layer in vision.layers:
        for last in (layer.attn.proj, layer.mlp.lin2):
            last.weight.mul_((2 * len(vision.layers)) ** -0.5)
    grid, width = vision.pos_embed.shape[1], vision.pos_embed.shape[-1]
    vision.pos_embed.copy_(sine_positions(grid, width)[1:].view(1, grid, grid, width))
    # Of the original SAM; transformers starts with waves shorter than a cell of the grid.
    sam.shared_image_embedding.positional_embedding.normal_()
