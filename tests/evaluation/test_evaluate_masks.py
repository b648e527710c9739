"""``litelvlm evaluate --task masks`` on small data sets and a made-up backend."""

import argparse
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.evaluation.test_mask_davis import write_davis
from tests.evaluation.test_mask_submissions import write_benchmark
from tests.evaluation.test_refer import write_refer
from tests.test_layering import _modules_after
from vllm_litelvlm.errors import LiteLVLMError, OptionsError
from vllm_litelvlm.evaluation.command.arguments import add_arguments
from vllm_litelvlm.evaluation.command.masks import run as command
from vllm_litelvlm.evaluation.command.masks.images import conversations, load_images
from vllm_litelvlm.evaluation.command.masks.names import file_name
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.masks.sheet import coloured
from vllm_litelvlm.evaluation.command.masks.video_questions import parts
from vllm_litelvlm.evaluation.command.record import NAME
from vllm_litelvlm.evaluation.command.run import main
from vllm_litelvlm.evaluation.masks.backend import MaskAnswer, MaskQuestion, Picture
from vllm_litelvlm.evaluation.masks.davis import RefDavis
from vllm_litelvlm.evaluation.masks.judging import Similarity, VideoScores

ALL_TOKENS, TEXT_TOKENS = 576, 20


class MadeUpMasks:
    """Masks of as many left columns as tokens are kept, of a hundred, a text's length aside.

    It is interrupted after ``fails_after`` answers.
    """

    def __init__(self, fails_after: float = np.inf) -> None:
        self.asked: list[MaskQuestion] = []
        self._left = fails_after

    def answer(self, questions: Sequence[MaskQuestion]) -> Iterator[MaskAnswer]:
        for question in questions:
            if self._left < 1:
                raise KeyboardInterrupt
            self._left -= 1
            self.asked.append(question)
            tokens = question.options.get("budget", ALL_TOKENS)
            masks = [made_up(picture, question.texts, tokens) for picture in question.pictures]
            yield MaskAnswer(masks, tokens + TEXT_TOKENS * len(question.texts))


