"""Run every client tool here against the demo's server, and write down what came of it.

    python examples/clients/run.py                  # all of them
    python examples/clients/run.py openai litellm   # some

Each folder is a tool: its pinned versions (``requirements.txt`` or ``package.json``) and an example
(``example.py``, ``example.sh`` or ``example.mjs``), which is run three times: an image at a budget
of 64, a text-only turn with the same settings, and an image at a budget of -5. It finds

    BASE_URL   the server's, with /v1
    MODEL      the model's name
    IMAGE      path of a PNG; empty in the text-only turn
    BUDGET     64, or -5
    TOKENIZER  the model's folder, for tools that count tokens by themselves

and exits with 77 where its tool cannot do what is asked. What the server kept is read from its own
metrics. Environments are made once, in ``--environments``; they take some GB and the better part of
an hour.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console

from vllm_litelvlm.demo.run import SHIPPED
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset

HERE = Path(__file__).parent
TABLE = HERE / "README.md"
MODEL = "demo"
OPTIONS = {"variants": {"small": {"budget": 64, "served_model_name": "demo-small"}}}
BUDGET, WRONG = 64, -5
SENTENCE = f"'budget' is {WRONG}"
CANNOT = 77


@dataclass(frozen=True)
class Run:
    """How an example ended, and what the server kept of how many images meanwhile."""

    status: int
    said: str
    images: int
    tokens: int


def main() -> None:
    tools = sorted(path.parent.name for path in HERE.glob("*/example.*"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(tools)}")
    cache = Path.home() / ".cache" / "litelvlm-clients"
    parser.add_argument("--environments", type=Path, default=cache, metavar="FOLDER")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of an example")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.tools) - set(tools)):
        parser.error(f"no such tool: {', '.join(unknown)}; there are {', '.join(tools)}")
    console = Console()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        image = work / "scene.png"
        next(iter(SceneDataset("test", 1))).image.save(image)
        arguments = [f"--served-model-name={MODEL}", "--max-model-len=4096", "--enforce-eager"]
        with (
            console.status("Starting the server ..."),
            serve(SHIPPED, options=OPTIONS, arguments=arguments, log=work / "log") as server,
        ):
            for tool in chosen.tools or tools:
                console.print(f"[bold]{tool}[/bold]")
                path = environment(tool, chosen.environments)
                asked = [(image, BUDGET), ("", BUDGET), (image, WRONG)]
                runs = [run(tool, path, server.url, *one, chosen.timeout) for one in asked]
                outcome, is_right = judge(*runs)
                console.print(f"  {outcome}")
                write_down(tool, outcome)
                if not is_right:
                    failed.append(tool)
                    for one in runs:
                        console.print(one.said[-1500:], markup=False, highlight=False)
    if failed:
        sys.exit(f"not as it should be: {', '.join(failed)}")


def environment(tool: str, folder: Path) -> str:
    """A ``PATH`` with the tool's own environment first, made where there is none; then ours."""
    source, place = HERE / tool, folder / tool
    python, node = source / "requirements.txt", source / "package.json"
    pinned = "".join(file.read_text() for file in (python, node) if file.exists())
    made = place / "made-of"
    if not made.exists() or made.read_text() != pinned:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if python.exists():
            venv.create(place / "venv", with_pip=True)
            pip = [place / "venv" / "bin" / "pip", "install", "--quiet", "-r", python]
            subprocess.run(pip, check=True)
        if node.exists():
            shutil.copy(node, place)
            subprocess.run(["npm", "install", "--silent", "--no-fund"], cwd=place, check=True)
        made.write_text(pinned)
    first = [place / "venv" / "bin", place / "node_modules" / ".bin", Path(sys.executable).parent]
    return os.pathsep.join([*map(str, first), os.environ["PATH"]])


def run(tool: str, path: str, url: str, image: Path | str, budget: int, timeout: float) -> Run:
    """The example once, in a folder of its own."""
    [example] = (HERE / tool).glob("example.*")
    program = {".py": "python", ".sh": "bash", ".mjs": "node"}[example.suffix]
    before = counted(url)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(path.split(os.pathsep)[0]).parents[1]
        if (modules := place / "node_modules").exists():  # where node looks for them
            (Path(folder) / "node_modules").symlink_to(modules)
        shutil.copytree(HERE / tool, folder, dirs_exist_ok=True)
        variables = {
            "PATH": path,
            "BASE_URL": f"{url}/v1",
            "MODEL": MODEL,
            "IMAGE": str(image),
            "BUDGET": str(budget),
            "TOKENIZER": str(SHIPPED),
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": f"{url}/v1",
        }
        try:
            done = subprocess.run(
                [program, example.name],
                cwd=folder,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
            status, said = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            status, said = -1, f"no end after {timeout:.0f} s\n{error.output or ''}"
    images, tokens = (after - past for after, past in zip(counted(url), before, strict=True))
    return Run(status, said, images, tokens)


def counted(url: str) -> tuple[int, int]:
    """Images that the server was sent, and visual tokens that it kept of them."""
    text = httpx.get(f"{url}/metrics").text

    def total(metric: str) -> int:
        return int(sum(map(float, re.findall(rf"^{metric}{{.*}} (\S+)$", text, re.MULTILINE))))

    return total("litelvlm_images_total"), total("litelvlm_visual_tokens_kept_total")


def judge(image: Run, text: Run, wrong: Run) -> tuple[str, bool]:
    """A cell of the table, and whether image and text-only turn went as they should."""
    is_pruned = image.status == 0 and image.images > 0 and image.tokens == BUDGET * image.images
    is_answered = text.status in (0, CANNOT) and text.images == 0
    if wrong.status == CANNOT:
        told = "cannot say it"
    elif SENTENCE in wrong.said:
        told = "its sentence shown"
    else:
        told = "ends without the sentence" if wrong.status else "no word"
    cells = [
        f"{image.tokens / max(1, image.images):g} tokens" if image.images else "no image",
        {0: "answered", CANNOT: "cannot"}.get(text.status, "failed"),
        told,
    ]
    return "; ".join(cells), is_pruned and is_answered


def write_down(tool: str, outcome: str) -> None:
    """The last cell of the tool's row in the table."""
    lines = TABLE.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"| [{tool}]({tool})"):
            row, _, _ = line.removesuffix("|").rstrip().rpartition("|")
            lines[number] = f"{row}| {outcome} |"
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
