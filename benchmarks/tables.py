"""Markdown tables."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """The first ``texts`` columns are words, the others numbers.

    A word that stands in the row above as well, with all before it, is left out.
    """
    lines = [_line(heads), "| --- " * texts + "| ---: " * (len(heads) - texts) + "|"]
    above: Sequence[str] = ()
    for row in rows:
        shown = list(row)
        for place in range(texts - 1):
            if list(above[: place + 1]) == list(row[: place + 1]):
                shown[place] = ""
        lines.append(_line(shown))
        above = row
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
