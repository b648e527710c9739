"""What the demo shows: a table a photograph, a line a budget, a sheet of pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_litelvlm.demo.overlay import contact_sheet

#: Photographs that ship with scikit-image, by name, and what is asked about each.
QUESTIONS = {
    "astronaut": (
        "What is the woman wearing?",
        "Where is the flag?",
        "Is there a space shuttle in the background?",
    ),
    "coffee": (
        "What colour is the cup?",
        "Where is the spoon?",
        "What is the table made of?",
    ),
}


@dataclass(frozen=True)
class Measured:
    """One request and what came of it; seconds to the first token and to the end."""

    photograph: str
    question: str
    budget: int
    prompt_tokens: int
    first_token: float
    seconds: float
    answer: str
    picture: Path


def print_report(rows: Sequence[Measured], console: Console) -> None:
    """A row for each request, and the means of each budget."""
    for photograph, questions in QUESTIONS.items():
        console.print(f"\n[bold]{photograph}[/]")
        table = Table()
        for heading in ("#", "budget", "prompt tokens", "first token s", "answer s"):
            table.add_column(heading, justify="right", max_width=7)
        table.add_column("answer", overflow="ellipsis", no_wrap=True, max_width=14)
        table.add_column("picture", no_wrap=True)
        for number, question in enumerate(questions, start=1):
            console.print(f"{number}. {question}")
            for row in rows:
                if (row.photograph, row.question) == (photograph, question):
                    table.add_row(
                        str(number),
                        str(row.budget),
                        str(row.prompt_tokens),
                        f"{row.first_token:.2f}",
                        f"{row.seconds:.2f}",
                        Text(row.answer),
                        row.picture.name,
                    )
        console.print(table)
    for budget in dict.fromkeys(row.budget for row in rows):
        chosen = [row for row in rows if row.budget == budget]
        console.print(
            f"budget {budget:>3}: {mean(row.prompt_tokens for row in chosen):5.0f} prompt tokens, "
            f"{mean(row.first_token for row in chosen):5.2f} s to the first token, mean of "
            f"{len(chosen)} requests"
        )


def save_contact_sheets(rows: Sequence[Measured], pictures: Path) -> Iterator[Path]:
    """One sheet a photograph (rows: questions, columns: budgets); yields each as it is saved."""
    for name in QUESTIONS:
        by_question: dict[str, list[Image.Image]] = {}
        for row in rows:
            if row.photograph == name:
                by_question.setdefault(row.question, []).append(Image.open(row.picture))
        path = pictures / f"{name}.png"
        contact_sheet(list(by_question.values())).save(path)
        yield path
