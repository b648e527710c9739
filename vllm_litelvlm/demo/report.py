"""What the demo shows: a table a scene, a line a budget, a sheet of pictures a scene."""

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
    """Every answer, right ones green and wrong ones red, and what each budget comes to."""
    budgets = list(dict.fromkeys(row.budget for row in rows))
    for scene in dict.fromkeys(row.scene for row in rows):
        table = Table("question", "right answer", title=f"Scene {scene}", title_justify="left")
        for budget in budgets:
            table.add_column(f"{budget} tokens", no_wrap=True)
        for asked in _by_question(row for row in rows if row.scene == scene):
            sample = asked[0].sample
            table.add_row(asked[0].question, right_answer(sample), *map(_marked, asked))
        console.print(table)
    for budget in budgets:
        chosen = [row for row in rows if row.budget == budget]
        console.print(
            f"budget {budget:>3}: {sum(row.right for row in chosen)} of {len(chosen)} right, "
            f"{mean(row.prompt_tokens for row in chosen):.0f} prompt tokens, "
            f"{mean(row.first_token for row in chosen):.2f} s to the first token"
        )


def save_contact_sheets(rows: Sequence[Measured], pictures: Path) -> Iterator[Path]:
    """One sheet a scene (rows: questions, columns: budgets); yields each as it is saved."""
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
