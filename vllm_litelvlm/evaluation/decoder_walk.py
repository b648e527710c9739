"""The layers of a Llama one by one, with tokens dropped between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.pruning.decoder import DecoderPruner, DecoderSelection, DecoderState


@dataclass(frozen=True)
class Prompt:
    """What the first layer gets: text, an image, text.

    ``embedded`` [tokens, width]; ``start`` and ``visual``: where the visual tokens begin and how
    many they are; ``positions`` int64 [tokens]: consecutive ones if None.
    """

    embedded: Tensor
    start: int
    visual: int
    positions: Tensor | None = None


@dataclass(frozen=True)
class Walked:
    """The greedy continuation, and what the last layer saw of the image.

    ``token_ids`` end with an end token, unless the length did. ``places``: the patch of each
    visual token; those that a method added count on from the number of patches.
    """

    token_ids: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class _Sequence:
    """One sequence between two layers.

    ``hidden`` [tokens, width], ``positions`` int64 [tokens], ``start`` of the visual tokens, and
    ``places``, int64 [visual tokens], as in :class:`Walked`; ``added`` by the method so far.
    """

    hidden: Tensor
    positions: Tensor
    start: int
    places: Tensor
    added: int = 0

    def pruned(
        self, selection: DecoderSelection, original: int, keeps_positions: bool
    ) -> "_Sequence":
        """The sequence with the selection in place of its visual tokens."""
        end, added = self.start + len(self.places), len(selection.added)
        assert not (keeps_positions and added), "an added token has no position of its own"
        stay = selection.kept + self.start
        before, after = slice(0, self.start), slice(end, None)

        def pick(rows: Tensor, new: Tensor) -> Tensor:
            return torch.cat([rows[before], rows[stay], new, rows[after]])

        hidden = pick(self.hidden, selection.added)
        positions = torch.arange(len(hidden), device=hidden.device)
        if keeps_positions:
            positions = pick(self.positions, self.positions[:0])
        numbers = torch.arange(added, device=hidden.device) + original + self.added
        places = torch.cat([self.places[selection.kept], numbers])
        return replace(
            self, hidden=hidden, positions=positions, places=places, added=self.added + added
        )


class DecoderWalk:
    """Greedy generation with methods that prune inside the language model.

    Every layer has its own KV cache, as long as the sequence that it saw. Where a method keeps
    positions, new tokens go on behind the whole prompt, in every layer; where it numbers anew, a
    new token's position in a layer is the length of that layer's cache.

    Args:
        language_model: transformers' LlamaModel, with SDPA attention.
        head: from its output to logits.
        end_tokens: ids that end an answer.

    Raises CompatibilityError for other models than Llama.
    """

    def __init__(
        self, language_model: Any, head: Callable[[Tensor], Tensor], end_tokens: Sequence[int]
    ) -> None:
        config = language_model.config
        if config.model_type != "llama":
            raise CompatibilityError(
                "Methods that prune inside the language model are written for Llama; this model's "
                f"is {config.model_type!r}. Evaluate it by the other methods."
            )
        # Without a mask, this implementation is the one that is causal by itself.
        assert config._attn_implementation == "sdpa", config._attn_implementation
        self._model, self._head, self._end_tokens = language_model, head, frozenset(end_tokens)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self._model.layers)

    @torch.no_grad()
    def generate(
        self, prompt: Prompt, pruner: DecoderPruner | None, budget: int, max_tokens: int
    ) -> Walked:
        """Read the prompt, pruning by ``pruner`` (None: nothing), and continue it greedily.

        Raises OptionsError where the method cannot run with this budget on this model.
        """
        cache = DynamicCache()
        sequence = self._read(prompt, pruner, budget, cache)
        ids = [self._best(sequence.hidden[-1:])]
        while len(ids) < max_tokens and ids[-1] not in self._end_tokens:
            position = None  # each layer's own
            if pruner is None or pruner.keeps_positions:
                position = len(prompt.embedded) + len(ids) - 1
            ids.append(self._best(self._step(ids[-1], position, cache)))
        return Walked(tuple(ids), tuple(sequence.places.tolist()))

    def _read(
        self, prompt: Prompt, pruner: DecoderPruner | None, budget: int, cache: DynamicCache
    ) -> _Sequence:
        """The prompt behind the last layer; fills the cache."""
        stages = pruner.pruned_layers(budget, self.depth) if pruner is not None else ()
        device = prompt.embedded.device
        positions = torch.arange(len(prompt.embedded), device=device)
        places = torch.arange(prompt.visual, device=device)
        sequence = _Sequence(prompt.embedded, positions, prompt.start, places)
        for number in range(self.depth):
            seen = sequence
            sequence = replace(seen, hidden=self._layer(number, seen.hidden, seen.positions, cache))
            if pruner is not None and number in stages:
                state = DecoderState(
                    hidden=sequence.hidden,
                    embedded=prompt.embedded,
                    start=sequence.start,
                    visual=len(sequence.places),
                    attention=partial(self._attention, number, seen),
                )
                selection = pruner.select(state, budget, stages.index(number))
                sequence = sequence.pruned(selection, prompt.visual, pruner.keeps_positions)
        return sequence

    def _step(self, token: int, position: int | None, cache: DynamicCache) -> Tensor:
        """The last layer's output for one more token, [1, width]."""
        device = self._model.embed_tokens.weight.device
        hidden: Tensor = self._model.embed_tokens(torch.tensor([token], device=device))
        for number in range(self.depth):
            own = cache.get_seq_length(number) if position is None else position
            hidden = self._layer(number, hidden, torch.tensor([own], device=device), cache)
        return hidden

    def _layer(self, number: int, hidden: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """One layer on [tokens, width], which attend to its cache and causally to each other."""
        out: Tensor = self._model.layers[number](
            hidden[None],
            position_ids=positions[None],
            position_embeddings=self._model.rotary_emb(hidden[None], positions[None]),
            past_key_values=cache,
            use_cache=True,
        )
        return out[0]

    def _attention(self, number: int, seen: _Sequence, rows: Tensor) -> Tensor:
        """A layer's attention of some rows; see :attr:`DecoderState.attention`.

        ``seen`` is the sequence before the layer.
        """
        block = self._model.layers[number]
        attention, normed = block.self_attn, block.input_layernorm(seen.hidden)
        cos, sin = self._model.rotary_emb(seen.hidden[None], seen.positions[None])
        query = _rotated(attention.q_proj(normed[rows]), cos[:, rows], sin[:, rows])
        key = _rotated(attention.k_proj(normed), cos, sin)
        key = key.repeat_interleave(len(query) // len(key), dim=0)  # grouped-query attention
        scale: float = attention.scaling
        logits = query.float() @ key.float().transpose(1, 2) * scale
        later = torch.arange(len(normed), device=rows.device) > rows[:, None]
        return logits.masked_fill(later, -torch.inf).softmax(dim=-1)

    def _best(self, hidden: Tensor) -> int:
        return int(self._head(self._model.norm(hidden))[-1].argmax())


def _rotated(part: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [tokens, heads * head width] with their positions, [heads, tokens, ...].

    ``cos`` and ``sin`` are [1, tokens, head width].
    """
    by_head = part.unflatten(-1, (-1, cos.shape[-1])).transpose(0, 1)[None]
    rotated, _ = apply_rotary_pos_emb(by_head, by_head, cos, sin)
    assert isinstance(rotated, Tensor)
    return rotated[0]
