"""What is compared: pruning methods with their options, each at every budget."""

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import COMMON_OPTIONS, PruningOptions, parse
from vllm_litelvlm.pruning.registry import (
    build_decoder_pruner,
    build_pruner,
    decoder_method_names,
    method_names,
    pruner_class,
)

#: Whose score all others are related to.
ALL_TOKENS = "keep-all"
#: What every table must beat.
CHANCE = "random"
#: To whose scores those of others at the same budget and positions are told the difference.
BESIDE = (CHANCE, "fovea")

_DEFAULT = ("litelvlm", "litelvlm-reference", "litelvlm-value", "fovea")
_NAMED: Mapping[str, str] = {
    "litelvlm-reference": "litelvlm:variant=reference",
    "litelvlm-value": "litelvlm:guidance=value",
    "litelvlm-reference-value": "litelvlm:variant=reference,guidance=value",
    "fovea-layers": "fovea:focus=0.25",
    "fovea-no-text": "fovea:text=0",
}
_ABLATIONS: Mapping[str, Sequence[str]] = {
    "share": (
        *(f"litelvlm:share={share}" for share in ("0.0", "0.05", "0.25", "0.5", "0.75", "1.0")),
        "litelvlm",
    ),
    "components": (
        "litelvlm:share=0.0",
        "litelvlm:direction=high,context=false",
        "litelvlm:direction=low,context=false",
        "litelvlm:direction=low,context=true",
    ),
}

#: A comma between options, not one inside a list.
_COMMA = re.compile(r",(?![^\[]*\])")


@dataclass(frozen=True)
class Method:
    """A pruning method with its options, as tables name it."""

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draws: bool = False  #: whether it has a seed, which is then each sample's own
    positions: str | None = None  #: of the kept tokens; None where there is no choice


class Asked(Protocol):
    """What a condition's options depend on: a sample, or whatever else is asked at once."""

    @property
    def name(self) -> str:
        """Unique in the data set."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What may guide the pruning."""


@dataclass(frozen=True)
class Condition:
    """A method at a budget; None keeps all tokens."""

    method: Method
    budget: int | None

    @property
    def name(self) -> str:
        """The method's label and the budget."""
        label = self.method.label
        return label if self.budget is None else f"{label}@{self.budget}"

    def options(self, sample: Asked, by_expressions: bool, seed: int) -> dict[str, Any]:
        """What a request about a sample asks for."""
        options: dict[str, Any] = {"method": self.method.method, **self.method.options}
        if self.budget is not None:
            options["budget"] = self.budget
        if self.method.positions is not None:
            options["positions"] = self.method.positions
        if by_expressions and sample.texts:
            options["texts"] = list(sample.texts)
        if self.method.draws:
            options["seed"] = zlib.crc32(f"{seed} {sample.name}".encode())
        return options


def methods_of(
    named: Sequence[str] | None,
    ablations: Iterable[str],
    positions: Sequence[str] = ("compact",),
    *,
    decoder: bool,
    compared: bool = True,
) -> tuple[Method, ...]:
    """keep-all first, then random, then what was named and what ablations need.

    Where keep-all alone was named, there is nothing for random to be compared with. Each comes
    with each of ``positions``, but for keep-all and methods inside the language model, which have
    no choice. ``decoder``: whether the latter can run. Unless ``compared``, there are only those
    that were named. Raises OptionsError for methods and options
    that do not exist, and the engine's own for a method that it cannot run.
    """
    found = [text for ablation in ablations for text in _ABLATIONS[ablation]]
    if named is None:
        named = () if found else _DEFAULT
    every = (*method_names(), *(decoder_method_names() if decoder else ()))
    listed = [name for text in named for name in (every if text == "all" else [text])]
    asked = [*listed, *found]
    alone = not compared or set(asked) == {ALL_TOKENS}
    labels = dict.fromkeys(asked if alone else [ALL_TOKENS, CHANCE, *asked])
    return tuple(one for label in labels for one in _placed(method_of(label, decoder), positions))


def grid(
    methods: Sequence[Method], budgets: Iterable[int], all_tokens: int | None
) -> list[Condition]:
    """Every condition, keep-all first, then method by method with falling budgets.

    A budget of all tokens is left out: it is keep-all, whatever the method. Raises OptionsError
    for a budget of more than ``all_tokens``, which is what an image has; None where images have
    different numbers, by which budgets are clipped.
    """
    chosen = sorted(set(budgets), reverse=True)
    if all_tokens is not None and chosen and chosen[0] > all_tokens:
        raise OptionsError(
            f"--budgets has {chosen[0]}; allowed: at most {all_tokens}, the number of this "
            "model's visual tokens."
        )
    conditions = []
    for method in methods:
        if method.method == ALL_TOKENS:
            conditions.append(Condition(method, None))
        else:
            conditions += [Condition(method, budget) for budget in chosen if budget != all_tokens]
    return conditions


def method_of(label: str, decoder: bool = False) -> Method:
    """From ``METHOD:option=value,option=value``, or one of the names for that.

    ``decoder``: whether it may be one inside the language model. Raises OptionsError for what does
    not exist.
    """
    name, _, written = _NAMED.get(label, label).partition(":")
    options = dict(map(_option, _COMMA.split(written))) if written else {}
    common = {option: options[option] for option in COMMON_OPTIONS if option in options}
    parameters = {option: value for option, value in options.items() if option not in common}
    build = build_decoder_pruner if decoder and name in decoder_method_names() else build_pruner
    draws = "seed" in type(build(name, parameters)).model_fields and "seed" not in options
    _check_common(label, name, common)
    return Method(label, name, options, draws)


def _check_common(label: str, name: str, common: Mapping[str, Any]) -> None:
    """Of the options that all methods have in common, a method that has layers takes ``focus``."""
    for option in common:
        if option != "focus":
            raise OptionsError(
                f"--methods has {label!r}, but {option!r} is no method's own; say it by --budgets, "
                "--guide-by, --texts or --positions."
            )
    focus = parse(PruningOptions, common).focus
    if focus > 0 and (name in decoder_method_names() or not pruner_class(name).layered):
        layered = ", ".join(one for one in method_names() if pruner_class(one).layered)
        raise OptionsError(
            f"--methods has {label!r}, but {name} does not choose in layers, which 'focus' takes; "
            f"these do: {layered}."
        )


def _placed(method: Method, positions: Sequence[str]) -> list[Method]:
    """The method at each of the positions, if it has a choice; labels tell original ones."""
    if method.method in (ALL_TOKENS, *decoder_method_names()):
        return [method]
    return [
        replace(method, label=placed_label(method.label, place), positions=place)
        for place in positions
    ]


def placed_label(label: str, positions: str | None) -> str:
    """How a method at these positions is named; compact ones are not told."""
    return f"{label} original" if positions == "original" else label


def written(method: str, options: Mapping[str, Any]) -> str:
    """A method with options, as :func:`method_of` reads it."""
    words = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in options.items()
    ]
    return f"{method}:{','.join(words)}" if words else method


def _option(text: str) -> tuple[str, Any]:
    """A name and its value, which is JSON or a word."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
