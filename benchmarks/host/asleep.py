"""Makes vLLM's processes sleep where they wait for each other: a plugin that servers get.

A worker in a process of its own looks for work in a loop without a pause, and so does the engine
core for its answers. That is processor time which no request needs: it would hide what one does.
This file is copied out of the project, as servers may have another checkout in their path.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = "litelvlm_asleep"
#: The longest sleep, in milliseconds.
_MOST_MS = 64


def register() -> None:
    """Called by vLLM in every process: who waits for another is asleep until it is notified.

    A notice may get lost, which vLLM finds out after five seconds. Here a process that waits looks
    for itself as well, after ever longer times.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    wait = SpinCondition.wait

    def wait_asleep(self: Any, timeout_ms: int | None = None) -> None:
        asleep_ms = getattr(self, "asleep_ms", 1)
        self.asleep_ms = min(2 * asleep_ms, _MOST_MS)
        wait(self, asleep_ms if timeout_ms is None else min(timeout_ms, asleep_ms))

    def record_read(self: Any) -> None:
        self.asleep_ms = 1  # and not when it was: vLLM's own does not sleep for a second from then

    SpinCondition.wait, SpinCondition.record_read = wait_asleep, record_read
    logging.getLogger(f"vllm.{_NAME}").info("This process sleeps where it waits for another.")


def install(folder: Path) -> Path:
    """Install the plugin in a folder of its own."""
    about = folder / f"{_NAME}-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (folder / f"{_NAME}.py").write_text(Path(__file__).read_text())
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 1\n")
    named = f"[vllm.general_plugins]\n{_NAME} = {_NAME}:register\n"
    (about / "entry_points.txt").write_text(named)
    return folder.resolve()


def environment(folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Variables with which vLLM loads the plugin from there, beside those given."""
    paths = [given.get("PYTHONPATH") or os.environ.get("PYTHONPATH"), str(folder)]
    plugins = [given.get("VLLM_PLUGINS"), _NAME]
    return {
        **given,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VLLM_PLUGINS": ",".join(filter(None, plugins)),
    }
