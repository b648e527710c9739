"""What ``--tune`` tries of each method: a few values of each of its options."""

import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.command.conditions import (
    Method,
    method_of,
    placed_label,
    written,
)
from vllm_litelvlm.pruning.registry import method_names, pruner_class

#: Values of options that are chosen together; null is the method's own choice.
Choice = Mapping[str, Any]
#: What is tried one in place of the other, besides the method's defaults.
Axis = tuple[Choice, ...]


def _values(option: str, *values: Any) -> Axis:
    return tuple({option: value} for value in values)


#: The end of the text score follows from the score; the other end is tried too.
_GUIDANCE: Axis = (
    {"guidance": "similarity", "direction": None},
    {"guidance": "value", "direction": None},
    {"guidance": "similarity", "direction": "high"},
    {"guidance": "value", "direction": "low"},
)
#: Axes in the order in which they are searched, those that matter most first.
_SPACES: Mapping[str, tuple[Axis, ...]] = {
    "litelvlm": (
        _GUIDANCE,
        _values("share", None, 0.0, 0.05, 0.25, 0.5, 0.75, 1.0),
        _values("context", True, False),
        _values("variant", "paper", "reference"),
    ),
    "fovea": (
        _values("text", 0, 2, 4, 8, 16, 32, 64),
        _values("context", 0, 1, 2, 4, 8, 16, 32),
        _GUIDANCE,
    ),
    "scope": (_values("alpha", 0, 0.5, 1, 2),),
    "mmtok": (
        _values("image", 0, 0.25, 0.5, 1, 2),
        _values("text_temperature", 0.01, 0.02, 0.05, 0.1),
        _values("image_temperature", 0.1, 0.2, 0.4),
    ),
    "eadp": (_values("power", 0.5, 1, 2, 4),),
    "holov": (_values("crops", 4, 9, 16, 36), _values("variance", 0, 0.09, 1)),
    "nuwa": (_values("untouched", 0.25, 0.4, 0.55, 0.7, 0.85), _values("reach", 4, 8, 32)),
    "visionzip": (_values("share", 0.25, 0.5, 0.75, 1.0),),
    "vispruner": (_values("share", 0.0, 0.25, 0.5, 0.75, 1.0),),
    "prumerge+": (_values("share", 0.0, 0.25, 0.5, 0.75, 1.0),),
}
#: The same where the text chooses in a layer of its own, which other options have a say in.
_LAYERED: Mapping[str, tuple[Axis, ...]] = {
    "litelvlm": (_GUIDANCE, _values("variant", "paper", "reference")),
    "fovea": (
        _values("focus_text", 0, 4, 8, 16, 32, 64, 128),
        _values("context", 0, 1, 2, 4, 8, 16, 32),
        _GUIDANCE,
    ),
}
#: Options whose default is another for some models: each of their values is asked for by name.
BY_MODEL: Mapping[str, frozenset[str]] = {
    "fovea": frozenset({"guidance"}),
    "mmtok": frozenset({"text_temperature"}),
    "eadp": frozenset({"power"}),
}


@dataclass(frozen=True)
class Space:
    """A method as it was named, whose options are fixed, and what else is tried.

    No axis is without another method than the default.
    """

    default: Method
    axes: tuple[Axis, ...]

    def others(self, method: Method, axis: Axis) -> list[Method]:
        """The methods along an axis through ``method``, without it."""
        free = (choice for choice in axis if self._allows(choice))
        found = {one.label: one for one in (_chosen(self.default, method, one) for one in free)}
        return [one for label, one in found.items() if label != method.label]

    def _allows(self, choice: Choice) -> bool:
        """Whether the options that are fixed leave a choice; null is whatever they say."""
        fixed = self.default.options
        return all(
            value is None or fixed.get(name, value) == value for name, value in choice.items()
        )


def space_of(label: str, positions: str | None = None) -> Space:
    """What is tried of the method that a label names, with the kept tokens at ``positions``.

    For methods without a space of their own, those are the options whose type has few values:
    truths and words. Raises OptionsError where nothing is left to try.
    """
    named = method_of(label)
    default = replace(named, label=placed_label(label, positions), positions=positions)
    declared = _axes(named.method, layered=named.options.get("focus", 0) > 0)
    defaults = pruner_class(named.method).model_fields
    own = ((*({o: defaults[o].default for o in axis[0]},), *axis) for axis in declared)
    axes = tuple(axis for axis in own if Space(default, ()).others(default, axis))
    if axes:
        return Space(default, axes)
    if declared:
        raise OptionsError(
            f"--tune {label} fixes every option that would be tried; leave some of them out."
        )
    able = ", ".join(name for name in method_names() if _axes(name, layered=False))
    raise OptionsError(
        f"--tune {label}: {named.method} has no options that can be tuned; these have: {able}."
    )


def _axes(method: str, layered: bool) -> tuple[Axis, ...]:
    if layered and method in _LAYERED:
        return _LAYERED[method]
    if method in _SPACES:
        return _SPACES[method]
    fields = pruner_class(method).model_fields
    found = [_values(name, *_few(field.annotation)) for name, field in fields.items()]
    return tuple(axis for axis in found if axis)


def _few(annotation: Any) -> tuple[Any, ...]:
    """All values that a type has, where it is one of truths or words; else none."""
    if annotation is bool:
        return (False, True)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        parts = get_args(annotation)
        values = [() if part is type(None) else _few(part) for part in parts]
        whole = all(some or part is type(None) for part, some in zip(parts, values, strict=True))
        return tuple(value for some in values for value in some) if whole else ()
    return ()


def _chosen(default: Method, method: Method, choice: Choice) -> Method:
    """``method`` with other values of some options, but for those that ``default`` fixes."""
    fields = pruner_class(default.method).model_fields
    merged = {**method.options, **choice, **default.options}
    options = {
        name: value
        for name, value in merged.items()
        if name in default.options
        or value != fields[name].default
        or name in BY_MODEL.get(default.method, ())
    }
    if options == default.options:
        return default
    ordered = {name: options[name] for name in sorted(options, key=[*fields, *options].index)}
    label = placed_label(written(default.method, ordered), default.positions)
    return replace(default, label=label, options=ordered)
