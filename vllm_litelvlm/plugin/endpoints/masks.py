"""``POST /v1/masks``: from a picture and expressions to masks.

The engine gives a prompt of SAM for each expression, by a conversation that answers it with [SEG];
SAM makes masks of them here, in threads.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from aiohttp import ClientError
from PIL import Image
from torch import Tensor
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.pooling_params import PoolingParams
from vllm.renderers import ChatParams
from vllm.utils import random_uuid

from vllm_litelvlm.grounding.conversation import before_last, conversations, rounds
from vllm_litelvlm.grounding.layout import seg_token_index
from vllm_litelvlm.grounding.masks import Mask, RunLengths
from vllm_litelvlm.grounding.segmenter import Segmenter
from vllm_litelvlm.options import OPTIONS_KEY
from vllm_litelvlm.plugin.endpoints.protocol import (
    MaskData,
    MasksRequest,
    MasksResponse,
    MasksUsage,
)
from vllm_litelvlm.plugin.metrics import count_masks
from vllm_litelvlm.plugin.models.seg_pooler import TASK
from vllm_litelvlm.plugin.refusal import FIELD

#: SAM computes on all cores, or on one GPU: more threads than two would wait for each other.
_THREADS = 2


class ServingMasks(BaseServing):
    """Answers requests for masks.

    Args:
        engine: a pooling engine.
        models: by the names that they are served under.
        chat_params: how the server renders messages.
        segmenter: of the model's checkpoint.
    """

    def __init__(
        self,
        engine: EngineClient,
        models: OpenAIServingModels,
        chat_params: ChatParams,
        segmenter: Segmenter,
    ) -> None:
        super().__init__(models, engine.model_config)
        self._engine, self._renderer = engine, engine.renderer
        self._chat_params, self._segmenter = chat_params, segmenter
        self._seg_token = seg_token_index(engine.model_config.hf_config)
        self._threads = ThreadPoolExecutor(_THREADS, "litelvlm-sam")

    async def __call__(self, request: MasksRequest) -> MasksResponse | ErrorResponse:
        """Masks, frame by frame; all prompts are in the engine at the same time."""
        wrong = await self._check_model(request)
        if wrong is not None:
            return wrong
        frames = [self._frame(request, link) for link in request.frames]
        answered = await asyncio.gather(*frames)
        data = [
            MaskData(
                index=index,
                frame=frame,
                expression=expression,
                segmentation=_plain(mask.segmentation(request.format)),
                bbox=mask.bbox,
                area=mask.area,
                score=mask.score,
            )
            for frame, (masks, _) in enumerate(answered)
            for index, (expression, mask) in enumerate(zip(request.expressions, masks, strict=True))
        ]
        usage = MasksUsage(
            prompt_tokens=sum(used.prompt_tokens for _, used in answered),
            cached_tokens=sum(used.cached_tokens for _, used in answered),
        )
        return MasksResponse(model=self.models.model_name(), data=data, usage=usage)

    async def _frame(self, request: MasksRequest, link: str) -> tuple[list[Mask], MasksUsage]:
        """All masks of a picture."""
        asked = [
            self._prompts(request, link, together)
            for together in conversations(request.expressions, request.conversation)
        ]
        answered = await asyncio.gather(*asked)
        picture = answered[0][0]
        prompts = torch.cat([rows for _, rows, _ in answered])
        started = time.perf_counter()
        masks = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._segmenter.masks, picture, prompts
        )
        features = self._segmenter.features
        count_masks(len(masks), time.perf_counter() - started, features.queries, features.hits)
        usage = MasksUsage(
            prompt_tokens=sum(used.prompt_tokens for _, _, used in answered),
            cached_tokens=sum(used.cached_tokens for _, _, used in answered),
        )
        return masks, usage

    async def _prompts(
        self, request: MasksRequest, link: str, expressions: Sequence[str]
    ) -> tuple[Image.Image, Tensor, MasksUsage]:
        """The picture, and SAM's prompts of one conversation, float32 [expressions, width]."""
        part = {"type": "image_url", "image_url": {"url": link}}
        messages = rounds(part, expressions)
        try:
            _, rendered = await self._renderer.render_messages_async(messages, self._chat_params)
        except (ClientError, OSError, RuntimeError, TimeoutError) as error:
            raise VLLMValidationError(
                f"The picture at {link[:200]!r} cannot be fetched ({error}). Give a URL that this "
                "server reaches, or a data URL.",
                parameter="image",
            ) from error
        tokens = self._renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        [prompt] = await self._renderer.tokenize_prompts_async([rendered], tokens)
        prompt["prompt_token_ids"] = before_last(self._seg_token, prompt["prompt_token_ids"])
        prompt.pop("prompt", None)
        picture = _picture(prompt["multi_modal_data"]["image"])
        field = request.mm_processor_kwargs or {}
        options = field.get(OPTIONS_KEY)
        if options is None or isinstance(options, dict):
            field = {**field, OPTIONS_KEY: {"texts": list(expressions), **(options or {})}}
        self._renderer._apply_prompt_extras([prompt], {FIELD: field})
        engine_input = await self._renderer.process_for_engine_async(
            prompt, time.time(), tok_params=tokens
        )
        # Several rows, of which vLLM's prefix cache may have hidden some: all are computed.
        parameters = PoolingParams(task=TASK, skip_reading_prefix_cache=len(expressions) > 1)
        parameters.verify(self.model_config)
        output = await _last(
            self._engine.encode(engine_input, parameters, f"masks-{random_uuid()}")
        )
        rows = output.outputs.data
        assert len(rows) == len(expressions)
        used = MasksUsage(
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )
        return picture, rows.float(), used


def _plain(segmentation: RunLengths | str | list[list[int]]) -> dict[str, Any] | str | list[Any]:
    """As JSON has it."""
    return dict(segmentation) if isinstance(segmentation, dict) else segmentation


def _picture(given: Any) -> Image.Image:
    """The one image of a prompt."""
    [image] = given if isinstance(given, list) else [given]
    decoded: Image.Image = image.media if isinstance(image, MediaWithBytes) else image
    return decoded


async def _last(outputs: AsyncGenerator[Any, None]) -> Any:
    """The final one."""
    final = None
    async for output in outputs:
        final = output
    return final
