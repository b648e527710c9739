"""A record of what was kept, for people who want to look: off unless asked for.

With ``VLLM_LITELVLM_TRACE=/path/file.jsonl`` the worker appends one JSON line for each image that
the vision tower encodes. Reading the selection back makes the host wait for the device, so leave
it off in production. Lines hold token ids of the guiding texts.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vllm_litelvlm.plugin.plan import WorkOrder
from vllm_litelvlm.pruning.base import Selection

TRACE = "VLLM_LITELVLM_TRACE"


def trace_selections(
    orders: Sequence[WorkOrder], text_ids: Sequence[Tensor], selections: Sequence[Selection]
) -> None:
    """Append one line an image: method, budget, layer, text ids, kept indices, which guided."""
    path = os.environ.get(TRACE)
    if not path:
        return
    with Path(path).open("a", encoding="utf-8") as file:
        for order, ids, selection in zip(orders, text_ids, selections, strict=True):
            line = {
                "method": order.pruner.name,
                "parameters": order.pruner.model_dump(),
                "budget": order.budget,
                "layer": order.layer,
                "text_ids": ids.tolist(),
                "kept": selection.indices.tolist(),
                "guided": selection.guided.tolist(),
            }
            file.write(json.dumps(line) + "\n")
