"""How lists of names are told in a sentence."""

from collections.abc import Sequence


def few(names: Sequence[str], kind: str, most: int = 4) -> str:
    """The count and the first names: ``6 tensors ('a', 'b', 'c', 'd' ...)``."""
    told = ", ".join(repr(name) for name in names[:most])
    dots = " ..." if len(names) > most else ""
    return f"{len(names)} {kind}{'s' if len(names) > 1 else ''} ({told}{dots})"
