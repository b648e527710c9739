"""Whether patches that [CLS] attends to are those that [EOS] attends to (Figure 2a)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.base import Analysis, AnalysisError, Batch, Result
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.estimate import Gathered
from vllm_litelvlm.evaluation.analysis.markdown import table
from vllm_litelvlm.evaluation.analysis.plots import new_figure, save
from vllm_litelvlm.evaluation.analysis.ranks import normalised_ranks

_CELLS = 24
#: What takes the place of the attention of [EOS], in the order of the table.
_SIMILARITIES = (Score.EOS, Score.EOS_LAST)


def pearson(one: Tensor, other: Tensor) -> float | None:
    """The correlation of two rows; None where one of them is constant."""
    one, other = one.double() - one.double().mean(), other.double() - other.double().mean()
    scale = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    return float(one @ other / scale) if scale > 0 else None


class Correlation(Analysis):
    """Attention of [CLS] to the patches, and of [EOS], over the patches of each image.

    The paper does not say what the attention of [EOS] to patches is: the towers do not attend to
    each other. Here it is the softmax over the patches of their similarity to [EOS]. Its
    temperature then has no influence, neither on the correlation of ranks (Spearman) nor on that
    of logarithms (Pearson).
    """

    name = "correlation"
    title = "Attention of [CLS] and of [EOS]"

    def __init__(self, encoder: Encoder, *settings: Any) -> None:
        super().__init__(encoder, *settings)
        self._similarities = [score for score in _SIMILARITIES if score in encoder.labels]
        self._spearman = {score: Gathered() for score in self._similarities}
        self._pearson = {score: Gathered() for score in self._similarities}
        self._cells = {score: np.zeros((_CELLS, _CELLS)) for score in self._similarities}

    def observe(self, batch: Batch) -> None:
        """See :meth:`Analysis.observe`."""
        for look in batch.looks:
            attention = look.scores[Score.CLS_ATTENTION]
            places = normalised_ranks(attention)
            logarithms = attention.double().clamp_min(torch.finfo(torch.float32).tiny).log()
            for score in self._similarities:
                similarity = look.scores[score]
                linear = pearson(logarithms, similarity)
                if linear is None:  # a constant has no correlation; its ranks are made up
                    continue
                its_places = normalised_ranks(similarity)
                of_ranks = pearson(places, its_places)
                assert of_ranks is not None
                self._pearson[score].add(look.image, linear)
                self._spearman[score].add(look.image, of_ranks)
                self._cells[score] += np.histogram2d(
                    places.numpy(), its_places.numpy(), _CELLS, ((0, 1), (0, 1))
                )[0]

    def finish(self, folder: Path) -> Result:
        """See :meth:`Analysis.finish`."""
        if not all([*self._spearman.values(), *self._pearson.values()]):
            raise AnalysisError("No sample has a text to compare its patches with.")
        self._draw(folder / f"{self.name}.png")
        attention = self.encoder.labels[Score.CLS_ATTENTION]
        rows = [
            [
                self.encoder.labels[score],
                self._spearman[score].estimate().show(),
                self._pearson[score].estimate().show(),
            ]
            for score in self._similarities
        ]
        told = (
            f"Correlation with {attention}, over the patches of an image; mean ± standard error "
            "over images. The paper does not define the attention of [EOS] to patches; here it is "
            "the softmax over patches of their similarity, whose temperature changes neither "
            "number."
        )
        heads = ["similarity to", "of ranks (Spearman)", "of logarithms (Pearson)"]
        return Result(
            numbers={
                str(score): {
                    "spearman": asdict(self._spearman[score].estimate()),
                    "pearson_of_logarithms": asdict(self._pearson[score].estimate()),
                    "ranks": self._cells[score].astype(int).tolist(),
                }
                for score in self._similarities
            },
            table=f"{table(heads, rows)}\n\n{told}",
        )

    def _draw(self, path: Path) -> None:
        figure = new_figure(1.6 + 4 * len(self._similarities), 4.6)
        panels = figure.subplots(1, len(self._similarities), sharey=True, squeeze=False)[0]
        for axes, score in zip(panels, self._similarities, strict=True):
            cells = self._cells[score]
            density = cells.T * cells.size / cells.sum()
            image = axes.imshow(
                density, origin="lower", extent=(0, 1, 0, 1), cmap="viridis", vmin=0
            )
            figure.colorbar(image, ax=axes, label="patches to chance", shrink=0.85)
            found = self._spearman[score].estimate().show(2)
            axes.set_title(f"{self.encoder.labels[score]}\nSpearman {found}", fontsize="small")
            axes.set_xlabel(f"rank by {self.encoder.labels[Score.CLS_ATTENTION]}", fontsize="small")
            axes.set_ylabel("rank by similarity to the text", fontsize="small")
        save(figure, path, f"Attention of [CLS] and similarity to [EOS]: {self.encoder.name}")
