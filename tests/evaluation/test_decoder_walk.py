"""The walk through the language model against transformers' own ways of running it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tests.pruning import decoder_reference as reference
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.evaluation.decoder_walk import DecoderWalk, Prompt
from vllm_litelvlm.evaluation.llava import HfLlava
from vllm_litelvlm.pruning.decoder import DecoderPruner, DecoderSelection, DecoderState
from vllm_litelvlm.pruning.fastv import FastV
from vllm_litelvlm.pruning.sparsevlm import PUBLISHED_SCHEDULES, SparseVLM


@pytest.fixture(scope="module")
def eager(deep: Checkpoint) -> Any:
    """The same model with attention that shows its maps."""
    return LlavaForConditionalGeneration.from_pretrained(
        deep.llava, dtype=torch.float32, attn_implementation="eager"
    ).eval()


class Probe(DecoderPruner):
    """Keeps everything, and notes what it was shown."""

    name: ClassVar[str] = "probe"
    paper: ClassVar[str] = "none"
    keeps_positions: ClassVar[bool] = False
    shown: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def pruned_layers(self, budget: int, depth: int) -> tuple[int, ...]:
        return (0, 7, depth - 1)

    def select(self, state: DecoderState, budget: int, stage: int) -> DecoderSelection:
        rows = torch.tensor([3, len(state.hidden) - 1])
        self.shown.append((state.hidden, state.attention(rows)))
        return DecoderSelection(torch.arange(state.visual), state.hidden[:0])


def best(model: Any, hidden: Tensor) -> int:
    return int(model.lm_head(hidden).argmax())


def test_walk_without_pruning_is_transformers_generation(
    llava: HfLlava, prompts: Sequence[Prompt]
) -> None:
    for prompt in prompts:
        walked = llava.walk.generate(prompt, None, prompt.visual, max_tokens=8)
        assert walked.token_ids == llava.generate(prompt, 8)
        assert walked.places == tuple(range(prompt.visual))


@torch.no_grad()
def test_methods_are_shown_the_layers_and_their_attention(
    llava: HfLlava, eager: Any, prompts: Sequence[Prompt]
) -> None:
    prompt = prompts[0]
    Probe.shown.clear()
    walked = llava.walk.generate(prompt, Probe(), prompt.visual, max_tokens=3)
    assert walked.token_ids == llava.generate(prompt, 3)
    whole = eager.model.language_model(
        inputs_embeds=prompt.embedded[None], output_attentions=True, output_hidden_states=True
    )
    rows = [3, len(prompt.embedded) - 1]
    # transformers shows the last layer's output behind the norm; it is compared there.
    outputs = [whole.hidden_states[1], whole.hidden_states[8], whole.hidden_states[-1]]
    norms = [lambda hidden: hidden, lambda hidden: hidden, eager.model.language_model.norm]
    for layer, (hidden, attention), output, norm in zip(
        [0, 7, 17], Probe.shown, outputs, norms, strict=True
    ):
        torch.testing.assert_close(norm(hidden), output[0], atol=1e-4, rtol=1e-4)
        expected = whole.attentions[layer][0][:, rows]
        torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-3)


@contextmanager
def masks(model: Any, masks_by_layer: Sequence[Tensor]) -> Iterator[None]:
    """Give every decoder layer an attention mask of its own."""

    def use(mask: Tensor) -> Any:
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask})

    layers = model.model.language_model.layers
    hooks = [
        layer.register_forward_pre_hook(use(mask), with_kwargs=True)
        for layer, mask in zip(layers, masks_by_layer, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def fastv_by_masks(
    model: Any, prompt: Prompt, layer: int, budget: int, tokens: int
) -> tuple[list[int], list[int]]:
    """FastV in the whole model without a cache: later layers just do not see what is dropped."""
    language_model = model.model.language_model
    maps = language_model(inputs_embeds=prompt.embedded[None], output_attentions=True).attentions
    kept = reference.fastv(maps[layer - 1][0], prompt.start, prompt.visual, budget)
    dropped = [prompt.start + place for place in range(prompt.visual) if place not in kept]
    embedded, ids = prompt.embedded, []
    for _ in range(tokens):
        count = len(embedded)
        seen = torch.ones(count, count, dtype=torch.bool).tril()
        pruned = seen.clone()
        pruned[:, dropped] = False
        pruned |= torch.eye(count, dtype=torch.bool)  # a row of nothing has no softmax
        by_layer = [
            torch.zeros(1, 1, count, count).masked_fill(~mask, -torch.inf)
            for mask in [seen] * layer + [pruned] * (len(language_model.layers) - layer)
        ]
        with masks(model, by_layer):
            hidden = language_model(inputs_embeds=embedded[None]).last_hidden_state
        ids.append(best(model, hidden[0, -1]))
        embedded = torch.cat([embedded, language_model.embed_tokens(torch.tensor(ids[-1:]))])
    return kept, ids


@pytest.mark.parametrize(("layer", "budget"), [(1, 1), (2, 64), (17, 10)])
def test_fastv_equals_masks_in_the_whole_model(
    llava: HfLlava, eager: Any, prompts: Sequence[Prompt], layer: int, budget: int
) -> None:
    prompt = prompts[layer % 3]
    walked = llava.walk.generate(prompt, FastV(layer=layer), budget, max_tokens=4)
    kept, ids = fastv_by_masks(eager, prompt, layer, budget, tokens=4)
    assert list(walked.places) == kept
    assert list(walked.token_ids) == ids


@torch.no_grad()
def sparsevlm_without_cache(
    model: Any, prompt: Prompt, schedule: Sequence[int], tokens: int
) -> tuple[int, list[int]]:
    """SparseVLM layer by layer, everything computed again for each new token."""
    language_model = model.model.language_model
    rating = reference.raters(prompt.embedded, prompt.start, prompt.visual)
    ids: list[int] = []
    visual = 0
    for _ in range(tokens):
        answer = language_model.embed_tokens(torch.tensor(ids, dtype=torch.long))
        hidden, visual, stage = torch.cat([prompt.embedded, answer]), prompt.visual, 0
        for number, layer in enumerate(language_model.layers):
            count = len(hidden)
            mask = torch.zeros(1, 1, count, count)
            mask.masked_fill_(torch.ones(count, count, dtype=torch.bool).triu(1), -torch.inf)
            rotary = language_model.rotary_emb(hidden[None], torch.arange(count)[None])
            arguments = {"attention_mask": mask, "position_embeddings": rotary}
            normed = layer.input_layernorm(hidden[None])
            hidden = layer(hidden[None], **arguments)[0]
            if number in (2, 6, 15):
                attention = layer.self_attn(hidden_states=normed, **arguments)[1][0]
                kept, merged = reference.sparsevlm(
                    attention, hidden, prompt.start, visual, rating, schedule[stage]
                )
                image = hidden[prompt.start : prompt.start + visual]
                hidden = torch.cat(
                    [
                        hidden[: prompt.start],
                        image[kept],
                        merged.float(),
                        hidden[prompt.start + visual :],
                    ]
                )
                visual, stage = len(kept) + len(merged), stage + 1
        ids.append(best(model, language_model.norm(hidden)[-1]))
    return visual, ids


@pytest.mark.parametrize("budget", [64, 192])
def test_sparsevlm_equals_the_whole_computed_again_for_each_token(
    llava: HfLlava, eager: Any, prompts: Sequence[Prompt], budget: int
) -> None:
    prompt = prompts[budget % 3]
    walked = llava.walk.generate(prompt, SparseVLM(), budget, max_tokens=4)
    schedule = PUBLISHED_SCHEDULES[budget]
    visual, ids = sparsevlm_without_cache(eager, prompt, schedule, tokens=4)
    assert len(walked.places) == visual
    assert list(walked.token_ids) == ids


def test_places_of_added_tokens_follow_the_patches_and_are_unique(
    llava: HfLlava, prompts: Sequence[Prompt]
) -> None:
    walked = llava.walk.generate(prompts[0], SparseVLM(), 192, max_tokens=1)
    assert len(set(walked.places)) == len(walked.places)
    added = [place for place in walked.places if place >= prompts[0].visual]
    assert len(added) >= 1
    assert list(walked.places[-len(added) :]) == sorted(added)


def test_end_token_stops_the_walk_and_is_part_of_it(
    llava: HfLlava, prompts: Sequence[Prompt]
) -> None:
    model = llava.model
    free = llava.walk.generate(prompts[0], FastV(), 64, max_tokens=8).token_ids
    end = free[3]
    walk = DecoderWalk(model.model.language_model, model.lm_head, [end])
    stopped = walk.generate(prompts[0], FastV(), 64, max_tokens=8).token_ids
    assert stopped == free[: free.index(end) + 1]


def test_model_that_is_too_shallow_is_refused_before_it_runs(
    llava: HfLlava, prompts: Sequence[Prompt]
) -> None:
    with pytest.raises(OptionsError, match="18 layers"):
        llava.walk.generate(prompts[0], FastV(layer=18), 64, max_tokens=1)


def test_other_language_model_than_llama_is_refused() -> None:
    other: Any = SimpleNamespace(config=SimpleNamespace(model_type="mistral"))
    with pytest.raises(CompatibilityError, match="mistral"):
        DecoderWalk(other, torch.nn.Identity(), [2])
