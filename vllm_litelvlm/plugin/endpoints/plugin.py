"""Our routes on vLLM's API server, of models that answer with masks."""

import asyncio
from argparse import Namespace
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import (
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vllm.exceptions import VLLMValidationError
from vllm.renderers import ChatParams

from vllm_litelvlm.grounding.layout import ARCHITECTURE
from vllm_litelvlm.grounding.segmenter import Segmenter
from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.endpoints.masks import ServingMasks
from vllm_litelvlm.plugin.endpoints.protocol import MasksRequest, MasksResponse

_ERROR: dict[str, Any] = {"model": ErrorResponse}


class MasksPlugin:
    """``POST /v1/masks``; see :class:`vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = "litelvlm-masks"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """The route is there for every model, and says what is missing where one has no [SEG]."""
        answers: dict[int | str, dict[str, Any]] = {
            HTTPStatus.OK.value: {"model": MasksResponse},
            HTTPStatus.BAD_REQUEST.value: _ERROR,
        }
        decorated = with_cancellation(load_aware_call(create_masks))
        app.post("/v1/masks", dependencies=[Depends(validate_json_request)], responses=answers)(
            decorated
        )

    async def init_state(
        self, engine_client: EngineClient | None, state: Any, args: Namespace
    ) -> None:
        """Load SAM where the model has one."""
        state.litelvlm_masks = None
        if engine_client is None:
            return
        config = engine_client.model_config
        if ARCHITECTURE not in config.architectures:
            return
        server = guidance_config(config.hf_config).server
        segmenter = await asyncio.to_thread(
            Segmenter.load,
            config.model,
            config.revision,
            server.sam_device,
            server.sam_cache_gb,
            getattr(args, "api_server_count", None) or 1,
        )
        renderer, multimodal = state.online_renderer, config.multimodal_config
        chat = ChatParams(
            renderer.chat_template, renderer.chat_template_content_format
        ).with_defaults(
            renderer.default_chat_template_kwargs,
            multimodal.media_io_kwargs if multimodal is not None else None,
        )
        models = state.openai_serving_models
        trusts = bool(args.trust_request_mm_kwargs)
        state.litelvlm_masks = ServingMasks(engine_client, models, chat, segmenter, trusts=trusts)


async def create_masks(request: MasksRequest, raw_request: Request) -> JSONResponse:
    """Masks of what expressions refer to in a picture, or of what a conversation points at."""
    serving: ServingMasks | None = raw_request.app.state.litelvlm_masks
    if serving is None:
        raise VLLMValidationError(
            "This server does not answer with masks. That takes a checkpoint with the token [SEG] "
            f"and a SAM ({ARCHITECTURE}).",
            parameter="model",
        )
    answer = await serving(request)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    return JSONResponse(answer.model_dump())
