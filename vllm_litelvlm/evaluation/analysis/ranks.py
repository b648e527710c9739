"""Where the referred patches rank among all patches of their image (Figures 2b, 2c and 6)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.base import Analysis, AnalysisError, Batch, Look, Result
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.estimate import Gathered
from vllm_litelvlm.evaluation.analysis.markdown import table
from vllm_litelvlm.evaluation.analysis.plots import (
    OTHER_COLOUR,
    REFERRED_COLOUR,
    new_figure,
    save,
)
from vllm_litelvlm.pruning.ranking import ranks

_BINS = 20
_COLUMNS = 3


def normalised_ranks(scores: Tensor) -> Tensor:
    """0 for the lowest of [..., patches], 1 for the highest, evenly spaced; ties by index."""
    return ranks(scores).double() / (scores.shape[-1] - 1)


class _Distribution:
    """The ranks by one score: of referred patches and of the others."""

    def __init__(self) -> None:
        self.referred, self.other, self.difference = Gathered(), Gathered(), Gathered()
        self.histograms = np.zeros((2, _BINS), np.int64)

    def add(self, look: Look, score: Score) -> None:
        assert look.referred is not None
        places = normalised_ranks(look.scores[score])
        referred, other = places[look.referred], places[~look.referred]
        for row, group in enumerate((referred, other)):
            self.histograms[row] += np.histogram(group.numpy(), _BINS, (0, 1))[0]
        means = float(referred.mean()), float(other.mean())
        self.referred.add(look.image, means[0])
        self.other.add(look.image, means[1])
        self.difference.add(look.image, means[0] - means[1])

    @property
    def end(self) -> str:
        """The end of the ranking at which referred patches lie, beyond two standard errors."""
        difference = self.difference.estimate()
        if not difference.differs(0):
            return "neither"
        return "low" if difference.mean < 0 else "high"

    def numbers(self) -> dict[str, Any]:
        return {
            "referred": asdict(self.referred.estimate()),
            "other": asdict(self.other.estimate()),
            "difference": asdict(self.difference.estimate()),
            "referred_end": self.end,
            "histogram_referred": self.histograms[0].tolist(),
            "histogram_other": self.histograms[1].tolist(),
        }


class Ranks(Analysis):
    """Every patch of an image is ranked by every score there is."""

    name = "ranks"
    title = "Ranks of referred patches"

    def __init__(self, encoder: Encoder, *settings: Any) -> None:
        super().__init__(encoder, *settings)
        self._found = {score: _Distribution() for score in encoder.labels}

    def observe(self, batch: Batch) -> None:
        """See :meth:`Analysis.observe`; images that are referred to as a whole are passed over."""
        for look in batch.looks:
            if look.divides:
                for score, distribution in self._found.items():
                    distribution.add(look, score)

    def finish(self, folder: Path) -> Result:
        """See :meth:`Analysis.finish`."""
        if not any(distribution.referred for distribution in self._found.values()):
            raise AnalysisError(
                "No sample has a mask that covers more than half of a patch, but not of all; "
                "ranks of referred patches need some."
            )
        self._draw(folder / f"{self.name}.png")
        rows = [
            [
                self.encoder.labels[score],
                found.referred.estimate().show(),
                found.other.estimate().show(),
                found.difference.estimate().show(),
                found.end,
            ]
            for score, found in self._found.items()
        ]
        heads = ["patches ranked by", "referred patches", "other patches", "difference", "end"]
        told = (
            f"Mean rank, 0 the lowest of {self.encoder.all_patches} and 1 the highest (the "
            "paper's axis runs the other way), ± standard error over images. Referred "
            "patches ([REF]): the mask covers more than half of them. End: where they lie, if "
            "the difference is more than two standard errors from 0."
        )
        return Result(
            numbers={
                "bin_edges": np.linspace(0, 1, _BINS + 1).tolist(),
                "scores": {str(score): found.numbers() for score, found in self._found.items()},
            },
            table=f"{table(heads, rows)}\n\n{told}",
        )

    def _draw(self, path: Path) -> None:
        lines = -(-len(self._found) // _COLUMNS)
        figure = new_figure(4.1 * _COLUMNS, 2.5 * lines + 0.7)
        panels = list(figure.subplots(lines, _COLUMNS, sharex=True, squeeze=False).flat)
        for axes, (score, found) in zip(panels, self._found.items(), strict=False):
            _panel(axes, found, self.encoder.labels[score])
        for axes in panels[len(self._found) :]:
            axes.set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        title = f"Ranks of referred patches, 0 lowest, 1 highest: {self.encoder.name}"
        save(figure, path, title)


def _panel(axes: Any, found: _Distribution, label: str) -> None:
    edges = np.linspace(0, 1, _BINS + 1)
    referred, other = (row / max(1, row.sum()) for row in found.histograms)
    axes.stairs(referred, edges, fill=True, color=REFERRED_COLOUR, alpha=0.55, label="referred")
    axes.stairs(other, edges, color=OTHER_COLOUR, linewidth=1.6, label="other patches")
    for group, colour in ((found.referred, REFERRED_COLOUR), (found.other, OTHER_COLOUR)):
        axes.axvline(group.estimate().mean, color=colour, linestyle="--", linewidth=1.2)
    axes.set_title(f"{label}\nmean {found.referred.estimate().show(2)}", fontsize="small")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize="small")
    axes.grid(axis="y", alpha=0.3)
