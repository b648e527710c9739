"""What the demo shows: a table a scene, a line a budget and method, a sheet of pictures a scene."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_litelvlm.demo.overlay import contact_sheet
from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.evaluation.scenes.answers import right_answer


@dataclass(frozen=True)
class Measured:
    """One request about a scene, by its number, and what came of it.

    Seconds to the first token and to the end.
    """

    scene: int
    sample: Sample
    budget: int
    method: str
    prompt_tokens: int
    first_token: float
    seconds: float
    answer: str
    right: bool
    picture: Path

    @property
    def question(self) -> str:
        """What is asked, without the line that says how to answer."""
        return self.sample.prompt.partition("\n")[0]


def print_report(rows: Sequence[Measured], console: Console) -> None:
    """Every answer, right ones green and wrong ones red, and what each method comes to.

    A column has the answers at one budget, one below the other where it has several methods.
    """
    budgets = list(dict.fromkeys(row.budget for row in rows))
    methods = dict.fromkeys(row.method for row in rows if row.budget == min(budgets))
    for scene in dict.fromkeys(row.scene for row in rows):
        table = Table("question and right answer", "method", title=f"Scene {scene}", leading=1)
        table.title_justify = "left"
        for budget in budgets:
            table.add_column(f"{budget} tokens", no_wrap=True)
        for asked in _by_question(row for row in rows if row.scene == scene):
            question = Text(f"{asked[0].question}\n").append(
                right_answer(asked[0].sample), style="bold"
            )
            cells = [
                Text("\n").join(_marked(row) for row in asked if row.budget == budget)
                for budget in budgets
            ]
            table.add_row(question, "\n".join(methods), *cells)
        console.print(table)
    for budget, method in dict.fromkeys((row.budget, row.method) for row in rows):
        chosen = [row for row in rows if (row.budget, row.method) == (budget, method)]
        console.print(
            f"{budget:>3} tokens, {method:<8}: "
            f"{sum(row.right for row in chosen)} of {len(chosen)} right, "
            f"{mean(row.prompt_tokens for row in chosen):.0f} prompt tokens, "
            f"{mean(row.first_token for row in chosen):.2f} s to the first token"
        )


def save_contact_sheets(rows: Sequence[Measured], pictures: Path) -> Iterator[Path]:
    """One sheet a scene (rows: questions, columns: budgets and methods); yields each when saved."""
    for scene in dict.fromkeys(row.scene for row in rows):
        asked = _by_question(row for row in rows if row.scene == scene)
        path = pictures / f"scene-{scene}.png"
        contact_sheet([[Image.open(row.picture) for row in some] for some in asked]).save(path)
        yield path


def _by_question(rows: Iterator[Measured]) -> list[list[Measured]]:
    """The rows of every question together."""
    found: dict[str, list[Measured]] = {}
    for row in rows:
        found.setdefault(row.sample.name, []).append(row)
    return list(found.values())


def _marked(row: Measured) -> Text:
    mark, style = ("✓", "green") if row.right else ("✗", "red")
    return Text(f"{mark} {row.answer}", style)
