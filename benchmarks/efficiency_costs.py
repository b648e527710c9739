"""What a request costs a decoder by formula: operations of prefill, bytes of what it stores."""

import math
from dataclasses import dataclass
from typing import Any

#: Matrices as wide as the hidden state that attention writes for every token of a layer: queries,
#: keys, values and its output.
_STORED = 4


@dataclass(frozen=True)
class Decoder:
    """Sizes of a language model. ``number_bytes``: of an activation."""

    layers: int
    width: int
    mlp: int
    number_bytes: int

    @classmethod
    def of(cls, config: Any, number_bytes: int) -> "Decoder":
        """From a Llama configuration of transformers."""
        return cls(
            config.num_hidden_layers, config.hidden_size, config.intermediate_size, number_bytes
        )

    def prefill_operations(self, tokens: int) -> int:
        """The FLOPs of the paper's Table 6: layers x (4 n d^2 + 2 n^2 d + 3 n d m).

        Multiply-adds of the layers' matrix products for a prompt of n tokens, with keys and values
        as wide as queries and attention to all n tokens, not only those before.
        """
        n, d, m = tokens, self.width, self.mlp
        return self.layers * (4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m)

    def hidden_bytes(self, tokens: int) -> int:
        """The hidden states between two layers, n x d numbers."""
        return tokens * self.width * self.number_bytes

    def stored_bytes(self, tokens: int) -> int:
        """The paper's "storing activation", as near as a plain formula comes: 4 n d in every layer.

        The paper does not define it. At d = 4096, 32 layers and 2 bytes a number this is 0.34 and
        0.20 GB for the n = 322 and 194 that its FLOPs imply (it has 0.35 and 0.21), and 0.73 GB
        for n = 700 (it has 0.81). No paged engine keeps so much: it keeps keys and values.
        """
        return self.layers * _STORED * self.hidden_bytes(tokens)


@dataclass(frozen=True)
class KvCache:
    """Sizes of vLLM's KV cache. ``page_bytes``: of a block in one layer, by vLLM's own count."""

    layers: int
    kv_heads: int
    head_size: int
    number_bytes: int
    block_tokens: int
    page_bytes: int

    @classmethod
    def of(cls, group: Any) -> "KvCache":
        """From vLLM's description of layers that share a block table."""
        spec = group.kv_cache_spec
        return cls(
            layers=len(group.layer_names),
            kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            number_bytes=spec.dtype.itemsize,
            block_tokens=spec.block_size,
            page_bytes=spec.page_size_bytes,
        )

    def exact_bytes(self, tokens: int) -> int:
        """Keys and values of so many tokens."""
        return tokens * self.layers * 2 * self.kv_heads * self.head_size * self.number_bytes

    def block_bytes(self, tokens: int) -> int:
        """The same in whole blocks, as it is reserved."""
        return math.ceil(tokens / self.block_tokens) * self.layers * self.page_bytes
