"""Starts the real ``vllm serve`` in a process of its own and stops it again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_litelvlm.activation import PLUGIN_NAME
from vllm_litelvlm.errors import LiteLVLMError

_START_SECONDS = 600
_STOP_SECONDS = 20


class ServerError(LiteLVLMError, RuntimeError):
    """The server did not start; the message ends with what it printed last."""


@dataclass(frozen=True)
class Server:
    """A running server: ``url`` is its root, without ``/v1``."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def wait_until_healthy(self, timeout: float = _START_SECONDS) -> None:
        """Return as soon as it answers.

        Raises ServerError when it ends, or does not answer within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                raise ServerError(_with_log(f"vllm serve ended with {code}", self.log))
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                    if response.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise ServerError(_with_log(f"vllm serve was not ready after {timeout:.0f} s", self.log))


@contextmanager
def serve(
    model: Path | str,
    *,
    log: Path,
    clip_model: Path | str | None = None,
    plugin: bool = True,
    options: Mapping[str, object] | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    timeout: float = _START_SECONDS,
    wait: bool = True,
) -> Iterator[Server]:
    """Serve ``model`` until the ``with`` block ends.

    Args:
        model: hub name or folder.
        log: file that the server's output goes to.
        clip_model: the CLIP of the model's vision tower, where the default does not fit.
        plugin: whether ``--plugin litelvlm`` is asked for.
        options: further server options of litelvlm.
        arguments: further arguments of ``vllm serve``.
        environment: further environment variables.
        port: a free one by default.
        timeout: seconds to wait for the server to be healthy.
        wait: whether to do so here; otherwise see :meth:`Server.wait_until_healthy`.

    Raises ServerError when the server ends or is not healthy in time.
    """
    port = port or _free_port()
    given = {**(options or {}), **({"clip_model": str(clip_model)} if clip_model else {})}
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    command += ["--host=127.0.0.1", f"--port={port}", *arguments]
    if plugin:
        command += ["--plugin", PLUGIN_NAME]
        command += [f"--additional-config={json.dumps({PLUGIN_NAME: given})}"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment([model, given.get("clip_model")] if plugin else [model], environment),
            start_new_session=True,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", log, process)
        if wait:
            server.wait_until_healthy(timeout)
        yield server
    finally:
        _stop(process)


def _environment(checkpoints: Sequence[object], given: Mapping[str, str] | None) -> dict[str, str]:
    defaults = {}
    if not _has_gpu():
        # vLLM leaves one core out by default, which is half of a small machine.
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{(os.cpu_count() or 1) - 1}"
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "2"
    # Without a folder of its own, the CLIP comes from the hub, which must then be within reach.
    if all(checkpoint and Path(str(checkpoint)).is_dir() for checkpoint in checkpoints):
        defaults["HF_HUB_OFFLINE"] = "1"
    return {**defaults, **os.environ, **(given or {})}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _with_log(what: str, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
    return "\n".join([f"{what}; the end of {log}:", *lines])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
