"""``litelvlm evaluate --task masks`` asks a real server, is interrupted, and goes on."""

import base64
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from tests.e2e.client import data_url
from tests.e2e.runners import V1
from tests.evaluation.test_mask_davis import write_davis
from tests.evaluation.test_mask_submissions import write_benchmark
from tests.evaluation.test_refer import write_refer
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.grounding import build_grounding
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.evaluation.command.record import NAME
from vllm_litelvlm.evaluation.command.run import main
from vllm_litelvlm.evaluation.masks.davis import RefDavis
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset

Mask = NDArray[np.bool_]

_COMMAND = "import sys; from vllm_litelvlm.cli import main; sys.exit(main())"
ARGUMENTS = (
    "--runner=pooling",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=2048",
    "--max-num-seqs=8",
    # With one request at a time: the same masks at each run, to the pixel.
    "--no-enable-prefix-caching",
)
SCENES = ("--questions=12", "--methods=fovea", "--budgets=64", "--positions=original")
METHODS: dict[str, dict[str, Any]] = {
    "keep-all": {"method": "keep-all"},
    "fovea original@64": {"method": "fovea", "budget": 64, "positions": "original"},
}


@dataclass(frozen=True)
class MasksServer:
    """A server of the tiny model with [SEG], and where evaluations go."""

    url: str
    folder: Path
    checkpoint: Checkpoint

    def evaluate(self, output: str, *arguments: object) -> Path:
        """Run the command; returns its folder."""
        folder = self.folder / output
        assert main(self.arguments(folder, *arguments), serve) == 0
        return folder

    def arguments(self, folder: Path, *arguments: object) -> list[str]:
        given = ["--task=masks", f"--url={self.url}", f"--output={folder}", "--concurrent=1"]
        return [*given, *map(str, arguments)]

    def masks(
        self, picture: Image.Image | Path, texts: Sequence[str], options: dict[str, Any]
    ) -> list[Mask]:
        """Asked for by itself."""
        link = data_url(picture) if isinstance(picture, Image.Image) else _file_url(picture)
        body = {"image": link, "expressions": list(texts)}
        body["mm_processor_kwargs"] = {"litelvlm": options}
        answer = httpx.post(f"{self.url}/v1/masks", json=body, timeout=300).raise_for_status()
        found = [coco_mask.decode(one["segmentation"]) for one in answer.json()["data"]]
        return [mask.astype(bool) for mask in found]


def _file_url(file: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MasksServer]:
    folder = tmp_path_factory.mktemp("evaluate-masks")
    checkpoint = build_grounding(folder / "model")
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"positions": "original"},
        arguments=ARGUMENTS,
        environment=V1.environment,
        log=folder / "server.log",
    ) as running:
        yield MasksServer(running.url, folder, checkpoint)


@pytest.fixture(scope="module")
def finished(server: MasksServer) -> Path:
    """An evaluation that nothing interrupted."""
    return server.evaluate("whole", *SCENES)


def lines(folder: Path) -> list[dict[str, Any]]:
    [_, *found] = map(json.loads, (folder / NAME).read_text().splitlines())
    return found


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{name: it for name, it in line.items() if name != "took"} for line in lines(folder)]


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["rows"]
    for row in found:
        row["costs"].pop("masks_per_second")
    return found


def test_interrupted_evaluation_resumed_equals_one_that_was_not(
    server: MasksServer, finished: Path
) -> None:
    folder = server.folder / "interrupted"
    command = [sys.executable, "-c", _COMMAND, "evaluate", *server.arguments(folder, *SCENES)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / NAME).is_file() or not lines_whole(folder):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) != 0
    assert 1 <= len(lines_whole(folder)) < len(lines(finished))
    assert not (folder / "results.json").exists()
    server.evaluate("interrupted", *SCENES, "--resume")
    assert without_times(folder) == without_times(finished)
    assert rows(folder) == rows(finished)


def lines_whole(folder: Path) -> list[str]:
    """Those that are written to their ends, but for the first."""
    return (folder / NAME).read_text().split("\n")[1:-1]


