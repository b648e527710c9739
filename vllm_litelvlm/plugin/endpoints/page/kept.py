"""``POST /litelvlm/kept``: which tokens the engine kept of a request's pictures.

The request is prepared as if it were to be answered. That gives the names under which vLLM caches
what became of its pictures, by which the workers remember what they kept.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.pooling.base import serving
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.exceptions import VLLMValidationError
from vllm.renderers.online_renderer import OnlineRenderer

from vllm_litelvlm.grounding.conversation import conversations
from vllm_litelvlm.options import parse_request_options
from vllm_litelvlm.plugin.asked import noted
from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.endpoints.asking import Asking
from vllm_litelvlm.plugin.endpoints.page.protocol import (
    Grid,
    KeptChat,
    KeptData,
    KeptMasks,
    KeptResponse,
    Size,
)
from vllm_litelvlm.plugin.inquiry import ask
from vllm_litelvlm.plugin.refusal import refusals
from vllm_litelvlm.plugin.served import family_of
from vllm_litelvlm.pruning.order import Layer
from vllm_litelvlm.vision.frame import Frame, shown


class Prepared(NamedTuple):
    """A prompt of a request: the names of its items, in order.

    ``picture`` is the number of its first. ``expressions``: of a conversation that asks for masks.
    """

    names: list[str]
    picture: int = 0
    expressions: Sequence[str] | None = None


class ServingKept(BaseServing):
    """Answers what was kept.

    Args:
        engine: any.
        models: by the names that they are served under.
        renderer: of the server.
        asking: renders requests for masks; None where there are none.
        trusts: whether requests may have arguments of vLLM's own for the processor.
    """

    def __init__(
        self,
        engine: EngineClient,
        models: OpenAIServingModels,
        renderer: OnlineRenderer,
        asking: Asking | None,
        *,
        trusts: bool,
    ) -> None:
        super().__init__(models, engine.model_config)
        self._engine, self._online, self._renderer = engine, renderer, engine.renderer
        self._asking, self._trusts = asking, trusts
        self._traits = family_of(self.model_config).traits(self.model_config.hf_config)

    async def __call__(self, request: KeptMasks | KeptChat) -> KeptResponse | ErrorResponse:
        """Of every picture, conversation by conversation."""
        wrong = await self._check_model(request)
        if wrong is not None:
            return wrong
        adapter = self.models.lora_requests.get(request.model or "")
        if isinstance(request, KeptMasks):
            prepared = await self._masks(request)
        else:
            rendered = await self._online.render_chat(request)
            if isinstance(rendered, ErrorResponse):
                return rendered
            prepared = [Prepared(_names(one)) for one in rendered[1]]
        frame, sizes = self._frame(), request.sizes or []
        names = [one.names for one in prepared]
        told = iter(await self._told([name for of_one in names for name in of_one]))
        data = []
        for one in prepared:
            items = [next(told) for _ in one.names]
            for number, kept in enumerate(_pictures(items)):
                kept.picture = one.picture + number
                kept.expressions = None if one.expressions is None else [*one.expressions]
                if kept.grid is not None and kept.picture < len(sizes):
                    kept.grid.box = self._box(sizes[kept.picture], frame)
                data.append(kept)
        return KeptResponse(model=self.models.model_name(adapter), data=data)

    async def _masks(self, request: KeptMasks) -> list[Prepared]:
        """Of every conversation about every picture, as a request for masks has them."""
        serving.validate_request_mm_kwargs(
            mm_processor_kwargs=request.mm_processor_kwargs,
            media_io_kwargs=None,
            trust_request_mm_kwargs=self._trusts,
        )
        if self._asking is None:
            raise VLLMValidationError(
                "This server does not answer with masks, so nothing was kept for them; ask about "
                "the messages of a chat.",
                parameter="expressions",
            )
        expressions = request.expressions or []
        prepared = []
        for number, link in enumerate(request.frames):
            asked = conversations(expressions, request.conversation)
            for prompt, those in zip(await self._asking.about(link, asked), asked, strict=True):
                ready = await self._asking.processed(prompt, request.mm_processor_kwargs)
                prepared.append(Prepared(_names(ready), number, those))
        return prepared

    async def _told(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
        """What the workers remember of items; None of what they do not."""
        if not names:
            return []
        engines = await ask(self._engine, "litelvlm_kept", list(names))
        return [next(filter(None, told), None) for told in zip(*engines, strict=True)]

    def _frame(self) -> Frame:
        """By the options of the request that was checked last in this task."""
        asked, server = noted(), guidance_config(self.model_config.hf_config).server
        with refusals():
            return parse_request_options(asked.options, server.of(asked.variant)).frame

    @cached_property
    def _image_processor(self) -> Any:
        return self._renderer.mm_processor.info.get_hf_processor().image_processor

    def _box(self, size: Size, frame: Frame) -> tuple[float, float, float, float]:
        """As :attr:`Grid.box`."""
        if not self._traits.crops:
            return 0.0, 0.0, float(size[0]), float(size[1])
        left, top, right, bottom = shown(size, frame, self._image_processor)
        return left, top, right - left, bottom - top


def _names(engine_input: Any) -> list[str]:
    """Of the items of a prompt as the engine gets it, in order."""
    hashes = engine_input.get("mm_hashes") or {}
    return [name for modality in hashes.values() for name in modality]


def _pictures(items: Sequence[dict[str, Any] | None]) -> list[KeptData]:
    """Of a prompt's items; those of a second layer belong to an earlier one's picture."""
    known = [one for one in items if one is not None]
    if len(known) < len(items) and any(one["layer"] != Layer.WHOLE for one in known):
        # What is missing may be a layer of any of them.
        first = [one for one in known if one["layer"] != Layer.FOCUS]
        return [KeptData() for _ in first or items[:1]]
    found: list[tuple[str, KeptData]] = []
    for one in items:
        if one is None:
            found.append(("", KeptData()))
        elif one["layer"] == Layer.FOCUS:
            for data in (data for picture, data in found if picture == one["picture"]):
                _add(data, one)
        else:
            found.append((one["picture"], _begun(one)))
    return [data for _, data in found]


def _begun(told: dict[str, Any]) -> KeptData:
    """A picture as its first layer, or its only one, leaves it."""
    grid = None
    if told["shape"] is not None:
        frames, rows, columns = told["shape"]
        grid = Grid(frames=frames, rows=rows, columns=columns)
    return KeptData(
        remembered=True,
        method=told["method"],
        tokens=told["tokens"],
        grid=grid,
        kept=told["kept"],
        guided=told["guided"],
    )


def _add(data: KeptData, told: dict[str, Any]) -> None:
    """What another layer keeps of the same picture; other turns may have kept some of it too."""
    there = set(data.kept)
    for place, guided in zip(told["kept"], told["guided"], strict=True):
        if place not in there:
            data.kept.append(place)
            data.guided.append(guided)
