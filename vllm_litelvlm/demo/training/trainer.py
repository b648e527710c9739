"""The training: stage after stage, saved as it goes."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vllm_litelvlm.demo.checkpoint import Checkpoint, clip_config
from vllm_litelvlm.demo.training.export import Exporter
from vllm_litelvlm.demo.training.feed import feed
from vllm_litelvlm.demo.training.helpers import Team, team
from vllm_litelvlm.demo.training.models import Models
from vllm_litelvlm.demo.training.pace import Clock, Report, learning_rate, share_done
from vllm_litelvlm.demo.training.schedule import Stage, stage_number
from vllm_litelvlm.demo.training.settings import TrainingOptions
from vllm_litelvlm.demo.training.state import Position, append_line
from vllm_litelvlm.demo.training.validation import Validator

#: Batches whose features the projector's start is made from.
_WHITENING_BATCHES = 6


class Trainer:
    """Trains both models by the stages of the options, from where the output folder stands."""

    def __init__(self, options: TrainingOptions) -> None:
        self.options = options
        self.stop = False
        options.output.mkdir(parents=True, exist_ok=True)
        self.models = Models(options)
        self.exporter = Exporter(options.output / "model", options.geometry, self.models.tokenizers)

    @property
    def position(self) -> Position:
        """How far it has come."""
        return self.models.position

    def run(self, minutes: float | None = None, only: str | None = None) -> Checkpoint:
        """Train until the last stage ends, or ``minutes`` have passed, or only one stage.

        With ``only``, the stage of that name is trained on, or from its beginning with the
        weights as they are where another one is under way. The models are exported at the end.
        """
        stages = self.options.stages
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        last = len(stages) - 1
        if only is not None:
            last = stage_number(stages, only)
            if self.position.stage != last:
                self.position.next_stage(last)
        if self.position.stage <= last:
            with team(self.models) as together, _progress() as progress:
                while self.position.stage <= last:
                    self._train_stage(stages[self.position.stage], deadline, together, progress)
                    if self.stop or time.monotonic() >= deadline:
                        break
                    self._keep(stages[self.position.stage])
                    self.position.next_stage(self.position.stage + 1)
                    self.models.save()
            self.models.save()
        return self.export()

    def export(self) -> Checkpoint:
        """Write both models as they are."""
        self.exporter.write_clip(self.models.clip)
        self.exporter.write_llava(self.models.clip, self.models.llava, self.models.pointer)
        return self.exporter.written

    def _keep(self, stage: Stage) -> None:
        """Export the CLIP that a stage ended with, so that its course can be analysed."""
        if stage.model == "clip":
            folder = self.options.output / "stages" / stage.name
            replace(self.exporter, folder=folder).write_clip(self.models.clip)

    def _train_stage(
        self, stage: Stage, deadline: float, together: Team, progress: Progress
    ) -> None:
        position = self.position
        if stage.model == "llava" and not position.whitened:
            maker = self.models.maker(stage)
            self.models.whiten(maker.llava(step) for step in range(_WHITENING_BATCHES))
            together.share_state()
        bar = progress.add_task(stage.name, total=1.0, told="")
        clock = Clock(
            {
                "report": self.options.report_every,
                "validate": self.options.validate_every,
                "save": self.options.save_every,
            },
            time.process_time if self.models.device.type == "cpu" else time.monotonic,
        )
        report = Report()
        batches = feed(
            self.models.batches(stage), position.step, self.options.workers, self.options.repeats
        )
        while not self.stop and time.monotonic() < deadline:
            if share_done(stage, position) >= 1:
                break
            rate = learning_rate(stage, position)
            losses, gradient = together.step(stage, next(batches), rate)
            report.add(losses, gradient, stage.batch)
            clock.tick(position)
            if clock.due("report"):
                report = self._tell(stage, report, progress, bar)
            if clock.due("validate") and self._reached(stage, self.validate(stage), progress):
                break
            if clock.due("save"):
                self.models.save()
            clock.tick(position, step=False)
        if report.steps:
            self._tell(stage, report, progress, bar)
        if not self.stop and time.monotonic() < deadline:
            self._reached(stage, self.validate(stage), progress)

    def validate(self, stage: Stage) -> dict[str, float]:
        """Figures on unseen scenes; of a CLIP also where referents' patches rank."""
        models = self.models
        validator = Validator(models.maker(stage), models.device, self.options.thoroughness)
        with _threads(self.options.processes):
            if stage.model == "clip":
                figures = validator.clip(models.clip, models.heads)
                config = clip_config(self.options.geometry, models.tokenizers.clip).vision_config
                figures |= validator.ranks(models.clip, config)
            elif models.pointer is not None and stage.model == "sam":
                figures = validator.sam(models.pointer)
            else:
                figures = validator.llava(models.clip, models.llava)
                if models.pointer is not None and stage.canvas == validator.maker.grid:
                    figures |= validator.masks(
                        models.clip, models.llava, models.pointer, models.keeper
                    )
        self._log(stage, {"validation": figures})
        return figures

    def _tell(self, stage: Stage, report: Report, progress: Progress, bar: TaskID) -> Report:
        line = report.line()
        rate = learning_rate(stage, self.position)
        self._log(stage, {"rate": rate, **line})
        told = f"step {self.position.step}  {line['images_per_second']:.0f} images/s  " + "  ".join(
            f"{name} {value:.3f}" for name, value in list(_losses(line).items())[:8]
        )
        progress.update(bar, completed=min(1.0, share_done(stage, self.position)), told=told)
        return Report()

    def _log(self, stage: Stage, entry: dict[str, object]) -> None:
        position = self.position
        begin = {"stage": stage.name, "step": position.step, "seconds": position.seconds}
        append_line(self.options.output / "log.jsonl", {**begin, **entry})

    def _reached(self, stage: Stage, figures: dict[str, float], progress: Progress) -> bool:
        shown = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
        progress.console.print(
            f"[bold]{stage.name}[/] after {self.position.seconds / 60:.0f} min: {shown}"
        )
        return stage.goal is not None and figures.get(stage.goal[0], 0.0) >= stage.goal[1]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use the other processes' cores while they wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, count))
    yield
    torch.set_num_threads(before)


def _losses(line: dict[str, object]) -> dict[str, float]:
    losses = line["losses"]
    assert isinstance(losses, dict)
    return losses


def _progress() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
