"""What LiteLVLM keeps of an image, by budget and expression (Figure 5)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.base import Analysis, AnalysisError, Batch, Look, Result
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.estimate import Gathered
from vllm_litelvlm.evaluation.analysis.kept_plot import draw
from vllm_litelvlm.evaluation.analysis.markdown import table
from vllm_litelvlm.evaluation.analysis.pictures import GREEN, RED, Canvas, sheet, with_caption
from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner

#: Rows of the table; the first is drawn.
_SELECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "LiteLVLM (the paper's)": ("litelvlm", {}),
    "LiteLVLM, guidance value (ours)": ("litelvlm", {"guidance": "value"}),
    "context score alone": ("context", {}),
}
#: Rows of a picture at most.
_EXPRESSIONS = 4


@dataclass
class _Shown:
    """One image with a row of pictures an expression."""

    rows: dict[str, list[Image.Image]] = field(default_factory=dict)


class Kept(Analysis):
    """Each expression chooses its own tokens, as if it were asked alone."""

    name = "kept"
    title = "Tokens that LiteLVLM keeps"

    def __init__(self, encoder: Encoder, *settings: Any) -> None:
        super().__init__(encoder, *settings)
        self.budgets = [budget for budget in self.settings.budgets if budget < encoder.patches]
        if not self.budgets:
            raise AnalysisError(
                f"--budgets {' '.join(map(str, self.settings.budgets))}: the checkpoint makes "
                f"{encoder.patches} tokens of an image; want a budget below that."
            )
        self._pruners = {
            label: build_pruner(method, options) for label, (method, options) in _SELECTIONS.items()
        }
        self._shares = {
            (label, budget): Gathered() for label in self._pruners for budget in self.budgets
        }
        self._shown: dict[int, _Shown] = {}

    def observe(self, batch: Batch) -> None:
        """See :meth:`Analysis.observe`."""
        if not batch.looks:
            return
        signals = self._signals(batch.looks)
        for label, pruner in self._pruners.items():
            for budget in self.budgets:
                self._count(batch.looks, pruner.select(signals, budget), label, budget)
        for look, number in self._to_show(batch.looks):
            self._shown[look.image].rows[look.text] = self._draw(look, signals.rows([number]))

    def _signals(self, looks: Sequence[Look]) -> Signals:
        scores = {
            Signal.SIMILARITY: Score.EOS,
            Signal.VALUE: Score.VALUE,
            Signal.CONTEXT: self.encoder.context,
        }
        values = {
            signal: torch.stack([look.scores[score] for look in looks])
            for signal, score in scores.items()
        }
        for signal in (Signal.SIMILARITY, Signal.VALUE):
            values[signal] = values[signal][:, None]
        patches = self.encoder.patches
        # Only places are wanted, and selections bring tokens along: tokens of no width.
        values[Signal.FEATURES] = torch.zeros(len(looks), 1 + patches, 0)
        return Signals(
            images=len(looks),
            patches=patches,
            device=torch.device("cpu"),
            text_counts=[1] * len(looks),
            values=values,
        )

    def _count(self, looks: Sequence[Look], selection: Selection, label: str, budget: int) -> None:
        for look, kept in zip(looks, selection.indices, strict=True):
            if look.referred is not None and look.divides:
                share = look.referred[kept].sum() / look.referred.sum()
                self._shares[label, budget].add(look.image, float(share))

    def _to_show(self, looks: Sequence[Look]) -> Iterator[tuple[Look, int]]:
        """The looks that get a row in a picture, with their numbers."""
        for number, look in enumerate(looks):
            if look.image not in self._shown and len(self._shown) < self.settings.pictures:
                self._shown[look.image] = _Shown()
            shown = self._shown.get(look.image)
            if shown and len(shown.rows) < _EXPRESSIONS and look.text not in shown.rows:
                yield look, number

    def _draw(self, look: Look, signals: Signals) -> list[Image.Image]:
        """A picture a budget: red by similarity, green by context."""
        preprocessor = self.encoder.preprocessor
        pruner: Pruner = next(iter(self._pruners.values()))
        pictures = []
        for budget in self.budgets:
            selection = pruner.select(signals, budget)
            kept, guided = selection.indices[0].tolist(), selection.guided[0]
            canvas = Canvas(preprocessor.seen(look.sample.image), preprocessor.grid)
            canvas.fade(kept)
            canvas.outline(_where(selection.indices[0], ~guided), GREEN)
            canvas.outline(_where(selection.indices[0], guided), RED)
            counts = f"{budget} tokens: {int(guided.sum())} by similarity (red), rest by context"
            pictures.append(with_caption(canvas.picture, [look.text, counts]))
        return pictures

    def finish(self, folder: Path) -> Result:
        """See :meth:`Analysis.finish`."""
        for number, shown in enumerate(self._shown.values(), start=1):
            sheet(list(shown.rows.values())).save(folder / f"{self.name}-{number}.png")
        if not self._shares[next(iter(self._shares))]:
            raise AnalysisError(
                "No sample has a mask that covers more than half of a patch, but not of all; the "
                "share of referred patches that are kept needs some."
            )
        estimates = {key: gathered.estimate() for key, gathered in self._shares.items()}
        draw(folder / f"{self.name}.png", self.encoder, self.budgets, estimates)
        rows = [
            [label, *(estimates[label, budget].show() for budget in self.budgets)]
            for label in self._pruners
        ]
        chance = [budget / self.encoder.patches for budget in self.budgets]
        rows.append(["by chance", *(f"{share:.3f}" for share in chance)])
        heads = ["kept by", *(f"{budget} of {self.encoder.patches}" for budget in self.budgets)]
        told = "Share of the referred patches that are kept, ± standard error over images."
        return Result(
            numbers={
                label: {str(b): asdict(estimates[label, b]) for b in self.budgets}
                for label in self._pruners
            },
            table=f"{table(heads, rows)}\n\n{told}",
        )


def _where(indices: Tensor, chosen: Tensor) -> list[int]:
    found: list[int] = indices[chosen].tolist()
    return found
