"""What the request of this asyncio task asks for, where vLLM does not carry it along."""

from contextvars import ContextVar
from dataclasses import dataclass

#: Where the processor finds a request's variant among its arguments.
VARIANT_KEY = "litelvlm_variant"


class Variant(str):
    """The name of a request's variant where our own code has put it; no client can make one."""


@dataclass(frozen=True)
class Asked:
    """A request's model by the name that it gave, its variant and its ``litelvlm`` options."""

    model: str = ""
    variant: str | None = None
    options: object = None


_NOTHING = Asked()
_asked: ContextVar[Asked] = ContextVar("litelvlm_asked", default=_NOTHING)


def note(asked: Asked) -> None:
    """Remember it for what follows in the same task."""
    _asked.set(asked)


def noted() -> Asked:
    """What was noted last."""
    return _asked.get()