def test_figures_are_those_of_plain_numpy_from_the_servers_masks(
    server: MasksServer, finished: Path
) -> None:
    samples = {one.name: one for one in SceneDataset("val", 12, kinds=("box",))}
    overlaps: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for line in lines(finished):
        if line["condition"] not in METHODS:
            continue
        about = [samples[name] for name in line["names"]]
        texts = [one.texts[0].lower() for one in about]
        masks = server.masks(about[0].image, texts, METHODS[line["condition"]])
        for sample, mask in zip(about, masks, strict=True):
            assert sample.mask is not None
            pair = (mask & sample.mask).sum(), (mask | sample.mask).sum()
            for protocol in line["protocols"]:
                found = overlaps.setdefault((protocol, line["condition"]), [])
                found.append((line["image"], *pair))
    by_row = {(row["protocol"], row["condition"]): row for row in rows(finished)}
    assert {len(found) for (name, _), found in overlaps.items() if name == "all"} == {12}
    assert {len(found) for (name, _), found in overlaps.items() if name == "authors"} == {6}
    for (protocol, condition), found in overlaps.items():
        images, intersections, unions = np.array(found, float).T
        figures = by_row[protocol, condition]["figures"]
        ciou, error = with_error(images, intersections, unions)
        assert figures["ciou"]["mean"] == pytest.approx(ciou, abs=1e-12)
        assert figures["ciou"]["standard_error"] == pytest.approx(error, abs=1e-12)
        ious = intersections / unions
        giou, error = with_error(images, ious, np.ones_like(ious))
        assert figures["giou"]["mean"] == pytest.approx(giou)
        assert figures["giou"]["standard_error"] == pytest.approx(error)
        for threshold in (0.5, 0.9):
            share = figures["precision"][str(threshold)]["mean"]
            assert share == pytest.approx((ious >= threshold).mean())
    of_all = np.array(overlaps["all", "keep-all"], float).T
    of_some = np.array(overlaps["all", "fovea original@64"], float).T
    share, error = share_with_error(of_some, of_all)
    relative = by_row["all", "fovea original@64"]["relative"]
    assert relative["mean"] == pytest.approx(100 * share)
    assert relative["standard_error"] == pytest.approx(100 * error)
    costs = by_row["all", "fovea original@64"]["costs"]
    assert costs["visual_tokens"] == 64
    assert by_row["all", "keep-all"]["costs"]["prompt_tokens"] - costs["prompt_tokens"] == 576 - 64


def with_error(images: Any, above: Any, below: Any) -> tuple[float, float]:
    """A ratio of sums, and its jackknife error over images."""
    left = [above[images != one].sum() / below[images != one].sum() for one in set(images)]
    return above.sum() / below.sum(), jackknife_error(left)


def share_with_error(some: Any, whole: Any) -> tuple[float, float]:
    def ratio(kept: Any) -> float:
        one, other = some[1:, kept].sum(axis=1), whole[1:, kept].sum(axis=1)
        return float((one[0] / one[1]) / (other[0] / other[1]))

    assert (some[0] == whole[0]).all()
    left = [ratio(some[0] != one) for one in set(some[0])]
    return ratio(some[0] >= 0), jackknife_error(left)


def jackknife_error(left: Sequence[float]) -> float:
    return float(np.sqrt((len(left) - 1) * np.var(left)))


def test_tables_plot_and_contact_sheets_are_there(finished: Path) -> None:
    assert "| fovea original | 64 |" in (finished / "table.md").read_text()
    for drawn in ("plot.png", "contact-sheets/fovea_original.png"):
        with Image.open(finished / drawn) as picture:
            assert len(picture.convert("RGB").getcolors(10**7)) > 100


