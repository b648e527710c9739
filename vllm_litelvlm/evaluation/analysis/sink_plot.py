"""The attention of [EOS]: bars of the last layer, lines by layer, and one prompt word by word."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_litelvlm.evaluation.analysis.clip_encoder import TextAttention
from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.analysis.plots import REFERRED_COLOUR, new_figure, save

_COLOURS = ("#3b3b3b", "#5b7a99", REFERRED_COLOUR, "#c9a227")


@dataclass(frozen=True)
class Example:
    """One prompt and what its end token attends to."""

    prompt: str
    attention: TextAttention
    groups: Sequence[str]

    def words(self) -> list[str]:
        """The tokens as the prompt spells them."""
        inner = [self.prompt[start:stop] for start, stop in self.attention.spans[1:-1]]
        return ["[SOS]", *inner, "[EOS]"]


def draw(
    path: Path,
    name: str,
    heads: Sequence[str],
    estimates: Sequence[Sequence[Estimate]],
    example: Example,
) -> None:
    """Write the plot; ``estimates`` has a row a layer and a column a head."""
    words = len(example.groups)
    figure = new_figure(max(9.0, 0.36 * words + 3), 7.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    bars, lines = top.subplots(1, 2, sharey=True)
    _draw_bars(bars, heads, estimates[-1])
    for column, (head, colour) in enumerate(zip(heads, _COLOURS, strict=True)):
        values = [layer[column].mean for layer in estimates]
        lines.plot(range(1, len(values) + 1), values, "o-", color=colour, markersize=4, label=head)
    lines.set_title("by layer", fontsize="small")
    lines.set_xlabel("layer")
    lines.xaxis.get_major_locator().set_params(integer=True)
    lines.grid(alpha=0.3)
    lines.legend(fontsize="x-small", frameon=False)
    _draw_heatmap(bottom, example)
    save(figure, path, f"Attention of [EOS] to the tokens of its text: {name}")


def _draw_bars(axes: Any, heads: Sequence[str], layer: Sequence[Estimate]) -> None:
    means = [found.mean for found in layer]
    errors = [found.standard_error or 0.0 for found in layer]
    bars = axes.bar(range(len(means)), means, yerr=errors, color=_COLOURS, width=0.62, capsize=3)
    axes.bar_label(bars, [f"{mean:.2f}" for mean in means], padding=2, fontsize="small")
    axes.set_xticks(range(len(means)), [head.replace(" ", "\n") for head in heads])
    axes.tick_params(axis="x", labelsize="small")
    axes.set_ylim(0, min(1.12, 1.2 * max(means) + 0.05))
    axes.set_title("last layer, sum over tokens", fontsize="small")
    axes.grid(axis="y", alpha=0.3)


def _draw_heatmap(figure: Any, example: Example) -> None:
    axes = figure.subplots()
    weights = example.attention.weights.numpy()
    image = axes.imshow(weights, aspect="auto", cmap="inferno", vmin=0)
    axes.set_yticks(range(len(weights)), range(1, len(weights) + 1))
    axes.set_ylabel("layer")
    axes.set_xticks(range(weights.shape[1]), example.words(), rotation=45, ha="right")
    axes.tick_params(axis="x", labelsize="small")
    for label, group in zip(axes.get_xticklabels(), example.groups, strict=True):
        if group == "referring":
            label.set_color(REFERRED_COLOUR)
    axes.set_title("one prompt; referring words in red", fontsize="small")
    figure.colorbar(image, ax=axes, label="attention")
