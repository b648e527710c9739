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
#: The one that runs another checkout's package.
BESIDE = f"{PLUGIN_NAME}-beside"
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
    def grows(self) -> bool:
        """Whether every turn adds tokens to images before it."""
        return self.options is not None and "focus" in self.options

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
    focus: Sequence[float] = (),
    beside: Sequence[str] = (),
) -> tuple[Condition, ...]:
    """Stock first, then every method at every budget, in all ways that matter to the workload.

    Where not all ``positions`` are compact, each way is there with each of them. ``focus`` holds
    the shares of a budget that are tried as a layer of the text's own. The methods in ``beside``
    are compared with another checkout's as well, by its own defaults, where several texts are
    about an image.
    """
    only_compact = set(positions) == {COMPACT}  # what requests get that say nothing
    places = [{}] if only_compact else [{"positions": place} for place in positions]
    several = {"expressions": _expressions, "chat": _chat, "gallery": _chat}
    ways = several.get(workload, _plain)
    found = [Condition(STOCK_NAME, STOCK)]
    for method in methods:
        for budget in budgets:
            plain = {"method": method, "budget": budget}
            for place in places:
                found += ways({**plain, **place}, focus)
            if method in beside and workload in several:
                found.append(Condition(_name(plain, "beside"), BESIDE, plain))
    return tuple(found)


def _plain(options: Mapping[str, Any], focus: Sequence[float]) -> list[Condition]:
    return [Condition(_name(options), PLUGIN, options)]


def _expressions(options: Mapping[str, Any], focus: Sequence[float]) -> list[Condition]:
    """Each text's own tokens, or one set for all texts about an image."""
    if options["method"] == IDEAL:
        return _ideal(options, "a draw for each text", "one draw shared")
    named = Condition(_name(options, "texts named"), PLUGIN, options, adds="texts")
    return _ways(options, focus, named)


def _chat(options: Mapping[str, Any], focus: Sequence[float]) -> list[Condition]:
    """Each turn's own tokens, or those of the first."""
    if options["method"] == IDEAL:
        return _ideal(options, "a draw for each turn", "one draw")
    first = {**options, "guide": "first"}
    return _ways(options, focus, Condition(_name(options, "guide first"), PLUGIN, first))


def _ways(options: Mapping[str, Any], focus: Sequence[float], shared: Condition) -> list[Condition]:
    """Each text's own tokens, at once and in layers; ``shared`` ones; and its own uncached."""
    method = pruner_class(options["method"])
    plain = _plain(options, focus)
    if not method.reads_text:
        return plain  # one set for all texts already
    layers = [{**options, "focus": share} for share in focus if method.layered]
    return [
        *plain,
        *(Condition(_name(layer, f"focus {layer['focus']:g}"), PLUGIN, layer) for layer in layers),
        shared,
        Condition(_name(options, "without caches"), UNCACHED, options),
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
