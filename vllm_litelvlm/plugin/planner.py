"""Decides what each picture of a request gets, and where that stands in the prompt."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import PruningOptions, ServerOptions
from vllm_litelvlm.plugin.config import GuidanceConfig
from vllm_litelvlm.plugin.conversation import Conversation
from vllm_litelvlm.plugin.instruction import InstructionReader
from vllm_litelvlm.plugin.layers import Layout, calls, guiding_texts, one_layer, two_layers
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.turns import Turn
from vllm_litelvlm.pruning.registry import check_texts, pruner_class, settle_focus
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.pruning.window import Window


class Planner:
    """For a model of some ``traits``, served by some ``settings``.

    Args:
        traits: what the model offers.
        settings: what was settled at start.
        image_token: the placeholder's id.
        tokenizer: the language model's, in transformers' interface.
        reader: makes what reads prompts that the caller has rendered.
    """

    def __init__(
        self,
        traits: Traits,
        settings: GuidanceConfig,
        image_token: int,
        tokenizer: Any,
        reader: Callable[[], InstructionReader],
    ) -> None:
        self._traits, self._settings = traits, settings
        self._image_token, self._tokenizer = image_token, tokenizer
        self._make_reader = reader

    def plan(
        self,
        options: PruningOptions,
        server: ServerOptions,
        tokens: int,
        window: Window | None = None,
    ) -> Plan:
        """What a picture of so many ``tokens`` gets by a request's options, but for its texts.

        ``window``: those that show it, where others do not. Raises OptionsError.
        """
        if self._traits.tokens is None:
            budget = server.fitted_budget(options, tokens)
            options = options.model_copy(update={"budget": budget})
        plan = Plan.decide(options, tokens, window, self._traits)
        if self._traits.tokens is None and plan.budget > server.highest_budget(tokens):
            server.check_request(options, plan.budget)  # keep-all, which no budget bounds
        return plan

    def lay_out(
        self,
        options: PruningOptions,
        focus: int,
        server: ServerOptions,
        prompt: list[int],
        plans: Sequence[Plan],
        conversation: Conversation | None,
    ) -> Layout:
        """Where what is kept of each picture stands in the prompt, and why it is kept.

        ``focus``: of an image that is shown whole. ``plans``: one a picture. Raises OptionsError.
        """
        if focus and prompt.count(self._image_token) == len(plans):
            assert self._traits.tokens is not None
            return two_layers(
                prompt,
                self._image_token,
                plans,
                list(calls(self._turns(prompt, conversation), options, server.max_texts)),
                focuses=[_focus(options, plan) for plan in plans],
                patches=self._traits.tokens,
                block=self._settings.block,
            )
        guided = any(map(_reads_text, plans))
        texts = self._texts(options, prompt, conversation) if guided else ()
        return one_layer(prompt, [_guided(plan, texts) for plan in plans])

    @cached_property
    def _reader(self) -> InstructionReader:
        return self._make_reader()

    def _texts(
        self,
        options: PruningOptions,
        prompt: Sequence[int],
        conversation: Conversation | None,
    ) -> tuple[str, ...]:
        """What guides a method that keeps all of its tokens in one layer."""
        if options.texts is not None:
            return options.texts
        most = self._settings.server.max_texts
        if conversation:
            return conversation.guiding(options.guide, most)
        return guiding_texts(self._reader.texts(prompt), options.guide, most)

    def _turns(self, prompt: Sequence[int], conversation: Conversation | None) -> list[Turn]:
        turns = (
            conversation.turns(prompt, self._tokenizer, self._image_token) if conversation else None
        )
        return self._reader.turns(prompt) if turns is None else turns


def _focus(options: PruningOptions, plan: Plan) -> int:
    """Tokens of an image's focus; none where little of a padded picture is left for a base."""
    try:
        return settle_focus(options, plan.pruner, plan.budget)
    except OptionsError:
        return 0


def _reads_text(plan: Plan) -> bool:
    return pruner_class(plan.method).reads_text


def _guided(plan: Plan, texts: tuple[str, ...]) -> Plan:
    """The plan with the texts that guide, if its method reads any."""
    if not _reads_text(plan):
        return plan
    check_texts(plan.method, texts)
    return dataclasses.replace(plan, texts=texts)
