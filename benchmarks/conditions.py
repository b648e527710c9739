"""What is compared in each workload: stock vLLM, and the plugin under several request options."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.workload import Conversation
from vllm_litelvlm.activation import PLUGIN_NAME
from vllm_litelvlm.pruning.registry import method_names, pruner_class

#: The servers, named as their logs are.
STOCK, PLUGIN, UNCACHED = "stock", PLUGIN_NAME, f"{PLUGIN_NAME}-without-caches"
#: The name of the one condition that prunes nothing.
STOCK_NAME = "stock vLLM"
#: Server options that switch the plugin's own caches off.
NO_CACHES = {"feature_cache_gb": 0, "pixel_cache_gb": 0, "text_cache": 0}
#: As many tokens as any other method keeps, and nothing scored: no method can be faster.
IDEAL = "random"
KEEP_ALL = "keep-all"
#: Where kept tokens stand in the language model.
COMPACT, ORIGINAL = "compact", "original"
#: Methods that keep as many tokens as they are told.
METHODS = tuple(name for name in method_names() if name != KEEP_ALL)


@dataclass(frozen=True)
class Condition:
    """One server and what its requests ask for; ``options`` is None for stock vLLM.

    ``adds`` is what each request's options have besides: ``"texts"``, all texts that are asked
    about its images, so that these share one set of tokens; ``"seed"``, a number that depends on
    the turn's text, so that no two do.
    """

    name: str
    server: str
    options: Mapping[str, Any] | None = None
    adds: Literal["texts", "seed"] | None = None

    @property
    def budget(self) -> int | None:
        """Tokens that are kept of each image; None: all."""
        return None if self.options is None else int(self.options["budget"])

    @property
    def serves_whole(self) -> bool:
        """Whether some images keep all of their tokens."""
        return self.options is not None and self.options.get("repeat") == "full"

    def request_options(self, conversation: Conversation, turn: int) -> dict[str, Any] | None:
        if self.options is None:
            return None
        options = dict(self.options)
        if self.adds == "texts":
            options["texts"] = list(conversation.texts)
        if self.adds == "seed":
            options["seed"] = zlib.crc32(conversation.turns[turn].encode())
        return options


def conditions_of(
    workload: str,
    methods: Sequence[str],
    budgets: Sequence[int],
    positions: Sequence[str] = (COMPACT,),
) -> tuple[Condition, ...]:
    """Stock first, then every method at every budget, in all ways that matter to the workload.

    Where not all ``positions`` are compact, each way is there with each of them.
    """
    only_compact = set(positions) == {COMPACT}  # what requests get that say nothing
    places = [{}] if only_compact else [{"positions": place} for place in positions]
    ways = {"expressions": _expressions, "chat": _chat}.get(workload, _plain)
    found = [Condition(STOCK_NAME, STOCK)]
    for method in methods:
        for budget in budgets:
            for place in places:
                found += ways(method, {"method": method, "budget": budget, **place})
    return tuple(found)


def _plain(method: str, options: Mapping[str, Any]) -> list[Condition]:
    return [Condition(_name(options), PLUGIN, options)]


def _expressions(method: str, options: Mapping[str, Any]) -> list[Condition]:
    """Every answer to another text about an image; tokens of each text's own uncached too."""
    if method == IDEAL:
        return _ideal(options, "a draw for each text", "one draw shared")
    if not pruner_class(method).reads_text:
        return _plain(method, options)  # one set for all texts already
    prune = {**options, "repeat": "prune"}
    return [
        Condition(_name(options), PLUGIN, options),
        Condition(_name(options, "texts named"), PLUGIN, options, adds="texts"),
        *_repeats(options),
        Condition(_name(options, "repeat prune, without caches"), UNCACHED, prune),
    ]


def _chat(method: str, options: Mapping[str, Any]) -> list[Condition]:
    """Tokens for the last turn, which differ from turn to turn, or for the first."""
    if method == IDEAL:
        return _ideal(options, "a draw for each turn", "one draw")
    if not pruner_class(method).reads_text:
        return _plain(method, options)
    first = {**options, "guide": "first"}
    return [
        Condition(_name(options), PLUGIN, options),
        Condition(_name(options, "guide first"), PLUGIN, first),
        *_repeats(options),
    ]


def _repeats(options: Mapping[str, Any]) -> list[Condition]:
    """The answers to another text that are not the default."""
    return [
        Condition(_name(options, f"repeat {repeat}"), PLUGIN, {**options, "repeat": repeat})
        for repeat in ("prune", "full")
    ]


def _ideal(options: Mapping[str, Any], changing: str, shared: str) -> list[Condition]:
    return [
        Condition(_name(options, changing), PLUGIN, options, adds="seed"),
        Condition(_name(options, shared), PLUGIN, options),
    ]


def _name(options: Mapping[str, Any], way: str | None = None) -> str:
    ideal = " (ideal: no scoring)" if options["method"] == IDEAL else ""
    places = f"{options['positions']} positions" if "positions" in options else None
    named = [str(options["method"]), f"budget {options['budget']}", places, way]
    return ", ".join(filter(None, named)) + ideal
