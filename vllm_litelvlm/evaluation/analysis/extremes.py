"""The patches at both ends of a ranking, on the image (Figure 7)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.base import Analysis, AnalysisError, Batch, Look, Result
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.estimate import Gathered
from vllm_litelvlm.evaluation.analysis.markdown import table
from vllm_litelvlm.evaluation.analysis.pictures import GREEN, RED, Canvas, sheet, with_caption
from vllm_litelvlm.pruning.ranking import highest

#: Patches at each end, as in the paper.
COUNT = 10
_DRAWN = {Score.EOS: "similarity to the text", Score.VALUE: "value path (ours)"}


def ends(scores: Tensor, count: int) -> tuple[list[int], list[int]]:
    """Indices of the lowest and of the highest of [patches], at most half of them each."""
    count = min(count, len(scores) // 2)
    lowest, best = highest(-scores[None], count)[0], highest(scores[None], count)[0]
    return lowest.tolist(), best.tolist()


class Extremes(Analysis):
    """The ten lowest and the ten highest patches: drawn, and how many of them are referred to."""

    name = "extremes"
    title = "Lowest and highest patches"

    def __init__(self, encoder: Encoder, *settings: Any) -> None:
        super().__init__(encoder, *settings)
        self._shares = {
            (score, end): Gathered() for score in encoder.labels for end in ("lowest", "highest")
        }
        self._chance = Gathered()
        self._labels = {score: _DRAWN[score] for score in _DRAWN if score in encoder.labels}
        self._drawn: dict[int, list[Image.Image]] = {}

    def observe(self, batch: Batch) -> None:
        """See :meth:`Analysis.observe`."""
        for look in batch.looks:
            if look.referred is None or not look.divides:
                continue
            self._chance.add(look.image, float(look.referred.float().mean()))
            for score in self.encoder.labels:
                for end, indices in zip(
                    ("lowest", "highest"), ends(look.scores[score], COUNT), strict=True
                ):
                    share = float(look.referred[indices].float().mean())
                    self._shares[score, end].add(look.image, share)
            if look.image not in self._drawn and len(self._drawn) < self.settings.pictures:
                self._drawn[look.image] = self._draw(look, look.referred)

    def _draw(self, look: Look, referred: Tensor) -> list[Image.Image]:
        """The referred region, then the ends of each ranking."""
        preprocessor = self.encoder.preprocessor
        seen = preprocessor.seen(look.sample.image)
        first = Canvas(seen, preprocessor.cell)
        first.fade(referred.nonzero()[:, 0].tolist())
        pictures = [with_caption(first.picture, [look.text, "referred patches"])]
        for score, label in self._labels.items():
            canvas = Canvas(seen, preprocessor.cell)
            lowest, best = ends(look.scores[score], COUNT)
            canvas.outline(best, GREEN)
            canvas.outline(lowest, RED)
            counts = f"red: {len(lowest)} lowest, green: {len(best)} highest"
            pictures.append(with_caption(canvas.picture, [label, counts]))
        return pictures

    def finish(self, folder: Path) -> Result:
        """See :meth:`Analysis.finish`."""
        if not self._chance:
            raise AnalysisError(
                "No sample has a mask that covers more than half of a patch, but not of all; "
                "the lowest and highest patches have nothing to be compared with."
            )
        if self._drawn:
            sheet(list(self._drawn.values())).save(folder / f"{self.name}.png")
        rows: list[Sequence[str]] = [
            [label, *(self._shares[score, end].estimate().show() for end in ("lowest", "highest"))]
            for score, label in self.encoder.labels.items()
        ]
        chance = self._chance.estimate()
        rows.append(["of all patches", chance.show(), chance.show()])
        heads = ["ranked by", f"of the {COUNT} lowest", f"of the {COUNT} highest"]
        told = "Share of referred patches among them, ± standard error over images."
        return Result(
            numbers={
                "patches_at_each_end": COUNT,
                "share_of_all": asdict(chance),
                "scores": {
                    str(score): {
                        end: asdict(self._shares[score, end].estimate())
                        for end in ("lowest", "highest")
                    }
                    for score in self.encoder.labels
                },
            },
            table=f"{table(heads, rows)}\n\n{told}",
        )
