"""Method names to classes. Methods load when they are first asked for."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import COMMON_OPTIONS, parse
from vllm_litelvlm.pruning.base import Pruner

#: Third parties add a method by an entry point of this group: ``name = "module:Class"``.
ENTRY_POINT_GROUP = "vllm_litelvlm.pruners"

_BUILT_IN = {
    "litelvlm": "vllm_litelvlm.pruning.litelvlm:LiteLVLM",
    "random": "vllm_litelvlm.pruning.random:Random",
    "context": "vllm_litelvlm.pruning.context:ContextOnly",
    "cls-attention": "vllm_litelvlm.pruning.cls_attention:ClsAttention",
    "keep-all": "vllm_litelvlm.pruning.keep_all:KeepAll",
}


@cache
def method_names() -> tuple[str, ...]:
    """Every method's name, the built-in ones first."""
    added = (entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
    return tuple(dict.fromkeys([*_BUILT_IN, *added]))


@cache
def pruner_class(name: str) -> type[Pruner]:
    """The class of a method. Raises OptionsError naming the methods there are."""
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        entries = entry_points(group=ENTRY_POINT_GROUP, name=name)
        if not entries:
            raise OptionsError(
                f"litelvlm option 'method' is {name[:80]!r}; allowed: {', '.join(method_names())}."
            )
        found = next(iter(entries)).load()
    if not (isinstance(found, type) and issubclass(found, Pruner)):
        raise OptionsError(f"litelvlm method {name!r} is {found!r}, not a Pruner class.")
    return found


def build_pruner(
    method: str, parameters: Mapping[str, Any], known: tuple[str, ...] = COMMON_OPTIONS
) -> Pruner:
    """A method with its options.

    Raises OptionsError for an option that it does not have; ``known`` are those that would have
    been taken elsewhere, for the message.
    """
    return parse(pruner_class(method), parameters, known)
