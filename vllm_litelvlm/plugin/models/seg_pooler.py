"""Prompts of SAM from a pooling engine: the states that predict [SEG], projected."""

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.pooler import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata

from vllm_litelvlm.pruning.base import to_device

#: The task that both model runners serve and that opens no endpoint of vLLM's beside ``/pooling``.
TASK: PoolingTask = "token_classify"


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
        return {TASK}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:
        """Token ids tell where [SEG] stands."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(
        self, hidden_states: Tensor, pooling_metadata: PoolingMetadata
    ) -> list[Tensor | None]:
        """Float32 [expressions, prompt width] a request that is complete; None for the others.

        Rows of a step are kept in the request's pooling state until its last step.
        """
        cursor, states = pooling_metadata.get_pooling_cursor(), pooling_metadata.pooling_states
        prompts = pooling_metadata.get_prompt_token_ids_cpu()
        wanted = [self._positions(prompt) for prompt in prompts]
        rows, counts, first = [], [], 0
        ends, lengths = cursor.seq_lens_cpu.tolist(), cursor.num_scheduled_tokens_cpu.tolist()
        for positions, end, length in zip(wanted, ends, lengths, strict=True):
            start = end - length
            inside = [first + one - start for one in positions if start <= one < end]
            rows += inside
            counts.append(len(inside))
            first += length
        # A copy, so that nothing aliases the runner's buffer.
        found = hidden_states.index_select(0, to_device(rows, hidden_states.device)).split(counts)
        results: list[Tensor | None] = []
        for state, part, positions, finished in zip(
            states, found, wanted, cursor.get_finished_mask(), strict=True
        ):
            state.hidden_states_cache.append(part)
            if not finished:
                results.append(None)
                continue
            projected = self._project(torch.cat(state.hidden_states_cache))
            state.clean()
            missing = len(positions) - len(projected)
            lost = projected.new_full((missing, projected.shape[1]), torch.nan)
            results.append(torch.cat([lost, projected]))
        return results

    def _positions(self, prompt: Tensor) -> list[int]:
        """Of a prompt's tokens, rising."""
        before = ((prompt[1:] == self._seg_token).nonzero()[:, 0]).tolist()
        return [*before, len(prompt) - 1]
