"""Every method as its own tests derive it again: slowly, from scores in plain lists.

Each takes the signals of one image without [CLS], a budget, and what notes close calls. Methods are
as they are by default for a model whose guidance is the language model's embeddings.
"""

from collections.abc import Callable

import torch

from tests.pruning import (
    test_cdpruner,
    test_divprune,
    test_eadp,
    test_fovea,
    test_holov,
    test_litelvlm,
    test_mmtok,
    test_nuwa,
    test_prunesid,
    test_scope,
    test_trim,
    test_visionzip,
    test_vispruner,
)
from tests.pruning.rederivation import Calls
from vllm_litelvlm.pruning.base import Signal, Signals


def _litelvlm(signals: Signals, budget: int, calls: Calls) -> list[int]:
    options = {
        "variant": "paper",
        "guidance": "similarity",
        "share": None,
        "direction": None,
        "context": True,
        "order": None,
    }
    similarity = signals[Signal.SIMILARITY][0].tolist()
    context = signals[Signal.CONTEXT][0].tolist()
    return test_litelvlm.expected_selection(similarity, context, budget, options)[0]


def _fovea(signals: Signals, budget: int, calls: Calls) -> list[int]:
    options = {"guidance": "similarity"}
    return test_fovea.derive(signals, 0, options, budget, [], calls, 8)[0]


def _trim(signals: Signals, budget: int, calls: Calls) -> list[int]:
    return [*test_trim.derive(signals, 0, budget, 1, calls)[0], signals.patches]


def _random(signals: Signals, budget: int, calls: Calls) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return sorted(torch.randperm(signals.patches, generator=generator)[:budget].tolist())


def _highest(signal: Signal) -> Callable[[Signals, int, Calls], list[int]]:
    def kept(signals: Signals, budget: int, calls: Calls) -> list[int]:
        scores = signals[signal][0].tolist()
        return sorted(sorted(range(len(scores)), key=lambda one: -scores[one])[:budget])

    return kept


SLOW_METHODS: dict[str, Callable[[Signals, int, Calls], list[int]]] = {
    "litelvlm": _litelvlm,
    "fovea": _fovea,
    "random": _random,
    "context": _highest(Signal.CONTEXT),
    "cls-attention": _highest(Signal.CLS_ATTENTION),
    "trim": _trim,
    "visionzip": lambda signals, budget, calls: test_visionzip.derive(
        signals, 0, budget, test_visionzip.PUBLISHED, calls
    )[0],
    "vispruner": lambda signals, budget, calls: test_vispruner.derive(
        signals, 0, budget, 0.5, calls
    ),
    "divprune": lambda signals, budget, calls: test_divprune.derive(signals, 0, budget, calls),
    "cdpruner": lambda signals, budget, calls: test_cdpruner.derive(signals, 0, budget, calls),
    "scope": lambda signals, budget, calls: test_scope.derive(signals, 0, budget, 1.0, calls),
    "mmtok": lambda signals, budget, calls: test_mmtok.derive(
        signals, 0, budget, (0.01, 0.2, 0.5), calls
    ),
    "eadp": lambda signals, budget, calls: test_eadp.derive(signals, 0, budget, 2.0, calls),
    "holov": lambda signals, budget, calls: test_holov.derive(
        signals, 0, budget, (16, 0.09), calls
    ),
    "nuwa": lambda signals, budget, calls: test_nuwa.derive(
        signals, 0, budget, (0.55, 280**0.5), calls
    )[0],
    "prunesid": lambda signals, budget, calls: test_prunesid.derive(signals, 0, budget, calls),
}
