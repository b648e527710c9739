"""Prompts of SAM from a pooling engine: the states that predict [SEG], projected."""

from itertools import accumulate

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.pooler import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata

from vllm_litelvlm.grounding.layout import POOLING_TASK
from vllm_litelvlm.pruning.base import to_device

#: Where a request's pooling state has its rows.
_ROWS = "litelvlm_rows"


class SegPooler(Pooler):
    """A request's rows are one a [SEG] that a position predicts, in order.

    These are the positions before each [SEG] of the prompt, and the prompt's last: whoever wants
    the state that predicts a [SEG] cuts the prompt in front of it. Where vLLM reads the beginning
    of a prompt from its prefix cache, the rows that lie there are not computed, and are NaN.

    Args:
        projection: from states [rows, width] to prompts, float32 [rows, prompt width].
        seg_token: the id of [SEG].
    """

    def __init__(self, projection: nn.Module, seg_token: int) -> None:
        super().__init__()
        # The model's own part, which is to be loaded once.
        self._project = projection.forward
        self._seg_token = seg_token

    def get_supported_tasks(self) -> set[PoolingTask]:
        """One."""
        return {POOLING_TASK}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:
        """Token ids tell where [SEG] stands."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(
        self, hidden_states: Tensor, pooling_metadata: PoolingMetadata
    ) -> list[Tensor | None]:
        """Float32 [expressions, prompt width] a request that is complete; None for the others.

        Rows of a step are kept in the request's pooling state until its last step, by position: a
        request that was preempted comes by its first ones again.
        """
        cursor, states = pooling_metadata.get_pooling_cursor(), pooling_metadata.pooling_states
        ends, lengths = cursor.seq_lens_cpu.tolist(), cursor.num_scheduled_tokens_cpu.tolist()
        starts = [end - length for end, length in zip(ends, lengths, strict=True)]
        wanted = [self._positions(ids) for ids in pooling_metadata.get_prompt_token_ids_cpu()]
        inside = [
            [one for one in positions if start <= one < end]
            for positions, start, end in zip(wanted, starts, ends, strict=True)
        ]
        before = accumulate(lengths, initial=0)  # of the step's rows, one more than requests
        rows = [
            first + one - start
            for start, here, first in zip(starts, inside, before, strict=False)
            for one in here
        ]
        # A copy, so that nothing aliases the runner's buffer.
        found = iter(hidden_states.index_select(0, to_device(rows, hidden_states.device)))
        lost = hidden_states.new_full(hidden_states.shape[1:], torch.nan)
        results: list[Tensor | None] = []
        for state, positions, here, finished in zip(
            states, wanted, inside, cursor.get_finished_mask(), strict=True
        ):
            known: dict[int, Tensor] = vars(state).setdefault(_ROWS, {})
            known.update(zip(here, found, strict=False))
            if not finished:
                results.append(None)
                continue
            results.append(self._project(torch.stack([known.get(one, lost) for one in positions])))
            known.clear()
        return results

    def _positions(self, prompt: Tensor) -> list[int]:
        """Of a prompt's tokens, rising."""
        before = ((prompt[1:] == self._seg_token).nonzero()[:, 0]).tolist()
        return [*before, len(prompt) - 1]
