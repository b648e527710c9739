"""A record of what was kept, for people who want to look: off unless asked for.

With ``VLLM_LITELVLM_TRACE=/path/file.jsonl`` the worker appends one JSON line for each image that
vLLM's encoder cache lacks, whole ones and those whose features are still there too. Reading the
selection back makes the host wait for the device, so leave it off in production. Lines hold token
ids of the guiding texts.
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
    orders: Sequence[WorkOrder],
    text_ids: Sequence[Tensor],
    selections: Sequence[Selection] | None,
    tokens: Sequence[int],
) -> None:
    """Append one line an image: method, budget, layer, text ids, kept indices, which guided.

    Without ``selections`` all ``tokens`` of every image were kept.
    """
    path = os.environ.get(TRACE)
    if not path:
        return
    chosen = (
        [(list(range(count)), [False] * count) for count in tokens]
        if selections is None
        else [(one.indices.tolist(), one.guided.tolist()) for one in selections]
    )
    with Path(path).open("a", encoding="utf-8") as file:
        for order, ids, (kept, guided) in zip(orders, text_ids, chosen, strict=True):
            line = {
                "method": order.pruner.name,
                "parameters": order.pruner.model_dump(),
                "budget": order.budget,
                "layer": order.layer,
                "text_ids": ids.tolist(),
                "kept": kept,
                "guided": guided,
            }
            file.write(json.dumps(line) + "\n")
