"""``POST /v1/masks``: from a picture and expressions to masks.

The engine gives a prompt of SAM for each expression, by a conversation that answers it with [SEG];
SAM makes masks of them here, in threads.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from aiohttp import ClientError
from PIL import Image
from torch import Tensor
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.pooling.base import serving
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.pooling_params import PoolingParams
from vllm.renderers import ChatParams
from vllm.utils import random_uuid

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.grounding.conversation import asking_ids, conversations, rounds
from vllm_litelvlm.grounding.layout import POOLING_TASK
from vllm_litelvlm.grounding.segmenter import Segmenter
from vllm_litelvlm.plugin.conversation import CONVERSATION_KEY
from vllm_litelvlm.plugin.endpoints.protocol import (
    MaskData,
    MasksRequest,
    MasksResponse,
    MasksUsage,
)
from vllm_litelvlm.plugin.metrics import count_masks
from vllm_litelvlm.plugin.refusal import FIELD

#: SAM computes on all cores, or on one GPU: more threads than two would wait for each other.
_THREADS = 2
#: Of a request: each has a decoded picture.
_FRAMES_AT_ONCE = 4
#: What fetching a picture raises that is nobody's fault but the link's.
_UNFETCHED = (
    ClientError,
    Image.DecompressionBombError,
    OSError,
    RuntimeError,
    SyntaxError,
    TimeoutError,
)
_T = TypeVar("_T")


class ServingMasks(BaseServing):
    """Answers requests for masks.

    Args:
        engine: a pooling engine.
        models: by the names that they are served under.
        chat_params: how the server renders messages.
        segmenter: of the model's checkpoint.
        trusts: whether requests may have arguments of vLLM's own for the processor.
    """

    def __init__(
        self,
        engine: EngineClient,
        models: OpenAIServingModels,
        chat_params: ChatParams,
        segmenter: Segmenter,
        *,
        trusts: bool,
    ) -> None:
        super().__init__(models, engine.model_config)
        self._engine, self._renderer = engine, engine.renderer
        self._chat_params, self._segmenter = chat_params, segmenter
        self._trusts = trusts
        self._tokens = self._renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        self._threads = ThreadPoolExecutor(_THREADS, "litelvlm-sam")

    async def __call__(self, request: MasksRequest) -> MasksResponse | ErrorResponse:
        """Masks, frame by frame; the prompts of a few frames are in the engine at a time."""
        serving.validate_request_mm_kwargs(
            mm_processor_kwargs=request.mm_processor_kwargs,
            media_io_kwargs=None,
            trust_request_mm_kwargs=self._trusts,
        )
        wrong = await self._check_model(request)
        if wrong is not None:
            return wrong
        adapter = self.models.lora_requests.get(request.model or "")
        turn = asyncio.Semaphore(_FRAMES_AT_ONCE)

        async def one_frame(number: int, link: str) -> tuple[list[MaskData], MasksUsage]:
            async with turn:
                return await self._frame(request, adapter, number, link)

        answered = await _all(one_frame(*frame) for frame in enumerate(request.frames))
        return MasksResponse(
            model=self.models.model_name(adapter),
            data=[one for data, _ in answered for one in data],
            usage=_sum(used for _, used in answered),
        )

    async def _frame(
        self, request: MasksRequest, adapter: Any, number: int, link: str
    ) -> tuple[list[MaskData], MasksUsage]:
        """All masks of a picture, which is fetched once."""
        asked = conversations(request.expressions, request.conversation)
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": link}}
        try:
            first = await self._render(part, asked[0])
        except _UNFETCHED as error:
            raise VLLMValidationError(
                f"The picture at {link[:200]!r} cannot be fetched ({error}). Give a URL that this "
                "server reaches, or a data URL.",
                parameter="image",
            ) from error
        fetched = first["multi_modal_data"]
        picture = _picture(fetched["image"])
        part = {"type": "image_pil", "image_pil": picture}
        prompts = [first, *[await self._render(part, together) for together in asked[1:]]]
        for prompt in prompts:
            prompt["multi_modal_data"] = fetched
        pooled = await _all(
            self._prompts(request, adapter, prompt, together)
            for prompt, together in zip(prompts, asked, strict=True)
        )
        rows = torch.cat([one for one, _ in pooled])
        started = time.perf_counter()
        data = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._masks, request, number, picture, rows
        )
        count_masks(len(data), time.perf_counter() - started, self._segmenter.features)
        return data, _sum(used for _, used in pooled)

    async def _render(self, part: dict[str, Any], expressions: Sequence[str]) -> Any:
        """The tokens of a conversation, up to what predicts its last [SEG], and its picture."""
        messages = rounds(part, expressions)
        _, rendered = await self._renderer.render_messages_async(messages, self._chat_params)
        [prompt] = await self._renderer.tokenize_prompts_async([rendered], self._tokens)
        ids, config = prompt["prompt_token_ids"], self.model_config.hf_config
        try:
            prompt["prompt_token_ids"] = asking_ids(ids, expressions, config)
        except OptionsError as error:
            raise VLLMValidationError(str(error), parameter="expressions") from error
        prompt.pop("prompt", None)
        prompt[CONVERSATION_KEY] = prompt[CONVERSATION_KEY].about(expressions)
        return prompt

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
                segmentation=mask.segmentation(request.format),
                bbox=mask.bbox,
                area=mask.area,
                score=mask.score,
            )
            for index, (expression, mask) in enumerate(zip(request.expressions, masks, strict=True))
        ]

    async def _prompts(
        self, request: MasksRequest, adapter: Any, prompt: Any, expressions: Sequence[str]
    ) -> tuple[Tensor, MasksUsage]:
        """SAM's prompts of one conversation, float32 [expressions, width]."""
        self._renderer._apply_prompt_extras([prompt], {FIELD: request.mm_processor_kwargs or {}})
        engine_input = await self._renderer.process_for_engine_async(
            prompt, time.time(), tok_params=self._tokens
        )
        # Several rows, of which vLLM's prefix cache may have hidden some: all are computed.
        parameters = PoolingParams(
            task=POOLING_TASK, skip_reading_prefix_cache=len(expressions) > 1
        )
        parameters.verify(self.model_config)
        name = f"masks-{random_uuid()}"
        output = await _last(
            self._engine.encode(engine_input, parameters, name, lora_request=adapter)
        )
        rows = output.outputs.data
        assert len(rows) == len(expressions)
        used = MasksUsage(
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )
        return rows.float(), used


async def _all(parts: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """What they give; where one fails the others end."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _sum(parts: Iterable[MasksUsage]) -> MasksUsage:
    used = list(parts)
    return MasksUsage(
        prompt_tokens=sum(one.prompt_tokens for one in used),
        cached_tokens=sum(one.cached_tokens for one in used),
    )


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
