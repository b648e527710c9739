"""Prompts of SAM from an engine, whether it pools or generates."""

from collections.abc import AsyncGenerator
from typing import Any

import torch
from torch import Tensor
from vllm.engine.protocol import EngineClient
from vllm.pooling_params import PoolingParams
from vllm.utils import random_uuid

from vllm_litelvlm.grounding.layout import POOLING_TASK, seg_token_index
from vllm_litelvlm.plugin.endpoints.protocol import MasksUsage
from vllm_litelvlm.plugin.endpoints.together import together
from vllm_litelvlm.plugin.pointing import POINTING, cuts, pointing_params


class EnginePrompts:
    """Asks an engine for the states that predict [SEG], projected.

    A pooling engine gives all of a conversation at once. A generating one is asked for each by
    itself: the conversation up to there, and one token. Most of that is in its prefix cache.

    Args:
        engine: of a model with [SEG].
    """

    def __init__(self, engine: EngineClient) -> None:
        self._engine, self._config = engine, engine.model_config
        self._pools = self._config.runner_type == "pooling"
        self._seg_token = seg_token_index(self._config.hf_config)

    async def of(self, conversation: Any, count: int, adapter: Any) -> tuple[Tensor, MasksUsage]:
        """SAM's prompts of the last [SEG]s, float32 [count, prompt width].

        Args:
            conversation: rendered for the engine, up to the token that predicts the last of them.
            count: how many, from 1.
            adapter: a LoRA's request, or None.
        """
        if self._pools:
            # Several rows, of which vLLM's prefix cache may have hidden some: all are computed.
            parameters = PoolingParams(task=POOLING_TASK, skip_reading_prefix_cache=count > 1)
            parameters.verify(self._config)
            rows, used = await self._asked(conversation, parameters, "masks-", adapter)
            return rows[len(rows) - count :], used
        answers = await together(
            self._asked(one, pointing_params(), POINTING, adapter)
            for one in cuts(conversation, count, self._seg_token)
        )
        # The last one is the conversation, and has the others in it.
        return torch.stack([row for row, _ in answers]), answers[-1][1]

    async def _asked(
        self, prompt: Any, parameters: Any, name: str, adapter: Any
    ) -> tuple[Tensor, MasksUsage]:
        """What the engine gives for a prompt: rows, or one row."""
        # For vLLM both are requests whose output is a tensor.
        outputs = self._engine.encode(
            prompt, parameters, f"{name}{random_uuid()}", lora_request=adapter
        )
        output = await _last(outputs)
        used = MasksUsage(
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )
        return output.outputs.data.float(), used


async def _last(outputs: AsyncGenerator[Any, None]) -> Any:
    """The final one."""
    final = None
    async for output in outputs:
        final = output
    return final
