"""The page's routes on vLLM's API server."""

from argparse import Namespace
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.endpoints.masks import ServingMasks
from vllm_litelvlm.plugin.endpoints.page.about import about
from vllm_litelvlm.plugin.endpoints.page.document import document, example, headers
from vllm_litelvlm.plugin.endpoints.page.kept import ServingKept
from vllm_litelvlm.plugin.endpoints.page.protocol import KeptRequest, KeptResponse
from vllm_litelvlm.plugin.served import is_ours

_ERROR: dict[str, Any] = {"model": ErrorResponse}


class PagePlugin:
    """``GET /litelvlm``; see :class:`vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = "litelvlm-page"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """The routes are there for every model, and answer 404 where there is no page.

        The page itself says nothing of the server; what does asks for the server's API key.
        """
        there, known = Depends(_is_there), Depends(_is_known)
        app.get("/litelvlm", dependencies=[there], response_class=HTMLResponse)(get_page)
        app.get("/litelvlm/examples/{file}", dependencies=[there])(get_example)
        app.get("/litelvlm/server", dependencies=[there, known])(get_server)
        answers: dict[int | str, dict[str, Any]] = {
            HTTPStatus.OK.value: {"model": KeptResponse},
            HTTPStatus.BAD_REQUEST.value: _ERROR,
        }
        needs = [there, known, Depends(validate_json_request)]
        app.post("/litelvlm/kept", dependencies=needs, responses=answers)(
            with_cancellation(post_kept)
        )

    async def init_state(
        self, engine_client: EngineClient | None, state: Any, args: Namespace
    ) -> None:
        """A page, unless the operator wants none or the model is none of ours.

        What answers with masks was made before.
        """
        state.litelvlm_page = None
        if engine_client is None or not is_ours(engine_client):
            return
        config = engine_client.model_config
        if not guidance_config(config.hf_config).server.page:
            return
        keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
        state.litelvlm_keys = AuthenticationMiddleware(get_page, keys) if keys else None
        masks: ServingMasks | None = state.litelvlm_masks
        state.litelvlm_page = ServingKept(
            engine_client,
            state.openai_serving_models,
            state.online_renderer,
            None if masks is None else masks.asking,
            trusts=bool(args.trust_request_mm_kwargs),
        )


def _is_there(request: Request) -> None:
    if getattr(request.app.state, "litelvlm_page", None) is None:
        raise HTTPException(HTTPStatus.NOT_FOUND.value)


def _is_known(request: Request) -> None:
    """By the key that vLLM asks for in front of its own API."""
    keys: AuthenticationMiddleware | None = request.app.state.litelvlm_keys
    if keys is not None and not keys.verify_token(request.headers):
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED.value, "This server wants its API key: Authorization: Bearer."
        )


async def get_page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(document(), headers=headers())


async def get_example(file: str) -> FileResponse:
    """A picture to begin with."""
    path = example(file)
    if path is None:
        raise HTTPException(HTTPStatus.NOT_FOUND.value)
    return FileResponse(path)


async def get_server(request: Request) -> JSONResponse:
    """What this server can do."""
    state = request.app.state
    models: OpenAIServingModels = state.openai_serving_models
    return JSONResponse(
        about(
            models,
            masks=state.litelvlm_masks is not None,
            words=models.model_config.runner_type == "generate",
        )
    )


async def post_kept(body: KeptRequest, raw_request: Request) -> JSONResponse:
    """Which tokens were kept of a request's pictures."""
    serving: ServingKept = raw_request.app.state.litelvlm_page
    answer = await serving(body)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    return JSONResponse(answer.model_dump())
