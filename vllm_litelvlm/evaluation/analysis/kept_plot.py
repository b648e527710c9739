"""The share of referred patches that are kept, by budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.analysis.plots import new_figure, save

_STYLES = (("#e22222", "o"), ("#7b3fa0", "D"), ("#16a03c", "s"))


def draw(
    path: Path,
    encoder: Encoder,
    budgets: Sequence[int],
    estimates: Mapping[tuple[str, int], Estimate],
) -> None:
    """A line a selection, with standard errors."""
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    labels = dict.fromkeys(label for label, _ in estimates)
    for label, (colour, marker) in zip(labels, _STYLES, strict=True):
        found = [estimates[label, budget] for budget in budgets]
        axes.errorbar(
            budgets,
            [estimate.mean for estimate in found],
            yerr=[estimate.standard_error or 0.0 for estimate in found],
            color=colour,
            marker=marker,
            capsize=3,
            label=label,
        )
    chance = [budget / encoder.patches for budget in budgets]
    axes.plot(budgets, chance, "--", color="#888888", label="by chance")
    axes.set_xticks(budgets)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"tokens kept of {encoder.patches}")
    axes.set_ylabel("share of referred patches kept")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    save(figure, path, f"Referred patches that are kept: {encoder.name}")
