"""LLaVA-NeXT: images of any size against plain transformers and against stock vLLM."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.llava_next_reference import CENTRED, METHODS, Kept, LlavaNextReference
from tests.e2e.runners import V1, V2, Runner, on_v1_alone
from tests.e2e.workplace import PROMPT, QUESTION, Workplace, saved
from vllm_litelvlm.demo.checkpoint import TINY, Checkpoint
from vllm_litelvlm.demo.llava_next import build_llava_next

TEXTS = [["the red cup"], ["a rocket", "an astronaut's helmet"]]
USUAL_BUDGETS = [17, 60, 131]
#: CDPruner's kernel has the rank of the tiny language model's width, and each of VisPruner's rounds
#: turns on the last bit, which the two towers do not share. For 131 PruneSID has components in two
#: of which a patch weighs nearly alike.
BUDGETS: dict[str, Sequence[float]] = {
    "cdpruner": [3, 23, 40],
    "vispruner": [0.9, 0.95, 0.98],
    "prunesid": [17, 60, 110],
}


@dataclass(frozen=True)
class Asked:
    """A request, by numbers of pictures."""

    pictures: list[int]
    options: dict[str, Any]
    tokens: int = 8

    def job(self, files: Sequence[str]) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "images": [files[picture] for picture in self.pictures],
            "options": self.options,
            "tokens": self.tokens,
        }

    @property
    def prompt(self) -> str:
        return PROMPT.replace("<image>", " and ".join(["<image>"] * len(self.pictures)))


@pytest.fixture(scope="module")
def pictures(photographs: Sequence[Image.Image]) -> list[Image.Image]:
    """Square, landscape, portrait, long and thin, tiny."""
    square, landscape, small, _ = photographs
    return [
        square,
        landscape,
        landscape.transpose(Image.Transpose.ROTATE_90),
        small.crop((0, 100, 451, 190)),
        square.resize((30, 47)),
    ]


@pytest.fixture
def place(
    runner: Runner,
    llava_next: Checkpoint,
    pictures: Sequence[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Workplace:
    monkeypatch.setenv("VLLM_LITELVLM_TRACE", str(tmp_path / "trace.jsonl"))
    engine = {
        "model": str(llava_next.llava),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 8,
        "limit_mm_per_prompt": {"image": 3},
        "additional_config": {"litelvlm": {"clip_model": str(llava_next.clip)}},
        "max_num_batched_tokens": 150,
        "enable_chunked_prefill": True,
    }
    return Workplace(tmp_path, saved(pictures, tmp_path), engine, runner)


def whole() -> list[Asked]:
    """Nothing is pruned, said in several ways."""
    all_of_it: list[dict[str, Any]] = [{"budget": 1.0}, {"budget": 100_000}, {"method": "keep-all"}]
    return [
        Asked([picture], {**all_of_it[picture % 3], "positions": positions})
        for picture in range(5)
        for positions in ("compact", "original")
    ] + [Asked([1, 2, 3], {"budget": 1.0})]


def mixed() -> list[Asked]:
    """Every method, one to three images, budgets as fractions and counts, both kinds of places."""
    asked = []
    for number, method in enumerate(METHODS):
        options = {"method": method, "budget": 21 + 2 * number, "texts": TEXTS[number % 2]}
        options["positions"] = "original" if number % 2 else "compact"
        asked.append(Asked([number % 5], options, tokens=12))
        options = {**options, "positions": "compact" if number % 2 else "original"}
        asked.append(Asked([(number + 1) % 5], options, tokens=12))
    for number, budget in enumerate((1 / 9, 1 / 3, 0.75)):
        for positions in ("compact", "original"):
            options = {"budget": budget, "positions": positions, "texts": [QUESTION]}
            asked.append(Asked([number, number + 1, number + 2], options, tokens=12))
    return asked


def every_method() -> list[Asked]:
    """12 requests for each: pictures and budgets, and one text or two."""
    forms: list[dict[str, Any]] = [{"method": name} for name in METHODS if name != "keep-all"]
    forms += [{"method": name, "centred": True} for name in CENTRED]
    return [
        Asked([picture], {**form, "budget": budget, "texts": texts}, tokens=1)
        for form in forms
        for budget in BUDGETS.get(form["method"], USUAL_BUDGETS)
        for picture in range(4)
        for texts in TEXTS[picture % 2 :][:1]
    ]


def budget_of(reference: LlavaNextReference, picture: Image.Image, options: Any) -> int:
    """In tokens."""
    tokens = len(reference.see(picture).features)
    budget = options.get("budget", 1.0)
    if options.get("method") == "keep-all":
        return tokens
    return min(budget, tokens) if isinstance(budget, int) else int(budget * tokens + 0.5)


def choose(
    reference: LlavaNextReference, asked: Asked, pictures: Sequence[Image.Image]
) -> list[Kept]:
    """By the reference, of each image."""
    images = [pictures[picture] for picture in asked.pictures]
    method = asked.options.get("method", "litelvlm")
    centred = asked.options.get("centred", False)
    budgets = [budget_of(reference, image, asked.options) for image in images]
    return [
        reference.choose(image, asked.options["texts"], method, budget, centred)
        for image, budget in zip(images, budgets, strict=True)
    ]


def assert_follows(
    reference: LlavaNextReference, asked: Asked, answer: Any, pictures: Sequence[Image.Image]
) -> None:
    images = [pictures[picture] for picture in asked.pictures]
    best, likely = reference.follow(
        asked.prompt,
        images,
        choose(reference, asked, pictures),
        answer["token_ids"],
        asked.options["positions"] == "original",
    )
    assert answer["token_ids"] == best, asked
    assert answer["logprobs"] == pytest.approx(likely, abs=2e-4), asked


@pytest.mark.parametrize("runner", [V1, V2], ids=str, indirect=True, scope="session")
def test_engine_is_as_sure_of_every_token_as_transformers_and_stock_vllm(
    place: Workplace, llava_next: Checkpoint, pictures: Sequence[Image.Image]
) -> None:
    batches = [whole(), mixed()] + ([every_method()] if place.runner is V1 else [])
    jobs = [[asked.job(place.images) for asked in batch] for batch in batches]
    answers = place.run(jobs, options={"positions": "original"})
    if place.runner is V1:
        stock_jobs = [{**job, "options": None} for job in jobs[0]]
        [stock] = place.run([stock_jobs], activate=False)
        assert answers[0] == stock  # to the last bit

    reference = LlavaNextReference(llava_next.llava, llava_next.clip)
    for asked, answer in zip(batches[1], answers[1], strict=True):
        assert_follows(reference, asked, answer, pictures)

    traced, expected = (defaultdict[tuple[str, int], set[tuple[int, ...]]](set) for _ in range(2))
    for line in map(json.loads, (place.folder / "trace.jsonl").read_text().splitlines()):
        traced[line["method"], line["budget"]].add(tuple(line["kept"]))
    for asked in [one for batch in batches[1:] for one in batch]:
        for kept in choose(reference, asked, pictures):
            expected[asked.options.get("method", "litelvlm"), len(kept.places)].add(
                tuple(kept.places)
            )
    for key, kept_by_each in expected.items():
        assert traced[key] == kept_by_each, key


@on_v1_alone
def test_images_of_published_size_are_pruned_as_by_transformers(
    place: Workplace, pictures: Sequence[Image.Image], tmp_path: Path
) -> None:
    published = build_llava_next(tmp_path / "published", TINY)
    asked = [
        Asked([picture], {"method": method, "budget": 1 / 9, "texts": TEXTS[0], **positions})
        for picture, (method, positions) in enumerate(
            [
                ("litelvlm", {"positions": "compact"}),
                ("fovea", {"positions": "original"}),
                ("trim", {"positions": "original"}),
            ]
        )
    ]
    [answers] = place.run(
        [[one.job(place.images) for one in asked]],
        engine={
            "model": str(published.llava),
            "max_model_len": 4096,
            "additional_config": {"litelvlm": {"clip_model": str(published.clip)}},
        },
        options={"positions": "original"},
    )
    reference = LlavaNextReference(published.llava, published.clip)
    assert len(reference.see(pictures[0]).features) == 5 * 576 + 48
    for one, answer in zip(asked, answers, strict=True):
        assert_follows(reference, one, answer, pictures)
