"""Qwen-VLs, whose images have any size: their scores, and the command as a whole."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.qwen_reference import QwenReference
from vllm_litelvlm.demo.qwen import build_qwen
from vllm_litelvlm.demo.qwen_config import Kind
from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.evaluation.analysis.budgets import budget, named, tokens_of
from vllm_litelvlm.evaluation.analysis.checkpoint import load_encoder
from vllm_litelvlm.evaluation.analysis.command import main
from vllm_litelvlm.evaluation.analysis.encoder import Score
from vllm_litelvlm.evaluation.samples import Sample

#: The image of each pair, and its text; the last is longer than what counts.
OWNERS = [0, 1, 0, 1]
TEXTS = ["the red cup on the left", "dog", "dog", "word " * 300]


def photograph(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 200, (height, width, 3), np.uint8)
    noise[height // 4 : height // 2, width // 4 : width // 2] = 230
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_qwen(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_scores_agree_with_slow_arithmetic_on_the_whole_model(kind: Kind, tmp_path: Path) -> None:
    folder = build_qwen(tmp_path, kind)
    encoder = load_encoder(str(folder), "cpu")
    assert not encoder.model.language_model.layers
    images = [photograph(330, 180), photograph(140, 260)]
    pixels = [encoder.preprocessor.pixels(image) for image in images]
    found = encoder.scores(pixels, OWNERS, TEXTS)
    assert list(found) == list(encoder.labels)
    reference = QwenReference(folder)
    encode = reference.processor.tokenizer.encode
    reference.processor.tokenizer.encode = lambda *given, **named: encode(*given, **named)[:256]
    names = {
        Score.EOS: "similarity",
        Score.EOS_COSINE: "cosine",
        Score.CONTEXT: "context",
        Score.CLS_ATTENTION: "cls_attention",
    }
    for number, image in enumerate(images):
        seen = reference.see(image)
        assert seen.grid == (1, pixels[number].rows, pixels[number].columns)
        pairs = [pair for pair, owner in enumerate(OWNERS) if owner == number]
        expected = reference.scores(seen, [TEXTS[pair] for pair in pairs])
        alone = encoder.scores(pixels[number : number + 1], [0, 0], [TEXTS[pair] for pair in pairs])
        for score, name in names.items():
            for row, pair in enumerate(pairs):
                wanted = expected[name][row] if expected[name].dim() == 2 else expected[name]
                torch.testing.assert_close(found[score][pair], wanted, rtol=2e-4, atol=2e-5)
                assert torch.equal(found[score][pair], alone[score][row])


class Ragged:
    """Bright squares in a landscape, a portrait and another landscape of the same grid."""

    name = "ragged"
    split: Literal["val"] = "val"

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Sample]:
        for number, (width, height) in enumerate([(330, 180), (140, 260), (335, 185)]):
            mask = np.zeros((height, width), np.bool_)
            mask[height // 4 : height // 2, width // 4 : width // 2] = True
            for text in ("the bright square", f"thing number {number}"):
                yield Sample(
                    name=f"{number} {text}",
                    image=photograph(width, height),
                    prompt=f"Where is {text}?",
                    texts=(text,),
                    kind="box",
                    mask=mask,
                )


class Thin(Ragged):
    """One of them is refused by the processor."""

    def __iter__(self) -> Iterator[Sample]:
        yield Sample("thin", Image.new("RGB", (2, 500)), "What is it?", ("it",), "box")


RAGGED, THIN = Ragged(), Thin()
PLACE = f"{__name__}:RAGGED"


def test_everything_runs_on_images_of_different_sizes(qwen: Path, tmp_path: Path) -> None:
    arguments = [str(qwen), "--dataset", PLACE, "--output", str(tmp_path), "--batch", "4"]
    assert main([*arguments, "--budgets", "8", "1/9", "0.25", "1/9", "1000"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["analyses"]) == {"ranks", "correlation", "extremes", "kept"}
    assert "no text tower" in results["skipped"]["sink"]
    assert results["patches"] is None
    assert results["settings"]["budgets"] == [1 / 9, 0.25, 8, 1000]
    assert results["analyses"]["ranks"]["scores"]["eos"]["referred"]["images"] == 3
    assert set(results["analyses"]["correlation"]) == {"eos"}
    assert set(results["analyses"]["extremes"]["scores"]) == set(results["labels"])
    kept = results["analyses"]["kept"]
    assert set(kept) == {"LiteLVLM (the paper's)", "context score alone", "by chance"}
    assert set(kept["by chance"]) == {"1/9", "0.25", "8", "1000"}
    assert kept["LiteLVLM (the paper's)"]["1000"]["mean"] == 1
    grids = [(6, 12), (9, 5), (7, 12)]
    chance = sum(8 / (rows * columns) for rows, columns in grids) / 3
    assert kept["by chance"]["8"]["mean"] == pytest.approx(chance)
    tables = (tmp_path / "tables.md").read_text()
    assert "| 1/9 of an image's tokens | 0.25 of an image's tokens | 8 of" in tables
    assert "0 the lowest of an image's tokens" in tables
    drawn = {file.name for file in tmp_path.glob("*.png")}
    names = ("ranks", "correlation", "extremes", "kept", "kept-1", "kept-2", "kept-3")
    assert drawn == {f"{name}.png" for name in names}
    with Image.open(tmp_path / "kept-2.png") as sheet:  # a cell of a 9 x 5 grid takes 51 pixels
        assert sheet.size == (4 * (336 + 8) + 8, 2 * (9 * 51 + 42 + 8) + 8)


def test_defaults_are_fractions(qwen: Path, tmp_path: Path) -> None:
    arguments = [str(qwen), "--dataset", PLACE, "--output", str(tmp_path), "--analyses", "kept"]
    assert main([*arguments, "--samples", "1"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["analyses"]["kept"]["by chance"]) == ["1/9", "2/9", "1/3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", f"{__name__}:THIN"], "Sample 'thin': The image processor refuses an image"),
        (["--dataset", PLACE, "--budgets", "1.0"], "--budgets 1.0: that is all tokens of an image"),
        (["--dataset", PLACE, "--analyses", "sink"], "sink: Qwen-VL has no text tower"),
    ],
)
def test_what_cannot_be_analysed_is_told_in_a_sentence(
    arguments: list[str],
    said: str,
    qwen: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(qwen), "--output", str(tmp_path), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_tower_whose_last_block_has_windows_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen, tmp_path / "windows"))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["fullatt_block_indexes"] = [1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompatibilityError, match=r"\(number 3\) .* attends to windows"):
        load_encoder(str(folder), "cpu")


def test_budgets_are_counts_or_fractions() -> None:
    read = [budget(text) for text in ("64", "0.25", "1/9", "1", "1.0", "64.0")]
    assert [(type(one), one) for one in read] == [
        (int, 64),
        (float, 0.25),
        (float, 1 / 9),
        (int, 1),
        (float, 1.0),
        (int, 64),
    ]
    assert list(named(read)) == ["1/9", "0.25", "1.0", "1", "64"]
    assert [tokens_of(one, 40) for one in read] == [40, 10, 4, 1, 40, 40]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1/0", "nan", "3/2", "many", ""])
def test_bad_budget_is_told(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="; allowed: a token count"):
        budget(text)
