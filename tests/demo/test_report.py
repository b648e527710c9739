"""What the demo prints, on a made-up run."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from vllm_litelvlm.demo.report import Measured, print_report
from vllm_litelvlm.demo.run import ways_of
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset


def test_methods_are_compared_where_something_is_to_choose() -> None:
    assert ways_of([576, 64], 576) == [
        (576, "keep-all", "compact"),
        (64, "litelvlm", "compact"),
        (64, "fovea", "original"),
    ]


def test_answers_of_both_methods_stand_below_each_other_and_are_counted() -> None:
    [sample] = SceneDataset("test", 1, questions=1).about(0)
    rows = [
        Measured(
            0, sample, budget, method, 30 + budget, 0.25, 0.5, method, method != "litelvlm", Path()
        )
        for budget, method, _ in ways_of([576, 64], 576)
    ]
    told = StringIO()
    print_report(rows, Console(file=told, width=200))
    lines = [line.split("│")[2:-1] for line in told.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells == [["litelvlm", "✓ keep-all", "✗ litelvlm"], ["fovea", "", "✓ fovea"]]
    assert " 64 tokens, fovea   : 1 of 1 right, 94 prompt tokens, 0.25 s" in told.getvalue()
