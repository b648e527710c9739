"""What was decided for one item of a request, as it travels through vLLM.

An item is an image, or one of the layers in which an image's tokens come. vLLM mixes every
``mm_processor_kwargs`` entry into the hash that keys its processor cache, its encoder cache and its
prefix cache. The item's plan is put there in its canonical JSON form, so that two requests share
cached work exactly when the same tokens are kept for the same reason.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from vllm_litelvlm import __version__
from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.pruning.base import Pruner
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.order import Layer, Order
from vllm_litelvlm.pruning.registry import build_pruner, method_version, settle
from vllm_litelvlm.pruning.traits import ANY, Traits
from vllm_litelvlm.pruning.window import Window


@dataclass(frozen=True)
class Plan:
    """Method, its parameters, the budget in tokens, and the guiding texts, of one item.

    ``original``: whether the kept tokens keep their own positions. ``layer``, ``base`` and
    ``window`` as in :class:`~vllm_litelvlm.pruning.order.Order`.
    """

    method: str
    parameters: Mapping[str, Any]
    budget: int
    texts: tuple[str, ...] = ()
    original: bool = False
    layer: Layer = Layer.WHOLE
    base: int = 0
    window: Window | None = None
    version: str = __version__

    @classmethod
    def decide(
        cls,
        options: PruningOptions,
        patches: int,
        window: Window | None = None,
        traits: Traits = ANY,
    ) -> "Plan":
        """Settle a request's options, for an image of ``patches`` tokens; texts are still to come.

        ``window``: those that show the picture, where others do not. What has no influence is left
        out, so that it does not split the caches. Raises OptionsError for what is not allowed.
        """
        pruner, budget = settle(options, patches, window, traits)
        whole = window is None and isinstance(pruner, KeepAll)
        return cls(
            pruner.name,
            pruner.model_dump(),
            budget,
            original=options.positions == "original" and not whole,
            window=window,
            version=method_version(pruner.name),
        )

    def base_of(self, tokens: int) -> "Plan":
        """The layer that no text touches."""
        return replace(self, budget=tokens, texts=(), layer=Layer.BASE, base=tokens)

    def focus_on(self, texts: tuple[str, ...], base: int) -> "Plan":
        """The layer that texts add to a base of so many tokens: the rest of the budget."""
        return replace(self, budget=self.budget - base, texts=texts, layer=Layer.FOCUS, base=base)

    @cached_property
    def pruner(self) -> Pruner:
        """The method with its parameters."""
        return _pruner(self.method, self.parameters)

    @property
    def count(self) -> int:
        """How many tokens the item has in the prompt."""
        return self.pruner.output_count(self.budget)

    def to_json(self) -> str:
        """Canonical form: equal plans, equal strings."""
        return json.dumps(_plain(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    @lru_cache(maxsize=1024)
    def from_json(cls, text: str) -> "Plan":
        """The inverse of :meth:`to_json`."""
        said = json.loads(text)
        said["texts"] = tuple(said["texts"])
        said["layer"] = Layer(said["layer"])
        said["window"] = _window(said["window"])
        return cls(**said)


@dataclass(frozen=True)
class WorkOrder(Order):
    """The part of a plan that the worker needs, as bytes: texts arrive as token ids."""

    original: bool = False

    @staticmethod
    def encode(plan: Plan) -> bytes:
        """A plan without its texts."""
        order = _plain(plan)
        del order["texts"], order["version"]
        return json.dumps(order, sort_keys=True).encode()

    @classmethod
    @lru_cache(maxsize=1024)
    def decode(cls, data: bytes) -> "WorkOrder":
        """The inverse of :meth:`encode`."""
        order = json.loads(data)
        pruner = _pruner(order.pop("method"), order.pop("parameters"))
        order["layer"], order["window"] = Layer(order["layer"]), _window(order["window"])
        return cls(pruner, **order)


def _plain(plan: Plan) -> dict[str, Any]:
    """Its fields as JSON has them."""
    plain = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {**plain, "window": plan.window and asdict(plan.window)}


def _window(fields: Mapping[str, int] | None) -> Window | None:
    return None if fields is None else Window(**fields)


def _pruner(method: str, parameters: Mapping[str, Any]) -> Pruner:
    """A registered method, or the one that no request can name."""
    if method == Profile.name:
        return Profile.model_validate(parameters)
    return build_pruner(method, parameters)
