"""Which part of a request its time goes to: every moment belongs to exactly one part."""

import functools
import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: In the order in which a request goes through them.
PARTS = (
    "preprocessing",
    "vision tower",
    "guidance",
    "selection",
    "projector",
    "prefill",
    "decode",
    "rest",
)


@dataclass(frozen=True)
class Times:
    """Seconds of every part, how often what was called, and tokens that prefill computed.

    ``calls`` has names of parts, "text tower" (a part of guidance) and "logits"; what was not
    called is not in it.
    """

    seconds: Mapping[str, float]
    calls: Mapping[str, int]
    prefill_tokens: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Meter:
    """Splits the time between :meth:`start` and :meth:`stop` among :data:`PARTS`.

    Entering a part stops the clock of the one around it, so nothing is counted twice; what is in
    no part is rest. On a CUDA device, entering and leaving wait for it.
    """

    def __init__(self) -> None:
        self._on_cuda = torch.cuda.is_available()
        self.start()

    def start(self) -> None:
        """Forget what was measured, and begin."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._calls: Counter[str] = Counter()
        self._prefill_tokens = 0
        self._open = ["rest"]
        self._since = self._began = self._now()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._now() - self._began

    def stop(self) -> Times:
        """What was measured since the start; all parts have been left."""
        assert self._open == ["rest"]
        self._charge()
        return Times(dict(self._seconds), dict(self._calls), self._prefill_tokens)

    def count_prefill(self, tokens: int) -> None:
        """Count tokens of a forward pass that belongs to prefill."""
        self._prefill_tokens += tokens

    @contextmanager
    def part(self, name: str, called: str | None = None) -> Iterator[None]:
        """Charge what runs meanwhile to a part, but for the parts inside.

        It counts as a call of the part, or of ``called``.
        """
        self._charge()
        self._open.append(name)
        self._calls[called or name] += 1
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        if self._on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def attach(meter: Meter, model: Any) -> None:
    """Meter the parts of a loaded :class:`vllm_litelvlm.plugin.models.llava.LiteLVLMLlava`.

    The tower runs inside ``litelvlm.signals``, and that inside ``litelvlm_select``: what is left of
    the former is guidance, and of the latter selection. A forward pass of the language model on one
    token is decoding, on more it is prefill; logits belong to their pass.
    """
    parts = (
        (model.vision_tower, "forward", "vision tower"),
        (model.litelvlm, "signals", "guidance"),
        (model, "litelvlm_select", "selection"),
        (model.multi_modal_projector, "forward", "projector"),
    )
    for module, method, part in parts:
        _wrap(module, method, lambda *_, part=part, **__: meter.part(part))
    text_tower = model.litelvlm.text_tower
    _wrap(text_tower, "forward", lambda *_, **__: meter.part("guidance", called="text tower"))
    signature, phase = inspect.signature(model.forward), "prefill"

    def forward(*args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        nonlocal phase
        tokens = signature.bind(*args, **kwargs).arguments["positions"].shape[-1]
        phase = "prefill" if tokens > 1 else "decode"
        if phase == "prefill":
            meter.count_prefill(tokens)
        return meter.part(phase)

    _wrap(model, "forward", forward)
    _wrap(model, "compute_logits", lambda *_, **__: meter.part(phase, called="logits"))


def _wrap(
    module: nn.Module, method: str, within: Callable[..., AbstractContextManager[None]]
) -> None:
    """Run the module's method inside the context that its arguments call for."""
    stock = getattr(module, method)

    @functools.wraps(stock)
    def metered(*args: Any, **kwargs: Any) -> Any:
        with within(*args, **kwargs):
            return stock(*args, **kwargs)

    setattr(module, method, metered)
