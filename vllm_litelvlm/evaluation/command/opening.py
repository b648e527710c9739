"""Opens what answers: a server that is started here, one that runs, or plain transformers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

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
    options = {"positions": "original"} if settings.original_positions else {}
    arguments = [
        *([f"--dtype={settings.dtype}"] if settings.dtype else []),
        *settings.extra_arguments,
    ]
    if settings.backend == "engine":
        yield _engine(settings, options, arguments, console)
        return
    with ExitStack() as running:
        url = settings.url
        if url is None:
            log = settings.output / "server.log"
            command = f"vllm serve {settings.model} --plugin litelvlm"
            with console.status(f"Starting {command} (log: {log}) ..."):
                server = serve(
                    str(settings.model),
                    log=log,
                    clip_model=settings.clip_model,
                    options=options,
                    arguments=arguments,
                )
                url = running.enter_context(server).url
        yield from _ask_server(url, settings)


def _ask_server(url: str, settings: Settings) -> Iterator[Backend]:
    try:
        from openai import OpenAIError

        from vllm_litelvlm.evaluation.server_backend import ServerBackend
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise EvaluationError(
            "a server is asked with openai; install it: pip install 'vllm-litelvlm[evaluate]'"
        ) from None
    try:
        yield ServerBackend(url, settings.concurrent)
    except OpenAIError as error:
        raise EvaluationError(
            f"The server at {url} did not answer: {error}. --resume goes on from here."
        ) from error


def _engine(
    settings: Settings, options: Mapping[str, str], arguments: Sequence[str], console: Console
) -> Backend:
    from vllm_litelvlm.evaluation.engine_backend import EngineBackend

    assert settings.model is not None
    if settings.clip_model is not None:
        options = {**options, "clip_model": settings.clip_model}
    with console.status(f"Starting vLLM's engine with {settings.model} ..."):
        return EngineBackend(settings.model, options, arguments)


def _transformers(settings: Settings, console: Console) -> Backend:
    import torch

    from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend

    assert settings.model is not None
    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    with console.status(f"Loading {settings.model} ..."):
        return TransformersBackend(settings.model, settings.clip_model, dtype)
