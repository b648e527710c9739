"""``POST /v1/masks``: from a picture and expressions to masks.

The engine gives a prompt of SAM for each expression, by a conversation that answers it with [SEG];
SAM makes masks of them here, in threads.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
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
from vllm_litelvlm.grounding.layout import SEG_TOKEN, seg_token_index
from vllm_litelvlm.grounding.masks import RunLengths
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
        config = engine.model_config.hf_config
        self._seg_token, self._image_token = seg_token_index(config), config.image_token_index
        self._threads = ThreadPoolExecutor(_THREADS, "litelvlm-sam")

    async def __call__(self, request: MasksRequest) -> MasksResponse | ErrorResponse:
        """Masks, frame by frame; all prompts are in the engine at the same time."""
        wrong = await self._check_model(request)
        if wrong is not None:
            return wrong
        adapter = self.models.lora_requests.get(request.model or "")
        frames = [
            self._frame(request, adapter, frame, link) for frame, link in enumerate(request.frames)
        ]
        answered = await asyncio.gather(*frames)
        return MasksResponse(
            model=self.models.model_name(adapter),
            data=[one for data, _ in answered for one in data],
            usage=_sum(used for _, used in answered),
        )

    async def _frame(
        self, request: MasksRequest, adapter: Any, frame: int, link: str
    ) -> tuple[list[MaskData], MasksUsage]:
        """All masks of a picture."""
        asked = [
            self._prompts(request, adapter, link, together)
            for together in conversations(request.expressions, request.conversation)
        ]
        answered = await asyncio.gather(*asked)
        picture = answered[0][0]
        prompts = torch.cat([rows for _, rows, _ in answered])
        started = time.perf_counter()
        data = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._masks, request, frame, picture, prompts
        )
        features = self._segmenter.features
        count_masks(len(data), time.perf_counter() - started, features.queries, features.hits)
        return data, _sum(used for _, _, used in answered)

    def _masks(
        self, request: MasksRequest, frame: int, picture: Image.Image, prompts: Tensor
    ) -> list[MaskData]:
        """In a thread: masks, and the form that is asked for."""
        masks = self._segmenter.masks(picture, prompts)
        return [
            MaskData(
                index=index,
                frame=frame,
                expression=expression,
                segmentation=_plain(mask.segmentation(request.format)),
                bbox=mask.bbox,
                area=mask.area,
                score=mask.score,
            )
            for index, (expression, mask) in enumerate(zip(request.expressions, masks, strict=True))
        ]

    async def _prompts(
        self, request: MasksRequest, adapter: Any, link: str, expressions: Sequence[str]
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
        ids = prompt["prompt_token_ids"]
        if ids.count(self._seg_token) != len(expressions) or ids.count(self._image_token) != 1:
            raise VLLMValidationError(
                f"Among the expressions {list(expressions)!r:.300} are special tokens of the "
                f"model, such as {SEG_TOKEN}; leave those out.",
                parameter="expressions",
            )
        prompt["prompt_token_ids"] = before_last(self._seg_token, ids)
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
            self._engine.encode(
                engine_input, parameters, f"masks-{random_uuid()}", lora_request=adapter
            )
        )
        rows = output.outputs.data
        assert len(rows) == len(expressions)
        used = MasksUsage(
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )
        return picture, rows.float(), used


def _sum(parts: Iterable[MasksUsage]) -> MasksUsage:
    used = list(parts)
    return MasksUsage(
        prompt_tokens=sum(one.prompt_tokens for one in used),
        cached_tokens=sum(one.cached_tokens for one in used),
    )


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
