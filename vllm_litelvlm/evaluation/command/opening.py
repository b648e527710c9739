"""Opens what answers: a server that is started here, one that runs, or plain transformers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from vllm_litelvlm.evaluation.backend import Backend
from vllm_litelvlm.evaluation.command.settings import EvaluationError, Settings


class Served(Protocol):
    """A running server."""

    @property
    def url(self) -> str:
        """Its root, without ``/v1``."""


class Serve(Protocol):
    """Starts ``vllm serve --plugin litelvlm`` for as long as a ``with`` block lasts."""

    def __call__(
        self,
        model: str,
        *,
        log: Path,
        clip_model: str | None,
        options: Mapping[str, object],
        arguments: Sequence[str],
    ) -> AbstractContextManager[Served]:
        """Serve a model, with options of the plugin and further arguments of ``vllm serve``.

        Its output goes to ``log``.
        """


@contextmanager
def open_backend(settings: Settings, serve: Serve, console: Console) -> Iterator[Backend]:
    """The backend that the settings name.

    Raises EvaluationError where the server at ``--url`` does not answer, and what ``serve`` raises
    where none starts.
    """
    if settings.backend == "transformers":
        yield _transformers(settings, console)
        return
    if settings.backend == "engine":
        yield _engine(settings, console)
        return
    with running_server(settings, serve, console) as url, client_errors_told(url):
        from vllm_litelvlm.evaluation.server_backend import ServerBackend

        yield ServerBackend(url, settings.concurrent)


@contextmanager
def running_server(
    settings: Settings, serve: Serve, console: Console, *arguments: str
) -> Iterator[str]:
    """The root of the server at ``--url``, or of one that is started with further arguments."""
    if settings.url is not None:
        yield settings.url
        return
    log = settings.output / "server.log"
    command = f"vllm serve {settings.model} --plugin litelvlm"
    with ExitStack() as running:
        with console.status(f"Starting {command} (log: {log}) ..."):
            server = serve(
                str(settings.model),
                log=log,
                clip_model=settings.clip_model,
                options=_plugin_options(settings),
                arguments=[*arguments, *_arguments(settings)],
            )
            url = running.enter_context(server).url
        yield url


@contextmanager
def client_errors_told(url: str) -> Iterator[None]:
    """Raise EvaluationError where the client is missing or the server does not answer."""
    try:
        from openai import OpenAIError
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise EvaluationError(
            "a server is asked with openai; install it: pip install 'vllm-litelvlm[evaluate]'"
        ) from None
    try:
        yield
    except OpenAIError as error:
        raise EvaluationError(
            f"The server at {url} did not answer: {str(error).rstrip('.')}. --resume goes on from "
            "here."
        ) from error


def engine_of(settings: Settings, console: Console, *arguments: str) -> Any:
    """vLLM's offline class with the settings' model, and with further arguments."""
    from vllm_litelvlm.evaluation.engine_backend import start_engine

    with _starting(settings, console):
        return start_engine(*_engine_arguments(settings, *arguments))


def _engine(settings: Settings, console: Console) -> Backend:
    from vllm_litelvlm.evaluation.engine_backend import EngineBackend

    with _starting(settings, console):
        return EngineBackend(*_engine_arguments(settings))


def _starting(settings: Settings, console: Console) -> AbstractContextManager[object]:
    return console.status(f"Starting vLLM's engine with {settings.model} ...")


def _engine_arguments(
    settings: Settings, *arguments: str
) -> tuple[str, Mapping[str, str], list[str]]:
    assert settings.model is not None
    options = _plugin_options(settings)
    if settings.clip_model is not None:
        options = {**options, "clip_model": settings.clip_model}
    return settings.model, options, [*arguments, *_arguments(settings)]


def _plugin_options(settings: Settings) -> Mapping[str, str]:
    return {"positions": "original"} if settings.original_positions else {}


def _arguments(settings: Settings) -> list[str]:
    """Those of ``vllm serve``."""
    dtype = [f"--dtype={settings.dtype}"] if settings.dtype else []
    return [*dtype, *settings.extra_arguments]


def _transformers(settings: Settings, console: Console) -> Backend:
    import torch

    from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend

    assert settings.model is not None
    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    with console.status(f"Loading {settings.model} ..."):
        return TransformersBackend(settings.model, settings.clip_model, dtype)