def made_up(picture: Picture, texts: Sequence[str], tokens: int) -> Any:
    width, height = (Image.open(picture) if isinstance(picture, Path) else picture).size
    masks = np.zeros((len(texts), height, width), bool)
    for mask, text in zip(masks, texts, strict=True):
        mask[:, : (tokens * width // ALL_TOKENS + len(text)) % width] = True
    return masks


def parsed(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = ["--task=masks", "--url=http://nowhere", *map(str, arguments)]
    return parser.parse_args(given)


def settings_of(*arguments: object) -> MaskSettings:
    return MaskSettings.of(parsed(*arguments))


class Runner:
    """Runs the command with a made-up backend in the server's place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
        self._monkeypatch, self.output = monkeypatch, output

    def __call__(self, backend: MadeUpMasks, *arguments: object) -> None:
        self._monkeypatch.setattr(command, "open_masks", lambda *_: nullcontext(backend))
        chosen = parsed(f"--output={self.output}", "--concurrent=2", *arguments)
        command.evaluate_masks(chosen, None, "litelvlm ...", Console(file=StringIO()))  # type: ignore[arg-type]

    def lines(self) -> list[dict[str, Any]]:
        [_, *lines] = map(json.loads, (self.output / NAME).read_text().splitlines())
        return lines

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.output / "results.json").read_text())["rows"]
        return rows


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    return Runner(monkeypatch, tmp_path / "out")


SCENES = ("--questions=20", "--contact-sheets=0", "--methods=fovea", "--budgets", 64, 192)


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--guide-by=prompt"], "--guide-by prompt: masks are guided by their expressions"),
        (["--texts=2", "--guide-by=expressions"], "by --together how many expressions"),
        (["--per-image=3"], "--per-image does not go with --task masks, which has --protocols"),
        (["--videos=2"], "--videos is for videos: --dataset ref-davis17, mevis"),
        (["--together=65"], "--together 65; allowed: at most 64"),
        (["--contact-sheets=17"], "--contact-sheets 17; allowed: at most 16"),
        (["--contact-sheets=-1"], "--contact-sheets -1; allowed: at most 16"),
        (["--dataset=ref-davis17", "--protocols=all"], "--protocols is for images"),
        (["--dataset=ref-davis17", "--frames-per-request=65"], "65; allowed: at most 64"),
        (["--dataset=mevis"], "--dataset mevis needs --methods: a submission is written for each"),
        (["--dataset=mevis", "--methods=fovea", "--videos=1"], "--videos does not go with a data"),
        (["--methods=fastv"], "paged attention does not give them"),
    ],
)
def test_what_does_not_go_with_masks_is_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(OptionsError, match=told):
        settings_of(*arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset=mevis"], "--dataset mevis needs --task masks"),
        (["--protocols=all"], "--protocols needs --task masks"),
        (["--keep-case"], "--keep-case needs --task masks"),
        (["--contact-sheets=2"], "--contact-sheets needs --task masks"),
    ],
)
def test_masks_are_asked_for_by_the_task(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url=http://nowhere", *arguments], None) == 1  # type: ignore[arg-type]
    assert told in capsys.readouterr().err


def test_masks_need_a_server_or_an_engine() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    chosen = parser.parse_args(["--task=masks", "--backend=transformers", "--model=m"])
    with pytest.raises(OptionsError, match="--task masks needs --backend server or engine"):
        MaskSettings.of(chosen)


def test_data_that_is_not_there_is_named(run: Runner, tmp_path: Path) -> None:
    for arguments, told in (
        (["--dataset=refcoco"], "--dataset refcoco needs --data"),
        (["--dataset=refcoco", f"--data={tmp_path}"], r"refs\(unc\).p is missing"),
        (["--dataset=ref-davis17", f"--data={tmp_path}"], "480p is missing"),
        (["--dataset=mevis", "--methods=fovea", f"--data={tmp_path}"], "meta_expressions.json is"),
        (["--dataset=mevis", "--methods=fovea", "--split=test"], "--split test: mevis has val"),
        (["--split=testA"], "--split testA: scenes have train, val, test"),
    ):
        with pytest.raises(LiteLVLMError, match=told):
            run(MadeUpMasks(), *arguments)
    assert not run.output.exists()


# --- images ---


def test_conversations_are_those_of_both_protocols_and_shared_ones_are_one() -> None:
    settings = settings_of("--questions=19")
    samples = list(load_images(settings))
    assert len(samples) == 19
    asked = list(conversations(settings, load_images(settings)))
    assert [len(about) for about in asked] == [4, 4, 1]  # of 8, 8 and 3 expressions
    for about in asked:
        assert sum(one.samples for one in about) == pytest.approx(8 if len(about) > 1 else 3)
        authors = [one for one in about if "authors" in one.protocols]
        everything = [name for one in about if "all" in one.protocols for name in one.names]
        assert [len(one.names) for one in authors] == [3]
        assert set(authors[0].names) <= set(everything)
        names = [sample.name for sample in samples if sample.image.tobytes() == _pixels(about[0])]
        assert everything == names
    assert asked[2][0].protocols == ("authors", "all")


def _pixels(one: Any) -> bytes:
    pixels: bytes = one.image.tobytes()
    return pixels


def test_expressions_are_asked_in_lower_case_unless_they_are_to_keep_theirs(
    run: Runner, tmp_path: Path
) -> None:
    data = write_refer(tmp_path / "data")
    arguments = ("--dataset=refcoco", f"--data={data}", "--methods=keep-all", "--protocols=all")
    file = data / "refcoco" / "refs(unc).p"
    file.write_bytes(file.read_bytes().replace(b"Vthe dog\n", b"V The Dog \n"))
    for more, said in (((), "the dog"), (("--keep-case",), "The Dog")):
        backend = MadeUpMasks()
        run(backend, *arguments, *more)
        assert said in [text for question in backend.asked for text in question.texts]


def test_requests_have_the_conditions_options_and_draw_for_each_conversation(run: Runner) -> None:
    backend = MadeUpMasks()
    run(backend, *SCENES, "--frame=pad", "--seed=3")
    asked = [question.options for question in backend.asked[2:]]
    assert all(options["frame"] == "pad" for options in asked)
    assert not any("texts" in options for options in asked)  # the server takes the expressions
    budgets = {(options["method"], options.get("budget")) for options in asked}
    assert budgets == {
        ("keep-all", None),
        *((method, budget) for method in ("random", "fovea") for budget in (64, 192)),
    }
    seeds = [options["seed"] for options in asked if options["method"] == "random"]
    assert len(seeds) == 2 * len(set(seeds))  # one a conversation, the same at both budgets


def test_figures_are_those_of_plain_numpy(run: Runner) -> None:
    run(MadeUpMasks(), *SCENES, "--together=2")
    settings = settings_of(*SCENES, "--together=2")
    truth = {sample.name: sample.mask for sample in load_images(settings)}
    texts = {sample.name: sample.texts[0].lower() for sample in load_images(settings)}
    names = {
        "authors": [
            n for one in run.lines() for n in one["names"] if "authors" in one["protocols"]
        ],
        "all": list(truth),
    }
    blank = Image.new("RGB", (336, 336))
    rows = {(row["protocol"], row["condition"]): row for row in run.rows()}
    assert len(rows) == 2 * 5
    for (protocol, condition), row in rows.items():
        tokens = int(condition.partition("@")[2] or ALL_TOKENS)
        pairs = []
        for name in sorted(set(names[protocol])):
            [mask] = made_up(blank, [texts[name]], tokens)
            right = truth[name]
            assert right is not None
            pairs.append(((mask & right).sum(), (mask | right).sum()))
        intersections, unions = np.array(pairs, float).T
        figures = row["figures"]
        assert figures["expressions"] == len(pairs)
        assert figures["ciou"]["mean"] == pytest.approx(intersections.sum() / unions.sum())
        assert figures["giou"]["mean"] == pytest.approx((intersections / unions).mean())
        found = (intersections / unions >= 0.5).mean()
        assert figures["precision"]["0.5"]["mean"] == pytest.approx(found)
        whole = rows[protocol, "keep-all"]["figures"]["ciou"]["mean"]
        assert row["relative"]["mean"] == pytest.approx(100 * figures["ciou"]["mean"] / whole)
        assert row["costs"]["visual_tokens"] == pytest.approx(tokens)
    assert rows["all", "keep-all"]["relative"]["standard_error"] == 0
    assert len(names["authors"]) == 5 * 3 * 3


def test_interrupted_run_goes_on_and_a_complete_one_asks_nothing(run: Runner) -> None:
    first = MadeUpMasks(fails_after=17)
    with pytest.raises(KeyboardInterrupt):
        run(first, *SCENES)
    assert len(run.lines()) == 15  # two found out what all tokens are
    second = MadeUpMasks()
    run(second, *SCENES, "--resume")
    lines, rows = run.lines(), [_without_rate(row) for row in run.rows()]
    assert len({(line["condition"], *line["names"]) for line in lines}) == len(lines)
    assert len(second.asked) == len(lines) - 15
    third = MadeUpMasks(fails_after=0)
    run(third, *SCENES, "--resume")
    assert [_without_rate(row) for row in run.rows()] == rows
    run(MadeUpMasks(), *SCENES)
    assert [_without_rate(row) for row in run.rows()] == rows
    with pytest.raises(LiteLVLMError, match="lower_case was True and is False"):
        run(third, *SCENES, "--resume", "--keep-case")


def test_resuming_with_another_method_asks_for_that_alone(run: Runner) -> None:
    run(MadeUpMasks(), *SCENES)
    before = len(run.lines())
    backend = MadeUpMasks()
    more = ("--questions=20", "--methods", "fovea", "trim", "--budgets", 64, 192, "--resume")
    run(backend, *more)
    assert {question.options["method"] for question in backend.asked} == {"trim"}
    assert len(backend.asked) == 2 * before / 5


def _without_rate(row: dict[str, Any]) -> dict[str, Any]:
    del row["costs"]["masks_per_second"]
    return row


def test_budget_above_all_tokens_is_refused(run: Runner) -> None:
    with pytest.raises(OptionsError, match="--budgets has 577; allowed: at most 576"):
        run(MadeUpMasks(), "--budgets", 577)


def test_masks_that_find_nothing_have_no_share(run: Runner, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        f"{__name__}.made_up",
        lambda picture, texts, tokens: np.zeros((len(texts), 336, 336), bool),
    )
    run(MadeUpMasks(), *SCENES)
    assert {row["relative"] for row in run.rows()} == {None}
    assert "| fovea | 0.000 ± 0.000 | 0.000 ± 0.000 | – |" in (run.output / "table.md").read_text()


def test_files_are_tables_plot_and_a_sheet_a_method(
    run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    run(MadeUpMasks(), *SCENES, "--positions", "compact", "original", "--contact-sheets=2")
    printed = capsys.readouterr().out.strip()
    told = (run.output / "table.md").read_text()
    assert told.startswith(printed)
    assert "| method | 64 tokens | 192 tokens | all tokens |" in told
    assert "at most three expressions an image" in told
    assert "all expressions (20)" in told
    sheets = {path.name for path in (run.output / "contact-sheets").iterdir()}
    assert sheets == {"random.png", "random_original.png", "fovea.png", "fovea_original.png"}
    for drawn in ("plot.png", "contact-sheets/fovea.png"):
        with Image.open(run.output / drawn) as picture:
            assert min(picture.size) > 500


def test_without_budgets_or_sheets_nothing_of_them_is_drawn(run: Runner) -> None:
    run(MadeUpMasks(), "--questions=9", "--methods=keep-all", "--contact-sheets=0")
    assert {path.name for path in run.output.iterdir()} == {NAME, "results.json", "table.md"}


def test_masks_are_coloured_by_what_is_right_too_much_and_missed() -> None:
    picture = Image.new("RGB", (2, 2), (200, 100, 0))
    predicted, truth = np.array([[1, 1], [0, 0]], bool), np.array([[1, 0], [1, 0]], bool)
    right, extra, missed, other = coloured(picture, predicted, truth).reshape(4, 3).tolist()
    assert right[1] > right[0]
    assert extra[0] > max(extra[1:])
    assert missed[2] > max(missed[:2])
    assert len(set(other)) == 1


def test_names_become_different_files() -> None:
    names = ["fovea@64", "fovea original@64", "fovea_original@64", "a:b=1,c=[2]", "a/b", "a%2Fb"]
    files = [file_name(name) for name in names]
    assert files[:2] == ["fovea@64", "fovea_original@64"]
    assert len(set(files)) == len(names)
    assert not any(set("/: ") & set(file) for file in files)


# --- videos ---

DAVIS = ("--dataset=ref-davis17", "--contact-sheets=0", "--methods=fovea", "--budgets", 64)


def test_videos_are_asked_in_parts(tmp_path: Path) -> None:
    _, video = RefDavis(write_davis(tmp_path), "annot1_full_video")
    settings = settings_of(*DAVIS, "--frames-per-request=3", "--together=2")
    found = [(part.expressions, part.frames, part.texts) for part in parts(settings, video)]
    assert found == [
        ((0, 1), (0, 1, 2), ("the kite", "the kite again")),
        ((0, 1), (3,), ("the kite", "the kite again")),
        ((2,), (0, 1, 2), ("a man's board",)),
        ((2,), (3,), ("a man's board",)),
    ]
    assert len({part.name for part in parts(settings, video)}) == 2


def test_each_annotators_figures_and_their_mean_stand_in_the_table(
    run: Runner, tmp_path: Path
) -> None:
    data = write_davis(tmp_path)
    backend = MadeUpMasks()
    two = ("--annotators", "annot2", "annot1", "--frames-per-request=3", "--contact-sheets=2")
    run(backend, *DAVIS, f"--data={data}", *two)
    # Two videos of one and two objects, in two parts; three conditions and two annotators.
    assert len(backend.asked) == 2 + (1 + 2) * 2 * 3 * 2
    rows = {(row["way"], row["annotator"], row["condition"]): row for row in run.rows()}
    assert len(rows) == 2 * 3 * 3
    for way in ("as published", "by expression"):
        figures = [rows[way, name, "fovea@64"]["figures"] for name in ("annot1", "annot2", "all")]
        one, other, both = (figure["j_and_f"]["mean"] for figure in figures)
        assert both == pytest.approx((one + other) / 2)
    told = (run.output / "table.md").read_text()
    assert "| condition | annot1 | annot2 |" in told
    assert (run.output / "contact-sheets/fovea.png").is_file()
    again = MadeUpMasks(fails_after=0)
    run(again, *DAVIS, f"--data={data}", *two, "--resume")


def test_figures_of_videos_are_those_of_plain_numpy(run: Runner, tmp_path: Path) -> None:
    data = write_davis(tmp_path)
    run(MadeUpMasks(), *DAVIS, f"--data={data}", "--annotators=annot1")
    rows = {(row["way"], row["condition"]): row for row in run.rows()}
    worth = []
    for video in RefDavis(data, "annot1"):
        for expression in video.expressions:
            [mask] = made_up(video.frame_file("00000"), [expression.text.lower()], 64)
            assert expression.target is not None
            found = []
            for truth in video.truth():
                right = truth.masks[expression.target - 1] & ~truth.void
                ours = mask & ~truth.void
                found.append((ours & right).sum() / (ours | right).sum())
            worth.append(np.mean(found))
    figures = rows["by expression", "fovea@64"]["figures"]
    assert figures["j"]["mean"] == pytest.approx(np.mean(worth))
    share = rows["by expression", "fovea@64"]["relative"]["mean"]
    whole = rows["by expression", "keep-all"]["figures"]["j_and_f"]["mean"]
    assert share == pytest.approx(100 * figures["j_and_f"]["mean"] / whole)


def test_interrupted_video_is_asked_again_and_others_are_not(run: Runner, tmp_path: Path) -> None:
    arguments = (*DAVIS, f"--data={write_davis(tmp_path)}", "--annotators=annot1")
    with pytest.raises(KeyboardInterrupt):
        run(MadeUpMasks(fails_after=6), *arguments)
    before = run.lines()
    assert len(before) == 3  # the first video
    run(MadeUpMasks(), *arguments, "--resume")
    assert run.lines()[:3] == before
    resumed = [_without_rate(row) for row in run.rows()]
    run(MadeUpMasks(), *arguments)
    assert resumed == [_without_rate(row) for row in run.rows()]


def test_published_evaluation_is_left_out_where_it_does_not_apply(
    run: Runner, tmp_path: Path
) -> None:
    arguments = (*DAVIS, f"--data={write_davis(tmp_path)}", "--annotators=annot1_full_video")
    run(MadeUpMasks(), *arguments)
    assert {row["way"] for row in run.rows()} == {"by expression"}
    assert "The published evaluation does not apply" in (run.output / "table.md").read_text()


def test_share_of_videos_has_the_error_of_differences() -> None:
    some, whole = VideoScores(), VideoScores()
    worths = [(0.2, 0.4), (0.5, 0.8), (0.9, 1.0)]
    for video, (one, other) in enumerate(worths):
        some.add(video, [Similarity(one, one)])
        whole.add(video, [Similarity(other, other)])
    found = some.relative(whole)
    ones, others = np.array(worths).T
    assert found.mean == pytest.approx(ones.sum() / others.sum())
    without = (ones.sum() - ones) / (others.sum() - others)
    assert found.standard_error == pytest.approx(
        np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    )
    assert whole.relative(whole).standard_error == 0
    with pytest.raises(ValueError, match="same expressions on both sides"):
        some.relative(VideoScores())
    nothing = VideoScores()
    for video in range(3):
        nothing.add(video, [Similarity(0, 0)])
    with pytest.raises(ValueError, match="no ratio to a J&F of 0"):
        some.relative(nothing)


# --- submissions ---


@pytest.mark.parametrize("name", ["mevis", "refer-youtube-vos"])
def test_submission_is_written_resumed_and_packed(run: Runner, tmp_path: Path, name: str) -> None:
    data = write_benchmark(tmp_path / "data", name)
    arguments = (f"--dataset={name}", f"--data={data}", "--methods=fovea", "--budgets", 64, 192)
    with pytest.raises(KeyboardInterrupt):
        run(MadeUpMasks(fails_after=3), *arguments)
    assert not list(run.output.glob("*.zip"))
    with pytest.raises(LiteLVLMError, match=r"has masks already: --resume goes on from them"):
        run(MadeUpMasks(), *arguments)
    backend = MadeUpMasks()
    run(backend, *arguments, "--resume")
    assert len(backend.asked) == 2 * 3 - 1  # an expression each; one was answered
    top = {"mevis": "", "refer-youtube-vos": "Annotations/"}[name]
    for budget in (64, 192):
        with zipfile.ZipFile(run.output / f"fovea@{budget}.zip") as opened:
            assert len(opened.namelist()) == 5
            with opened.open(f"{top}0fea0cb75a25/10/00005.png") as file:
                mask = np.asarray(Image.open(file)) > 0
        picture = data / "valid/JPEGImages/0fea0cb75a25/00005.jpg"
        assert np.array_equal(mask, made_up(picture, ["birds"], budget)[0])
    assert {row["masks"] for row in run.rows()} == {5}
    run(MadeUpMasks(fails_after=0), *arguments, "--resume")


def test_judging_loads_nothing_of_vllm_and_opencv_for_videos_alone() -> None:
    loaded = _modules_after("import vllm_litelvlm.evaluation.command.masks.run")
    assert "pycocotools" in loaded
    assert not loaded & {"vllm", "cv2"}
    outline = "Outline(numpy.eye(9) > 0)"
    loaded = _modules_after(
        "import numpy; import vllm_litelvlm.evaluation.command.masks.davis\n"
        f"from vllm_litelvlm.evaluation.masks.boundary import Outline; {outline}"
    )
    assert "cv2" in loaded
    assert "vllm" not in loaded
