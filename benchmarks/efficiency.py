"""The paper's Table 6 in vLLM: what pruning saves of operations, time, KV cache and activations.

Unpruned, VisPruner and LiteLVLM on vLLM's real engine in this process, one request at a time,
image and text always new. Every repetition asks once for each row; none gains from the order.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks import breakdown_settings
from benchmarks.breakdown_engine import Engine, EngineError
from benchmarks.breakdown_rounds import STATES, Case, measure
from benchmarks.breakdown_settings import Settings
from benchmarks.efficiency_costs import Decoder, KvCache
from benchmarks.efficiency_report import UNPRUNED, markdown, summarise, write
from benchmarks.machine import Machine, command_line
from vllm_litelvlm.errors import LiteLVLMError

METHODS = ("vispruner", "litelvlm")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = breakdown_settings.parse(arguments_parser(), given)
    console = Console(stderr=True)
    machine, command = Machine.describe(), command_line("benchmarks.efficiency", given)
    try:
        settings = Settings.of(options, console)
        settings.check_budgets(most=settings.visual_tokens - 1)
        with console.status("Starting vLLM ..."):
            engine = Engine(settings.source)
        costs = _costs(engine)
        cases = [Case(UNPRUNED, settings.visual_tokens)]
        cases += [Case(method, budget) for budget in settings.budgets for method in METHODS]
        cold = {"cold": STATES["cold"]}
        requests = measure(engine, settings, cases, cold, console)
    except LiteLVLMError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    rows = summarise(requests, cases, *costs)
    write(settings, requests, rows, costs, machine, command=command)
    print(markdown(rows))
    console.print(f"Written to {settings.output}: results.json, table.md, plot.png")
    return 0


def arguments_parser() -> argparse.ArgumentParser:
    return breakdown_settings.arguments_parser(
        "efficiency",
        __doc__ or "",
        budgets=(192, 128, 64),
        about="visual tokens kept per image, beside all of them",
    )


def _costs(engine: Engine) -> tuple[Decoder, KvCache]:
    """What the engine's own configuration says of sizes.

    Raises EngineError where not all layers keep keys and values alike.
    """
    groups = engine.kv_cache_groups
    if len(groups) != 1:
        raise EngineError(f"the KV cache has {len(groups)} kinds of layers; one can be counted.")
    decoder = Decoder.of(engine.config.text_config, engine.dtype.itemsize)
    return decoder, KvCache.of(groups[0])


if __name__ == "__main__":
    sys.exit(main())
