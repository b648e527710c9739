"""A GPU that is not there: what it would be asked to do is counted, and waiting for it refused.

A launch is one operation of PyTorch that computes, one copy from the host, or one Triton kernel.
Views, shapes and memory that is not yet written are none. PyTorch may start more than one kernel
for one operation (a sort, a product that is split), which is not seen here.

Everything runs on PyTorch's fake tensors: they are on a GPU and have shapes, but no numbers. So the
path is the one that a GPU takes, and what makes the host wait for numbers, or depends on them,
raises :class:`HostWaitsError`. In place of a Triton kernel's start stands the count alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vllm_litelvlm.pruning import kernels, random
from vllm_litelvlm.pruning.base import to_device

#: Where the tensors are.
GPU = torch.device("cuda:0")
#: No kernels, besides views.
_FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "detach",
    "resolve_conj",
}


class HostWaitsError(RuntimeError):
    """Code asked for numbers on a GPU, which the host would have to wait for."""


class Launches(TorchDispatchMode):
    """Counts while it is on; see :func:`counted`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        before, after = _devices((args, kwargs)), _devices(result)
        if GPU in before and after and GPU not in after:
            raise HostWaitsError(f"{name} copies from the GPU")
        computes = func.namespace == "aten" and not func.is_view and name not in _FREE
        if computes and GPU in after | before:
            self.names.append(name)
        return result


def _devices(values: Any) -> set[torch.device]:
    return {leaf.device for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


@contextmanager
def counted() -> Iterator[Launches]:
    """On tensors of :func:`fake_gpu`: what is launched. Raises where the host would wait."""
    launches = Launches()

    def start(kernel: Any, *_: object, **__: object) -> None:
        launches.names.append(f"{kernel.__module__.rpartition('.')[2]} (Triton)")

    with mock.patch.object(kernels, "launch", start), launches, _Bindings():
        try:
            yield launches
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostWaitsError(f"{error} needs numbers") from error
        except RuntimeError as error:
            if "not linked with support for cuda" in str(error):  # as nonzero says
                raise HostWaitsError("a shape depends on numbers") from error
            raise


class _Bindings(TorchFunctionMode):
    """By operations what PyTorch's Python methods ask the GPU for, which is not there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _INSTEAD.get(func, func)(*args, **(kwargs or {}))


def _item(tensor: Tensor, key: Any) -> Tensor:
    """``tensor[key]``; a list of numbers would be copied while the host waits."""
    result, places = tensor, list[Tensor | None]()
    for part in _without_ellipsis(key if isinstance(key, tuple) else (key,), tensor.dim()):
        dimension = len(places)
        if part is None:
            result = result.unsqueeze(dimension)
        elif isinstance(part, int):
            result = result.select(dimension, part)
            continue
        elif isinstance(part, slice):
            given = part.start, part.stop, 1 if part.step is None else part.step
            result = torch.ops.aten.slice.Tensor(result, dimension, *given)
        elif not isinstance(part, Tensor):
            raise HostWaitsError(f"an index is copied from the host: {part}")
        places.append(part if isinstance(part, Tensor) else None)
    return (
        torch.ops.aten.index.Tensor(result, places)
        if any(p is not None for p in places)
        else result
    )


def _without_ellipsis(parts: tuple[Any, ...], dimensions: int) -> Iterator[Any]:
    """The parts of an index, with a slice for each dimension that an ellipsis stands for."""
    indexing = sum(part is not None and part is not Ellipsis for part in parts)
    for part in parts:
        if part is Ellipsis:
            yield from [slice(None)] * (dimensions - indexing)
        else:
            yield part


def _contiguous(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


_INSTEAD: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _item,
    Tensor.__invert__: torch.bitwise_not,
    Tensor.contiguous: _contiguous,
}


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors made inside have no numbers, and may be on a GPU that is not there."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor))
        stack.enter_context(mock.patch.object(random, "permutation", _permutation))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.no_grad())
        yield


def _permutation(seed: int, patches: int, device: torch.device) -> Tensor:
    """In place of the drawn one, which is copied once and then kept."""
    return to_device(range(patches), device)
