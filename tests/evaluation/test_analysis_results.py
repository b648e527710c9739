"""What the analyses make of scores that are known."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.evaluation.analysis.base import AnalysisError, Batch, Look, Settings
from vllm_litelvlm.evaluation.analysis.checkpoint import load_encoder
from vllm_litelvlm.evaluation.analysis.correlation import Correlation
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.extremes import Extremes, ends
from vllm_litelvlm.evaluation.analysis.kept import Kept
from vllm_litelvlm.evaluation.analysis.ranks import Ranks
from vllm_litelvlm.evaluation.samples import Sample

PATCHES = 576


@pytest.fixture(scope="module")
def clip(checkpoint: Checkpoint) -> Encoder:
    return load_encoder(str(checkpoint.clip), "cpu")


def look_at(encoder: Encoder, number: int, image: int, referred: Tensor | None) -> Look:
    """Random scores; those by similarity are lowest, those by value highest, where referred."""
    random = torch.Generator().manual_seed(number)
    scores = {score: torch.rand(PATCHES, generator=random) for score in encoder.labels}
    if referred is not None:
        scores[Score.EOS] = scores[Score.EOS] - 0.7 * referred
        scores[Score.VALUE] = scores[Score.VALUE] + 2 * referred
    picture = Image.fromarray(np.random.default_rng(image).integers(0, 255, (60, 80, 3), np.uint8))
    sample = Sample(str(number), picture, f"Where is {number}?", (str(number),), "box")
    return Look(sample, f"expression {number}", image, referred, scores)


@pytest.fixture(scope="module")
def looks(clip: Encoder) -> list[Look]:
    """Five texts about three images; one has no mask, one a mask of everything."""
    some = torch.zeros(PATCHES, dtype=torch.bool)
    some[100:112] = True
    other = torch.zeros(PATCHES, dtype=torch.bool)
    other[[5, 300, 301, 302, 303, 304]] = True
    return [
        look_at(clip, 0, 0, some),
        look_at(clip, 1, 0, other),
        look_at(clip, 2, 1, some),
        look_at(clip, 3, 2, None),
        look_at(clip, 4, 2, torch.ones(PATCHES, dtype=torch.bool)),
    ]


def slow_rank(scores: Sequence[float], place: int) -> float:
    return sum(score < scores[place] for score in scores) / (len(scores) - 1)


def test_ranks_are_means_of_counts_over_images(
    clip: Encoder, looks: list[Look], tmp_path: Path
) -> None:
    ranks = Ranks(clip, Settings())
    ranks.observe(Batch((), looks[:2]))
    ranks.observe(Batch((), looks[2:]))
    numbers = ranks.finish(tmp_path).numbers["scores"]
    for score in clip.labels:
        by_look = []
        for look in looks[:3]:
            assert look.referred is not None
            scores = look.scores[score].tolist()
            members = look.referred.nonzero()[:, 0].tolist()
            by_look.append(statistics.fmean(slow_rank(scores, place) for place in members))
        by_image = [(by_look[0] + by_look[1]) / 2, by_look[2]]
        found = numbers[score]
        assert found["referred"]["mean"] == pytest.approx(statistics.fmean(by_image))
        error = statistics.stdev(by_image) / 2**0.5
        assert found["referred"]["standard_error"] == pytest.approx(error)
        assert found["referred"]["images"] == 2
        assert sum(found["histogram_referred"]) == 12 + 6 + 12
        assert sum(found["histogram_other"]) == 3 * PATCHES - 30
    assert numbers[Score.EOS]["referred_end"] == "low"
    assert numbers[Score.VALUE]["referred_end"] == "high"
    assert numbers[Score.VALUE]["histogram_other"][-1] < 3 * PATCHES // 20


def test_ranks_without_any_mask_are_told(clip: Encoder, looks: list[Look], tmp_path: Path) -> None:
    ranks = Ranks(clip, Settings())
    ranks.observe(Batch((), looks[3:]))
    with pytest.raises(AnalysisError, match="No sample has a mask"):
        ranks.finish(tmp_path)


def test_correlation_is_that_of_each_images_patches(
    clip: Encoder, looks: list[Look], tmp_path: Path
) -> None:
    one = looks[0]
    attention = torch.arange(1, PATCHES + 1).float() / 1000
    falling = -attention.log() * 3 + 1  # with logarithms a straight line, with ranks too
    scores = {**one.scores, Score.CLS_ATTENTION: attention, Score.EOS: falling}
    scores[Score.EOS_LAST] = torch.ones(PATCHES)
    constant = Look(one.sample, one.text, 0, None, scores)
    correlation = Correlation(clip, Settings())
    correlation.observe(Batch((), [constant]))
    with pytest.raises(AnalysisError):  # what is constant has no correlation
        correlation.finish(tmp_path)
    expected = []
    for number, look in enumerate(looks[:3], start=1):
        correlation.observe(Batch((), [Look(look.sample, "", number, None, look.scores)]))
        rows = [look.scores[name] for name in (Score.CLS_ATTENTION, Score.EOS_LAST)]
        places = [row.argsort().argsort().double() for row in rows]
        expected.append(float(torch.corrcoef(torch.stack(places))[0, 1]))
    numbers = correlation.finish(tmp_path).numbers
    last = numbers[Score.EOS_LAST]["spearman"]
    assert last["mean"] == pytest.approx(statistics.fmean(expected))
    assert last["images"] == 3
    assert sum(map(sum, numbers[Score.EOS]["ranks"])) == 4 * PATCHES
    only = Correlation(clip, Settings())
    scores[Score.EOS_LAST] = falling
    only.observe(Batch((), [Look(one.sample, one.text, 0, None, scores)]))
    found = only.finish(tmp_path).numbers[Score.EOS]
    assert found["spearman"]["mean"] == pytest.approx(-1)
    assert found["pearson_of_logarithms"]["mean"] == pytest.approx(-1)


def test_ends_are_the_lowest_and_the_highest() -> None:
    assert ends(torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 0.0]), 2) == ([5, 1], [3, 4])
    assert ends(torch.tensor([3.0, 1.0, 2.0]), 10) == ([1], [0])


def test_extremes_tell_how_many_are_referred_to(
    clip: Encoder, looks: list[Look], tmp_path: Path
) -> None:
    extremes = Extremes(clip, Settings(pictures=2))
    extremes.observe(Batch((), looks))
    numbers = extremes.finish(tmp_path).numbers
    assert numbers["share_of_all"]["mean"] == pytest.approx(((12 + 6) / 2 + 12) / 2 / PATCHES)
    value = numbers["scores"][Score.VALUE]
    assert value["highest"]["mean"] == pytest.approx(((10 + 6) / 2 + 10) / 2 / 10)
    assert value["lowest"]["mean"] == 0
    with Image.open(tmp_path / "extremes.png") as sheet:
        assert sheet.size == (3 * (336 + 8) + 8, 2 * (336 + 42 + 8) + 8)


def test_kept_shares_are_counted_and_drawn(
    clip: Encoder, looks: list[Look], tmp_path: Path
) -> None:
    kept = Kept(clip, Settings(budgets=(8, 64, 1000), pictures=1))
    kept.observe(Batch((), looks))
    numbers = kept.finish(tmp_path).numbers
    assert set(numbers["context score alone"]) == {"8", "64"}
    value = numbers["LiteLVLM, guidance value (ours)"]
    # Half of the budget is by guidance: 4 of 12, 4 of 6 and 4 of 12, or all; the rest by context.
    context = numbers["context score alone"]["64"]["mean"]
    assert value["8"]["mean"] >= ((4 / 12 + 4 / 6) / 2 + 4 / 12) / 2
    assert value["64"]["mean"] == 1
    assert 0 <= context < 0.5
    with Image.open(tmp_path / "kept-1.png") as sheet:
        assert sheet.size == (2 * (336 + 8) + 8, 2 * (336 + 42 + 8) + 8)
    assert not (tmp_path / "kept-2.png").exists()
    with Image.open(tmp_path / "kept.png") as plot:
        assert plot.width > plot.height > 400


def test_budgets_of_all_tokens_are_refused(clip: Encoder) -> None:
    with pytest.raises(AnalysisError, match="makes 576 tokens of an image"):
        Kept(clip, Settings(budgets=(576,)))
