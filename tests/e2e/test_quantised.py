"""A model whose vision tower is quantised keeps the tokens that the float model keeps."""

import re
from pathlib import Path

from benchmarks import quantisation


def test_int8_tower_keeps_at_least_60_of_64_tokens(tmp_path: Path) -> None:
    """On the scenes of the shipped model; its score and weights stand in the same row."""
    table = tmp_path / "table.md"
    quantisation.main(
        [
            *("--forms", "int8", "--methods", "litelvlm", "--questions", "24"),
            *("--dtype", "float32", "--output", str(table)),
        ]
    )
    rows = [line for line in table.read_text().splitlines() if "| litelvlm |" in line]
    plain, int8 = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)
    assert plain[-1] == "64.0 (64)"
    mean, least = map(float, re.findall(r"[\d.]+", int8[-1]))
    assert mean >= 60
    assert least >= 54
    assert int8[:2] == ["int8", "2.6"]
    assert plain[:2] == ["as it is", "4.7"]
