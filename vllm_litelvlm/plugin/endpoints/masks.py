"""``POST /v1/masks``: from a picture and expressions, or from a conversation, to masks.

The engine gives a prompt of SAM for each [SEG]: of a conversation that answers the expressions with
it, or of the one that was had. SAM makes masks of them here, in threads.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.pooling.base import serving
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.renderers import ChatParams

from vllm_litelvlm.grounding.conversation import conversations
from vllm_litelvlm.grounding.segmenter import Segmenter
from vllm_litelvlm.plugin.endpoints.asking import Asking, pictures_of
from vllm_litelvlm.plugin.endpoints.had import Had
from vllm_litelvlm.plugin.endpoints.prompts import EnginePrompts
from vllm_litelvlm.plugin.endpoints.protocol import (
    MaskData,
    MasksRequest,
    MasksResponse,
    MasksUsage,
)
from vllm_litelvlm.plugin.endpoints.together import together
from vllm_litelvlm.plugin.metrics import count_masks

#: SAM computes on all cores, or on one GPU: more threads than two would wait for each other.
_THREADS = 2
#: Of a request: each has a decoded picture.
_FRAMES_AT_ONCE = 4


@dataclass(frozen=True)
class _Label:
    """What a mask is of, as it is answered."""

    index: int
    expression: str
    turn: int | None = None


class ServingMasks(BaseServing):
    """Answers requests for masks.

    Args:
        engine: of a model with [SEG].
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
        self._asking, self._engine_prompts = Asking(engine, chat_params), EnginePrompts(engine)
        self._segmenter, self._trusts = segmenter, trusts
        self._threads = ThreadPoolExecutor(_THREADS, "litelvlm-sam")

    @property
    def asking(self) -> Asking:
        """Renders requests as they are answered."""
        return self._asking

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

        if request.messages is not None:
            answered = [await self._conversation(request, adapter)]
        else:
            answered = await together(one_frame(*frame) for frame in enumerate(request.frames))
        return MasksResponse(
            model=self.models.model_name(adapter),
            data=[one for data, _ in answered for one in data],
            usage=MasksUsage.sum(used for _, used in answered),
        )

    async def _frame(
        self, request: MasksRequest, adapter: Any, number: int, link: str
    ) -> tuple[list[MaskData], MasksUsage]:
        """All masks of a picture, which is fetched once."""
        assert request.expressions is not None
        asked = conversations(request.expressions, request.conversation)
        prompts = await self._asking.about(link, asked)
        [picture] = pictures_of(prompts[0])

        async def rows(prompt: Any, count: int) -> tuple[Tensor, MasksUsage]:
            ready = await self._asking.processed(prompt, request.mm_processor_kwargs)
            return await self._engine_prompts.of(ready, count, adapter)

        given = await together(map(rows, prompts, map(len, asked)))
        labels = [_Label(*one) for one in enumerate(request.expressions)]
        return await self._masks(request, number, picture, given, labels)

    async def _conversation(
        self, request: MasksRequest, adapter: Any
    ) -> tuple[list[MaskData], MasksUsage]:
        """All masks of a conversation, which are of one picture of it."""
        had = await Had.read(self._asking, request)

        async def rows(prompt: Any, ids: list[int], count: int) -> tuple[Tensor, MasksUsage]:
            ready = await self._asking.processed(prompt, request.mm_processor_kwargs, ids)
            return await self._engine_prompts.of(ready, count, adapter)

        given = await together(
            rows(one.prompt, one.answer.ids, len(one.answer.names)) for one in had.turns
        )
        named = [(name, one.number) for one in had.turns for name in one.answer.names]
        labels = [_Label(index, *one) for index, one in enumerate(named)]
        return await self._masks(request, had.image, had.picture, given, labels)

    async def _masks(
        self,
        request: MasksRequest,
        frame: int,
        picture: Image.Image,
        given: list[tuple[Tensor, MasksUsage]],
        labels: list[_Label],
    ) -> tuple[list[MaskData], MasksUsage]:
        """Of SAM's prompts, in a thread."""
        rows = torch.cat([one for one, _ in given])
        started = time.perf_counter()
        data = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._made, request, frame, picture, rows, labels
        )
        count_masks(len(data), time.perf_counter() - started, self._segmenter.features)
        return data, MasksUsage.sum(used for _, used in given)

    def _made(
        self,
        request: MasksRequest,
        frame: int,
        picture: Image.Image,
        prompts: Tensor,
        labels: list[_Label],
    ) -> list[MaskData]:
        """In a thread: masks, and the form that is asked for."""
        masks = self._segmenter.masks(picture, prompts)
        return [
            MaskData(
                index=label.index,
                frame=frame,
                expression=label.expression,
                turn=label.turn,
                segmentation=mask.segmentation(request.format),
                bbox=mask.bbox,
                area=mask.area,
                score=mask.score,
            )
            for label, mask in zip(labels, masks, strict=True)
        ]
