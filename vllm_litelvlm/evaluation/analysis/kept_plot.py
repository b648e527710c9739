"""The share of referred patches that are kept, by budget."""

from collections.abc import Mapping
from pathlib import Path

from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.analysis.plots import new_figure, save

#: As in the pictures: red by similarity, green by context.
_STYLES = (("#e22222", "o"), ("#16a03c", "s"), ("#7b3fa0", "D"))


def draw(
    path: Path,
    encoder: Encoder,
    estimates: Mapping[str, Mapping[str, Estimate]],
    chance: Mapping[str, Estimate],
) -> None:
    """A line a selection, with standard errors, by the mean share of all that a budget is.

    Args:
        path: to write to.
        encoder: what was looked at.
        estimates: by selection and budget.
        chance: the share of all patches that each budget is.
    """
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    shares = [one.mean for one in chance.values()]
    for (label, found), (colour, marker) in zip(estimates.items(), _STYLES, strict=False):
        axes.errorbar(
            shares,
            [found[name].mean for name in chance],
            yerr=[found[name].standard_error or 0.0 for name in chance],
            color=colour,
            marker=marker,
            capsize=3,
            label=label,
        )
    axes.plot(shares, shares, "--", color="#888888", label="by chance")
    axes.set_xticks(shares, chance)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"kept of {encoder.all_patches}")
    axes.set_ylabel("share of referred patches kept")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    save(figure, path, f"Referred patches that are kept: {encoder.name}")
