"""What LiteLVLM keeps of an image, by budget and expression (Figure 5)."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.base import Analysis, AnalysisError, Batch, Look, Result
from vllm_litelvlm.evaluation.analysis.budgets import named, prunes, tokens_of
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.estimate import Gathered
from vllm_litelvlm.evaluation.analysis.kept_plot import draw
from vllm_litelvlm.evaluation.analysis.markdown import table
from vllm_litelvlm.evaluation.analysis.pictures import GREEN, RED, Canvas, sheet, with_caption
from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner

#: Rows of the table, for encoders that have what they need; the first is drawn.
_SELECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "LiteLVLM (the paper's)": ("litelvlm", {}),
    "context score alone": ("context", {}),
    "LiteLVLM, guidance value (ours)": ("litelvlm", {"guidance": "value"}),
}
_CHANCE = "by chance"
#: Rows of a picture at most.
_EXPRESSIONS = 4


class Kept(Analysis):
    """Each expression chooses its own tokens, as if it were asked alone."""

    name = "kept"
    title = "Tokens that LiteLVLM keeps"

    def __init__(self, encoder: Encoder, *settings: Any) -> None:
        super().__init__(encoder, *settings)
        asked = named(self.settings.budgets)
        self.budgets = {
            name: budget for name, budget in asked.items() if prunes(budget, encoder.patches)
        }
        if not self.budgets:
            why = (
                "that is all tokens of an image; want a fraction below 1, or a count."
                if encoder.patches is None
                else f"the checkpoint makes {encoder.patches} tokens of an image; want a budget "
                "below that."
            )
            raise AnalysisError(f"--budgets {' '.join(asked)}: {why}")
        scores = {
            Signal.SIMILARITY: Score.EOS,
            Signal.VALUE: Score.VALUE,
            Signal.CONTEXT: encoder.context,
        }
        self._scores = {signal: it for signal, it in scores.items() if it in encoder.labels}
        pruners = {
            label: build_pruner(method, options) for label, (method, options) in _SELECTIONS.items()
        }
        known = self._scores.keys() | {Signal.FEATURES}
        self._pruners = {label: one for label, one in pruners.items() if one.needs <= known}
        self._shares = {
            (label, name): Gathered()
            for label in [*self._pruners, _CHANCE]
            for name in self.budgets
        }
        self._shown: dict[int, dict[str, list[Image.Image]]] = defaultdict(dict)

    def observe(self, batch: Batch) -> None:
        """See :meth:`Analysis.observe`."""
        for look in batch.looks:
            signals = self._signals(look.scores)
            if look.referred is not None and look.divides:
                self._count(look, look.referred, signals)
            if look.image in self._shown or len(self._shown) < self.settings.pictures:
                rows = self._shown[look.image]
                if len(rows) < _EXPRESSIONS and look.text not in rows:
                    rows[look.text] = self._draw(look, signals)

    def _signals(self, scores: Mapping[Score, Tensor]) -> Signals:
        """Of one image with one text."""
        values = {
            signal: scores[score][None, None] if signal in TEXT_SIGNALS else scores[score][None]
            for signal, score in self._scores.items()
        }
        patches = len(scores[self.encoder.context])
        # Only places are wanted, and selections bring tokens along: tokens of no width.
        values[Signal.FEATURES] = torch.zeros(1, 1 + patches, 0)
        return Signals(
            images=1,
            patches=patches,
            device=torch.device("cpu"),
            text_counts=[1],
            values=values,
        )

    def _count(self, look: Look, referred: Tensor, signals: Signals) -> None:
        for name, budget in self.budgets.items():
            tokens = tokens_of(budget, signals.patches)
            self._shares[_CHANCE, name].add(look.image, tokens / signals.patches)
            for label, pruner in self._pruners.items():
                kept = referred[pruner.select(signals, tokens).indices[0]]
                self._shares[label, name].add(look.image, float(kept.sum() / referred.sum()))

    def _draw(self, look: Look, signals: Signals) -> list[Image.Image]:
        """A picture a budget: red by similarity, green by context."""
        preprocessor = self.encoder.preprocessor
        seen = preprocessor.seen(look.sample.image)
        pruner = next(iter(self._pruners.values()))
        pictures = []
        for budget in self.budgets.values():
            tokens = tokens_of(budget, signals.patches)
            selection = pruner.select(signals, tokens)
            kept, guided = selection.indices[0], selection.guided[0]
            canvas = Canvas(seen, preprocessor.cell)
            canvas.fade(kept.tolist())
            canvas.outline(kept[~guided].tolist(), GREEN)
            canvas.outline(kept[guided].tolist(), RED)
            counts = f"{tokens} tokens: {int(guided.sum())} by similarity (red), rest by context"
            pictures.append(with_caption(canvas.picture, [look.text, counts]))
        return pictures

    def finish(self, folder: Path) -> Result:
        """See :meth:`Analysis.finish`."""
        for number, shown in enumerate(self._shown.values(), start=1):
            sheet(list(shown.values())).save(folder / f"{self.name}-{number}.png")
        if not all(self._shares.values()):
            raise AnalysisError(
                "No sample has a mask that covers more than half of a patch, but not of all; the "
                "share of referred patches that are kept needs some."
            )
        estimates = {
            label: {name: self._shares[label, name].estimate() for name in self.budgets}
            for label in [*self._pruners, _CHANCE]
        }
        numbers = {
            label: {name: asdict(found) for name, found in row.items()}
            for label, row in estimates.items()
        }
        chance = estimates.pop(_CHANCE)
        draw(folder / f"{self.name}.png", self.encoder, estimates, chance)
        rows = [[label, *(one.show() for one in row.values())] for label, row in estimates.items()]
        rows.append([_CHANCE, *(f"{one.mean:.3f}" for one in chance.values())])
        heads = ["kept by", *(f"{name} of {self.encoder.all_patches}" for name in self.budgets)]
        told = "Share of the referred patches that are kept, ± standard error over images."
        if self.encoder.patches is None:
            told += " A count of more tokens than an image has keeps all of them."
        return Result(numbers, f"{table(heads, rows)}\n\n{told}")
