"""What both models are built of: plain torch with the mathematics of transformers' classes.

Queries, keys and values are one product. On a CPU attention is written out as product, softmax and
product, which in the backward pass is several times faster than the fused operator.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: CLIP's gate: ``x * sigmoid(1.702 x)``, which is ``silu(1.702 x) / 1.702``.
QUICK_GELU = 1.702
#: How many tokens a causal attention takes at once.
_STRETCH = 145


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, through the operator that has a fused backward pass."""
    return F.silu(x * QUICK_GELU) * (1 / QUICK_GELU)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention over ``[..., tokens, head width]``; ``mask`` is added to the logits.

    ``query`` is already divided by the root of the head width.
    """
    if query.is_cuda and mask is None:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)
    logits = query @ key.transpose(-1, -2)
    if mask is not None:
        logits = logits + mask
    return logits.softmax(dim=-1) @ value


def causal_mask(length: int, like: Tensor) -> Tensor:
    """0 where a token may look and minus infinity where it may not, [length, length]."""
    return like.new_full((length, length), float("-inf")).triu(1)


def attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As :func:`attend` with every token seeing itself and those before it.

    On a CPU in stretches of tokens, so that most of what none may see is not computed.
    """
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    length = query.shape[-2]
    parts = []
    for start in range(0, length, _STRETCH):
        end = min(start + _STRETCH, length)
        mask = query.new_zeros((end - start, end))
        mask[:, start:] = causal_mask(end - start, query)
        keys, values = key[..., :end, :], value[..., :end, :]
        parts.append(attend(query[..., start:end, :], keys, values, mask))
    return torch.cat(parts, dim=-2)


class ClipBlock(nn.Module):
    """One layer of CLIP's towers: norms before attention and before the feed-forward half."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layer_norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, only: Tensor | None = None) -> Tensor:
        """The layer's output, [rows, tokens, width].

        Args:
            x: its input, the same shape.
            mask: see :func:`attend`.
            only: int64 [rows]: the one token of each row that is wanted; the output is then
                [rows, 1, width], and the work for the other tokens' outputs is saved.
        """
        rows, tokens, width = x.shape
        normed = self.layer_norm1(x)
        if only is None:
            packed = self.qkv(normed).view(rows, tokens, 3, self.heads, -1)
            query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            every = torch.arange(rows, device=x.device)
            weight, bias = self.qkv.weight, self.qkv.bias
            wanted = normed[every, only].unsqueeze(1)
            query = F.linear(wanted, weight[:width], bias[:width])
            query = query.view(rows, 1, self.heads, -1).transpose(1, 2)
            packed = F.linear(normed, weight[width:], bias[width:])
            packed = packed.view(rows, tokens, 2, self.heads, -1)
            key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
            mask = None if mask is None else mask[only][:, None, None]
            x = x[every, only].unsqueeze(1)
        mixed = attend(query * query.shape[-1] ** -0.5, key, value, mask)
        x = x + self.out_proj(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(quick_gelu(self.fc1(self.layer_norm2(x))))
        return out


class RmsNorm(nn.Module):
    """Llama's norm."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The input at a root mean square of 1 over the last axis, times the weight."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
