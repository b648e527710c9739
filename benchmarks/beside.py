"""Another checkout of this project, whose package one more server runs."""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = "vllm_litelvlm"
_METHODS = f"from {_PACKAGE}.pruning.registry import method_names; print(*method_names())"


@dataclass(frozen=True)
class Beside:
    """A checkout's folder, its git commit (with "-dirty" where files differ), and its methods."""

    path: str
    commit: str
    methods: tuple[str, ...]

    @classmethod
    def at(cls, text: str) -> "Beside":
        """From a command line. Raises ArgumentTypeError for a folder without the package."""
        path = Path(text).resolve()
        if not (path / _PACKAGE).is_dir():
            raise argparse.ArgumentTypeError(
                f"{text} has no folder {_PACKAGE}; name another checkout of this project"
            )
        environment = {**os.environ, **_environment(path)}
        asked = subprocess.run(
            [sys.executable, "-c", _METHODS], env=environment, capture_output=True, text=True
        )
        if asked.returncode != 0:
            *_, last = asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"]
            raise argparse.ArgumentTypeError(f"{text} cannot be imported from: {last}")
        return cls(str(path), _commit(path), tuple(asked.stdout.split()))

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Python finds the package there."""
        return _environment(Path(self.path))


def _environment(path: Path) -> dict[str, str]:
    paths = filter(None, [str(path), os.environ.get("PYTHONPATH")])
    # Without the second, `python -m` looks into the working directory before.
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _commit(path: Path) -> str:
    """Of the folder itself, not of a repository around it."""
    if not (path / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(path), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.check_output([*command, "--abbrev=40"], text=True).strip()
