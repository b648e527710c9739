"""What was decided for one request, as it travels through vLLM.

vLLM mixes every ``mm_processor_kwargs`` entry into the hash that keys its processor cache, its
encoder cache and its prefix cache. The plan is put there in its canonical JSON form, so that two
requests share cached work exactly when the same tokens are kept for the same reason.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_litelvlm import __version__
from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.pruning.base import Pruner
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.registry import build_pruner, method_version, settle


@dataclass(frozen=True)
class Plan:
    """Method, its parameters, the budget in tokens, and the guiding texts, of one request.

    ``original``: whether the kept tokens keep their own positions.
    """

    method: str
    parameters: Mapping[str, Any]
    budget: int
    texts: tuple[str, ...] = ()
    original: bool = False
    version: str = __version__

    @classmethod
    def decide(cls, options: PruningOptions, patches: int) -> "Plan":
        """Settle a request's options, for images of ``patches`` tokens; texts are still to come.

        What has no influence is left out, so that it does not split the caches. Raises
        OptionsError for what is not allowed.
        """
        pruner, budget = settle(options, patches)
        return cls(
            pruner.name,
            pruner.model_dump(),
            budget,
            original=options.positions == "original" and not isinstance(pruner, KeepAll),
            version=method_version(pruner.name),
        )

    @classmethod
    def whole(cls, patches: int) -> "Plan":
        """Every token stays, whatever was asked for."""
        return cls(KeepAll.name, {}, patches)

    @property
    def pruner(self) -> Pruner:
        """The method with its parameters."""
        return _pruner(self.method, self.parameters)

    def to_json(self) -> str:
        """Canonical form: equal plans, equal strings."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "texts": tuple(fields["texts"])})


@dataclass(frozen=True)
class WorkOrder:
    """The part of a plan that the worker needs, as a tensor: texts arrive as token ids."""

    pruner: Pruner
    budget: int
    original: bool

    @staticmethod
    def encode(plan: Plan) -> Tensor:
        """A plan as uint8 [bytes]."""
        names = ("method", "parameters", "budget", "original")
        order = {name: getattr(plan, name) for name in names}
        data = bytearray(json.dumps(order, sort_keys=True), "utf-8")
        return torch.frombuffer(data, dtype=torch.uint8)

    @staticmethod
    def decode(tensor: Tensor) -> "WorkOrder":
        """The inverse of :meth:`encode`, for a tensor on the CPU."""
        return _work_order(tensor.numpy().tobytes())


@lru_cache(maxsize=1024)
def _work_order(data: bytes) -> WorkOrder:
    order = json.loads(data)
    pruner = _pruner(order["method"], order["parameters"])
    return WorkOrder(pruner, order["budget"], order["original"])


def _pruner(method: str, parameters: Mapping[str, Any]) -> Pruner:
    """A registered method, or the one that no request can name."""
    if method == Profile.name:
        return Profile.model_validate(parameters)
    return build_pruner(method, parameters)
