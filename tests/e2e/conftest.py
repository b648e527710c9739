"""Real servers, shared by the tests of a session."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.reference import Reference
from tests.e2e.runners import V1, V2, Runner
from tests.e2e.stock import Stock
from tests.e2e.workplace import Workplace, saved
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend

ARGUMENTS = [
    "--served-model-name=model",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=4096",
    "--max-num-seqs=16",
    '--limit-mm-per-prompt={"image": 4}',
    "--enable-mm-embeds",
]


def pytest_configure() -> None:
    """Several servers are up at a time, and a GiB holds a million tokens of the tiny checkpoint."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.e2e.scheduling import ByServer

    return ByServer(config, log) if config.getvalue("dist") == "loadfile" else None


@dataclass(frozen=True)
class TracedServer:
    """A server with the plugin, whose selections a test can read."""

    url: str
    trace: Path

    def selections(self) -> list[dict[str, Any]]:
        if not self.trace.exists():
            return []
        return [json.loads(line) for line in self.trace.read_text().splitlines()]

    def forget(self) -> None:
        """Empty the processor, encoder and prefix caches."""
        for cache in ("mm", "encoder", "prefix"):
            httpx.post(f"{self.url}/reset_{cache}_cache", timeout=60).raise_for_status()


@pytest.fixture(scope="session", params=[V1, V2], ids=str)
def runner(request: pytest.FixtureRequest) -> Runner:
    """Whatever needs this runs on both of vLLM's model runners."""
    found = request.param
    assert isinstance(found, Runner)
    return found


@contextmanager
def traced_server(
    runner: Runner,
    checkpoint: Checkpoint,
    folder: Path,
    arguments: Sequence[str] = (),
    **options: object,
) -> Iterator[TracedServer]:
    """A server with the plugin."""
    trace = folder / "trace.jsonl"
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options=options,
        arguments=[*ARGUMENTS, *arguments],
        environment={
            **runner.environment,
            "VLLM_LITELVLM_TRACE": str(trace),
            "VLLM_SERVER_DEV_MODE": "1",
        },
        log=folder / "server.log",
    ) as running:
        yield TracedServer(running.url, trace)


@pytest.fixture(scope="session")
def server(
    runner: Runner, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TracedServer]:
    with traced_server(runner, checkpoint, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint) -> Reference:
    return Reference(checkpoint.llava, checkpoint.clip)


@pytest.fixture(scope="session")
def beside(checkpoint: Checkpoint) -> TransformersBackend:
    return TransformersBackend(checkpoint.llava, checkpoint.clip)


@pytest.fixture(scope="session")
def without_plugin(
    runner: Runner, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, str]], Any]:
    """Starts a server that does not name the plugin, in an environment to choose."""

    def start(environment: dict[str, str]) -> Any:
        folder = tmp_path_factory.mktemp("server")
        return serve(
            checkpoint.llava,
            plugin=False,
            arguments=ARGUMENTS,
            environment={**runner.environment, **environment},
            log=folder / "server.log",
        )

    return start


@pytest.fixture(scope="session")
def stock(
    without_plugin: Callable[[dict[str, str]], Any], photographs: Sequence[Image.Image]
) -> Stock:
    return Stock(without_plugin, photographs)


@pytest.fixture
def workplace(
    runner: Runner, checkpoint: Checkpoint, photographs: Sequence[Image.Image], tmp_path: Path
) -> Workplace:
    engine = {
        "model": str(checkpoint.llava),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 4,
        "limit_mm_per_prompt": {"image": 2},
        "additional_config": {"litelvlm": {"clip_model": str(checkpoint.clip)}},
    }
    return Workplace(tmp_path, saved(photographs, tmp_path), engine, runner)