@pytest.mark.slow
def test_engine_without_a_server_gives_the_same_masks(server: MasksServer, finished: Path) -> None:
    folder, checkpoint = server.folder / "engine", server.checkpoint
    command = [sys.executable, "-c", _COMMAND, "evaluate", "--task=masks", "--backend=engine"]
    command += [f"--model={checkpoint.llava}", f"--clip-model={checkpoint.clip}"]
    command += [f"--output={folder}", *SCENES, "--", *ARGUMENTS[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {(line["condition"], *line["names"]): line for line in lines(folder)}
    assert len(found) == len(lines(finished))
    for line in lines(finished):
        other = found[line["condition"], *line["names"]]
        assert np.abs(np.array(line["overlaps"]) - other["overlaps"]).max() <= 2
        assert line["prompt_tokens"] == other["prompt_tokens"]


def test_refcoco_is_asked_and_many_requests_at_once_give_the_same(server: MasksServer) -> None:
    data = write_refer(server.folder / "refer")
    common = ("--dataset=refcoco", f"--data={data}", "--methods=keep-all", "--contact-sheets=0")
    one = server.evaluate("refcoco", *common)
    many = server.evaluate("refcoco-many", *common, "--concurrent=4")
    assert [row["figures"]["expressions"] for row in rows(one)] == [4, 6]
    for first, second in zip(lines(one), lines(many), strict=True):
        assert first["names"] == second["names"]
        # Sums are in another order in another batch, and a pixel may be at the threshold.
        assert np.abs(np.array(first["overlaps"]) - second["overlaps"]).max() <= 2


def test_davis_is_judged_frame_by_frame(server: MasksServer) -> None:
    data = write_davis(server.folder / "davis")
    common = ("--dataset=ref-davis17", f"--data={data}", "--methods=fovea", "--budgets=64")
    two = ("--annotators", "annot1", "annot2", "--frames-per-request=3", "--positions=original")
    folder = server.evaluate("davis-out", *common, *two)
    worth = []
    for annotator in ("annot1", "annot2"):
        for video in RefDavis(data, annotator):
            for expression in video.expressions:
                assert expression.target is not None
                found = []
                for frame, truth in zip(video.frames, video.truth(), strict=True):
                    picture, texts = video.frame_file(frame), [expression.text.lower()]
                    [mask] = server.masks(picture, texts, METHODS["fovea original@64"])
                    right, ours = truth.masks[expression.target - 1], mask & ~truth.void
                    both = (ours | right) & ~truth.void
                    found.append((ours & right).sum() / both.sum() if both.any() else 1.0)
                worth.append(np.mean(found))
    by_row = {(row["way"], row["annotator"], row["condition"]): row for row in rows(folder)}
    row = by_row["by expression", "all", "fovea original@64"]
    assert row["figures"]["expressions"] == len(worth) == 6
    assert row["figures"]["j"]["mean"] == pytest.approx(np.mean(worth))
    assert 0 < by_row["as published", "all", "keep-all"]["figures"]["j_and_f"]["mean"] < 1
    assert (folder / "plot.png").is_file()
    assert len(lines(folder)) == 3 * 2 * 2


def test_submission_has_the_servers_masks_and_is_resumed(server: MasksServer) -> None:
    data = write_benchmark(server.folder / "mevis", "mevis")
    common = ("--dataset=mevis", f"--data={data}", "--methods=fovea", "--budgets=64")
    folder = server.evaluate("mevis-out", *common)
    before = {path: path.stat().st_mtime_ns for path in (folder / "fovea@64").rglob("*.png")}
    assert len(before) == 5
    (folder / "fovea@64/0fea0cb75a25/10/00005.png").unlink()
    (folder / "fovea@64.zip").unlink()
    server.evaluate("mevis-out", *common, "--resume")
    again = {path: path.stat().st_mtime_ns for path in (folder / "fovea@64").rglob("*.png")}
    assert again.keys() == before.keys()
    asked = {path.parent.name for path in before if before[path] != again[path]}
    assert asked == {"10"}  # both frames of this expression, which are one request
    with zipfile.ZipFile(folder / "fovea@64.zip") as opened:
        assert len(opened.namelist()) == 5
        with opened.open("0fea0cb75a25/10/00005.png") as file:
            written = np.asarray(Image.open(file)) > 0
    picture = data / "valid/JPEGImages/0fea0cb75a25/00005.jpg"
    options = {"method": "fovea", "budget": 64, "positions": "compact"}
    [mask] = server.masks(picture, ["birds"], options)
    assert np.array_equal(written, mask)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--budgets=577"], "--budgets has 577; allowed: at most 576"),
        (["--url={url}/nowhere"], "has no /v1/masks. Start it with vllm serve MODEL --plugin"),
        (["--url=http://127.0.0.1:9"], "The server at http://127.0.0.1:9 did not answer"),
        (["--together=65"], "--together 65; allowed: at most 64"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    server: MasksServer,
    arguments: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [argument.format(url=server.url) for argument in arguments]
    assert main(server.arguments(tmp_path, "--questions=1", *more), serve) == 1
    assert told in capsys.readouterr().err.replace("\n", " ")


def test_expression_that_the_server_refuses_is_named(
    server: MasksServer, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_refer(server.folder / "refused")
    file = data / "refcoco" / "refs(unc).p"
    file.write_bytes(file.read_bytes().replace(b"Vthe dog\n", b"V[SEG]\n"))
    common = ("--dataset=refcoco", f"--data={data}", "--methods=keep-all", "--keep-case")
    assert main(server.arguments(server.folder / "refused-out", *common), serve) == 1
    told = capsys.readouterr().err.replace("\n", " ")
    assert "The server refused masks of [" in told
    assert "special tokens" in told
