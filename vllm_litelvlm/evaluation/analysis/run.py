"""One run: a checkpoint, a data set, some analyses; results into a folder."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from vllm_litelvlm.evaluation.analysis.base import Analysis, AnalysisError, Settings
from vllm_litelvlm.evaluation.analysis.correlation import Correlation
from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.extremes import Extremes
from vllm_litelvlm.evaluation.analysis.kept import Kept
from vllm_litelvlm.evaluation.analysis.ranks import Ranks
from vllm_litelvlm.evaluation.analysis.reading import Reader, read_samples
from vllm_litelvlm.evaluation.analysis.sink import Sink
from vllm_litelvlm.evaluation.samples import Dataset

ANALYSES: dict[str, type[Analysis]] = {
    analysis.name: analysis for analysis in (Ranks, Correlation, Sink, Extremes, Kept)
}

Item = TypeVar("Item")


def analyze(
    encoder: Encoder,
    dataset: Dataset,
    names: Sequence[str],
    settings: Settings,
    output: Path,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the analyses, write results.json, tables.md and the pictures, and return the numbers.

    What does not apply to the checkpoint, or finds nothing in the data, is told in a sentence.
    Raises AnalysisError where nothing is left.
    """
    console = console or Console(stderr=True)
    skipped = {name: why for name in names if (why := ANALYSES[name].obstacle(encoder))}
    running = [ANALYSES[name](encoder, settings) for name in names if name not in skipped]
    reader = Reader(encoder, settings, any(analysis.reads_images for analysis in running))
    read = 0
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        total = min(len(dataset), settings.samples) if running else 0
        task = progress.add_task("Looking at samples", total=total)
        samples = read_samples(dataset, total, settings.seed)
        for group in _groups(samples, settings.batch):
            batch = reader.batch(group)
            for analysis in running:
                analysis.observe(batch)
            read += len(group)
            progress.advance(task, len(group))
    output.mkdir(parents=True, exist_ok=True)
    sections, numbers = [], {}
    for analysis in running:
        try:
            result = analysis.finish(output)
        except AnalysisError as error:
            skipped[analysis.name] = str(error)
            continue
        numbers[analysis.name] = result.numbers
        sections.append(f"## {analysis.title}\n\n{result.table}")
    if not numbers:
        raise AnalysisError(" ".join(f"{name}: {why}" for name, why in skipped.items()))
    about = {
        "model": encoder.name,
        "kind": encoder.kind,
        "patches": encoder.patches,
        "dataset": dataset.name,
        "split": dataset.split,
        "samples": read,
        "images": reader.images,
        "texts": reader.texts,
    }
    _write(output, encoder, settings, about, numbers, skipped, sections)
    return numbers


def _write(
    output: Path,
    encoder: Encoder,
    settings: Settings,
    about: dict[str, Any],
    numbers: dict[str, Any],
    skipped: dict[str, str],
    sections: Sequence[str],
) -> None:
    packages = ("vllm-litelvlm", "torch", "transformers")
    results = {
        **about,
        "settings": asdict(settings),
        "labels": {str(score): label for score, label in encoder.labels.items()},
        "notes": encoder.notes,
        "versions": {package: version(package) for package in packages},
        "analyses": numbers,
        "skipped": skipped,
    }
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    head = (
        f"# {about['model']} on {about['dataset']} ({about['split']})\n\n"
        f"{about['samples']} samples, {about['images']} images, {about['texts']} pairs of image "
        f"and text; the text is the {settings.wording}; seed {settings.seed}."
    )
    left_out = [f"Left out: {name}. {why}" for name, why in skipped.items()]
    parts = [head, *encoder.notes, *left_out, *sections]
    (output / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _groups(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(islice(items, size)):
        yield group
