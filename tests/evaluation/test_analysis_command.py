"""``litelvlm analyze`` as a whole, on a made-up data set and tiny checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_analysis_encoders import build_siglip
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.evaluation.analysis.base import Settings
from vllm_litelvlm.evaluation.analysis.checkpoint import load_encoder
from vllm_litelvlm.evaluation.analysis.clip_encoder import ClipEncoder
from vllm_litelvlm.evaluation.analysis.command import NAMES, main
from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.reading import Reader, draw_indices, read_samples
from vllm_litelvlm.evaluation.analysis.run import ANALYSES
from vllm_litelvlm.evaluation.samples import Sample


class MadeUp:
    """Bright squares on noise: two questions about each image, and what cannot be analysed."""

    name = "made-up"
    split: Literal["train", "val", "test", "testA", "testB"]

    def __init__(self, split: Literal["train", "val", "test", "testA", "testB"]) -> None:
        self.split = split
        self.read = 0

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[Sample]:
        for number in range(6):
            random = np.random.default_rng(number)
            pixels = random.integers(0, 120, (160, 200, 3)).astype(np.uint8)
            mask = np.zeros((160, 200), np.bool_)
            mask[40:100, 50 + 10 * number : 110 + 10 * number] = True
            pixels[mask] = 230
            image = Image.fromarray(pixels)
            for text in ("the bright square", f"thing number {number}"):
                self.read += 1
                yield Sample(
                    name=f"{number} {text}",
                    image=image,
                    prompt=f"Where is {text}?\nAnswer with a box.",
                    texts=(text, "something else"),
                    kind="box",
                    mask=None if number == 5 else mask,
                )


PLACE = f"{__name__}:MadeUp"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def clip(checkpoint: Checkpoint) -> Encoder:
    return load_encoder(str(checkpoint.clip), "cpu")


def test_names_of_the_command_are_the_analyses() -> None:
    assert tuple(ANALYSES) == NAMES


def test_everything_runs_on_a_clip(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint.clip), "--dataset", PLACE, "--output", str(tmp_path)]
    assert main([*arguments, "--pictures", "2", "--batch", "5"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["analyses"]) == set(NAMES)
    assert results["skipped"] == {}
    assert (results["samples"], results["images"], results["texts"]) == (12, 6, 12)
    assert results["analyses"]["ranks"]["scores"]["eos"]["referred"]["images"] == 5
    assert results["analyses"]["sink"]["prompts"] == 7
    drawn = {file.name for file in tmp_path.glob("*.png")}
    assert drawn == {*(f"{name}.png" for name in NAMES), "kept-1.png", "kept-2.png"}
    tables = (tmp_path / "tables.md").read_text()
    assert tables.count("## ") == len(NAMES)
    assert "ours, not the paper's" in tables
    assert "made-up" in capsys.readouterr().out


def test_siglip_runs_and_says_what_stands_for_cls_and_what_is_left_out(
    siglip: Path, tmp_path: Path
) -> None:
    arguments = [str(siglip), "--dataset", PLACE, "--output", str(tmp_path), "--text", "prompt"]
    assert main([*arguments, "--budgets", "5", "10"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["analyses"]) == set(NAMES) - {"sink"}
    assert "no [SOS]" in results["skipped"]["sink"]
    assert "pooling" in " ".join(results["notes"])
    tables = (tmp_path / "tables.md").read_text()
    assert "Left out: sink. SigLIP's text tower has no [SOS]" in tables
    assert "pooling probe for [CLS]" in tables


def test_chosen_analysis_runs_alone(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipEncoder, "scores", None)  # no image is looked at
    arguments = [str(checkpoint.clip), "--dataset", PLACE, "--output", str(tmp_path)]
    assert main([*arguments, "--analyses", "sink"]) == 0
    assert [file.name for file in tmp_path.glob("*.png")] == ["sink.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "nothing"], "allowed: scenes, refcoco, refcoco+, refcocog, or MODULE:NAME"),
        (["--dataset", "refcoco"], "needs --data"),
        (["--dataset", "scenes", "--split", "testA"], "scenes have train, val, test"),
        (["--dataset", "json:loads_nothing"], "--dataset json:loads_nothing"),
        (["--dataset", PLACE, "--device", "nowhere"], "--device nowhere: "),
        (["--dataset", "json:__name__"], "no data set there"),
        (["--dataset", PLACE, "--budgets", "576", "--analyses", "kept"], "makes 576 tokens"),
    ],
)
def test_bad_argument_is_told_in_a_sentence(
    arguments: list[str],
    said: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(checkpoint.clip), "--output", str(tmp_path / "none"), *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_draw_is_of_neighbours_and_repeats_itself() -> None:
    assert draw_indices(5, 9, seed=0) == [0, 1, 2, 3, 4]
    drawn = draw_indices(1000, 20, seed=3)
    assert drawn == draw_indices(1000, 20, seed=3) != draw_indices(1000, 20, seed=4)
    assert len(set(drawn)) == 20
    assert len({index // 8 for index in drawn}) == 3


def test_samples_behind_the_last_drawn_one_are_not_read() -> None:
    made_up = MadeUp("val")
    drawn = draw_indices(12, 2, seed=1)
    assert [sample.name for sample in read_samples(made_up, 2, seed=1)] == [
        sample.name for place, sample in enumerate(MadeUp("val")) if place in drawn
    ]
    assert made_up.read == drawn[-1] + 1


def test_mask_of_several_texts_together_is_no_ones(clip: Encoder) -> None:
    image = Image.new("RGB", (40, 40))
    mask = np.ones((40, 40), np.bool_)
    both = Sample(
        "both", image, "Is a cup left of a dog?", ("a cup", "a dog"), "relation", mask=mask
    )
    batch = Reader(clip, Settings(), reads_images=True).batch([both])
    assert [(look.text, look.referred) for look in batch.looks] == [
        ("a cup", None),
        ("a dog", None),
    ]
    whole = Reader(clip, Settings(wording="prompt"), reads_images=True).batch([both])
    [look] = whole.looks
    assert look.referred is not None
    assert look.referred.all()
    assert not look.divides
