"""Processor time of a server's processes, told apart by what they do."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from vllm_litelvlm.demo.server import Server, ServerError

API_SERVER, ENGINE_CORE, WORKER, REST = ROLES = ("API server", "engine core", "worker", "rest")
#: What vLLM calls its processes, behind a prefix of the user's.
_TITLES = {"::APIServer": API_SERVER, "::EngineCore": ENGINE_CORE, "::Worker": WORKER}


@dataclass(frozen=True)
class Process:
    """One process and what it used so far, in seconds of user and system time."""

    number: int
    role: str
    seconds: float


@dataclass(frozen=True)
class Usage:
    """The processes of a server at one moment."""

    processes: tuple[Process, ...]

    @classmethod
    def of(cls, server: Server) -> "Usage":
        """Read the server's process and all below it.

        With several API servers these are children of it, else it is the one itself. Raises
        ServerError where no engine core is found.
        """
        root = psutil.Process(server.process.pid)
        children = [found for child in root.children(recursive=True) if (found := _read(child))]
        roles = {child.role for child in children}
        if ENGINE_CORE not in roles:
            raise ServerError(f"{server.log}: no process of this server is an engine core.")
        own = _read(root, REST if API_SERVER in roles else API_SERVER)
        return cls((*([own] if own else []), *children))

    def since(self, before: "Usage") -> list[Process]:
        """What each process used meanwhile, the busiest first."""
        had = {process.number: process.seconds for process in before.processes}
        used = [
            Process(process.number, process.role, process.seconds - had.get(process.number, 0.0))
            for process in self.processes
        ]
        return sorted(used, key=lambda process: -process.seconds)


def by_role(used: Sequence[Process]) -> dict[str, float]:
    """Seconds of every role together."""
    return {role: sum(one.seconds for one in used if one.role == role) for role in ROLES}


def _read(process: psutil.Process, role: str | None = None) -> Process | None:
    """None where it ended since it was listed."""
    try:
        times, title = process.cpu_times(), " ".join(process.cmdline()[:1])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    known = (name for ending, name in _TITLES.items() if ending in title)
    return Process(process.pid, role or next(known, REST), times.user + times.system)
