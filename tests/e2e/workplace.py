"""Where tests of the offline classes run their jobs."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.e2e.runners import Runner

QUESTION = "Where is the red cup?"
PROMPT = f"USER: <image>\n{QUESTION} ASSISTANT:"


@dataclass(frozen=True)
class Workplace:
    """A folder with the photographs as files, and the engine's common arguments."""

    folder: Path
    images: list[str]
    engine: dict[str, Any]
    runner: Runner

    def run(self, batches: list[Any], **jobs: Any) -> list[Any]:
        """Run batches of requests in an engine of their own process; see ``offline.py``."""
        engine = {**self.engine, **jobs.pop("engine", {})}
        options = {**engine["additional_config"]["litelvlm"], **jobs.pop("options", {})}
        engine["additional_config"] = {"litelvlm": options}
        path = self.folder / "jobs.json"
        path.write_text(json.dumps({"engine": engine, "batches": batches, **jobs}))
        environment = {
            **os.environ,
            **self.runner.environment,
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.offline", str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        answers: list[Any] = json.loads((self.folder / "answers.json").read_text())
        return answers


def saved(pictures: Sequence[Image.Image], folder: Path) -> list[str]:
    """Pictures as files of a folder, in order."""
    files = [str(folder / f"{number}.png") for number in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    return files


def job(image: str, budget: int, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    """A request about one image, as ``offline.py`` reads it."""
    return {"prompt": prompt, "images": [image], "options": {"budget": budget}, **more}
