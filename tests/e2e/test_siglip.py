"""LLaVA with a SigLIP tower: answers beside transformers', tokens beside an independent choice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.runners import V1, Runner, on_v1_alone
from tests.e2e.siglip_reference import SiglipReference
from tests.e2e.workplace import Workplace, saved
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.siglip import SiglipGeometry, build_siglip
from vllm_litelvlm.pruning.registry import method_names, pruner_class
from vllm_litelvlm.vision.frame import padded, window

QUESTIONS = ["Where is the red cup?", "Is there a dog on the left?"]
PATCHES, TOKENS = 196, 4
METHODS = [name for name in method_names() if name not in ("tome", "keep-all")]
#: Options of one method beside its own name.
FORMS: list[dict[str, Any]] = [
    *({"method": name} for name in METHODS),
    {"method": "litelvlm", "variant": "reference"},
    {"method": "litelvlm", "guidance": "value"},
    {"method": "context", "variant": "reference"},
    {"method": "fovea", "guidance": "similarity"},
    {"method": "divprune", "centred": True},
    {"method": "cdpruner", "centred": True},
]
#: Written again in the reference.
WRITTEN_AGAIN = ("litelvlm", "context", "cls-attention", "trim", "mmtok", "eadp")


@dataclass(frozen=True)
class Asked:
    """A request about one image, and what came of it."""

    image: int
    question: str
    options: dict[str, Any]
    answer: dict[str, Any]
    traced: dict[str, Any]

    @property
    def form(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.options.items()
            if name not in ("method", "budget", "texts", "positions", "frame")
        }

    @property
    def texts(self) -> list[str]:
        if not pruner_class(self.options["method"]).reads_text:
            return []
        return list(self.options.get("texts", [self.question]))


@dataclass(frozen=True)
class Run:
    """All that one engine of each kind was asked."""

    checkpoint: Checkpoint
    photographs: Sequence[Image.Image]
    asked: list[Asked]
    whole: list[Any]
    stock: list[Any]

    @cached_property
    def reference(self) -> SiglipReference:
        return SiglipReference(self.checkpoint.llava, self.checkpoint.clip)


def prompt(question: str) -> str:
    return f"USER: <image>\n{question} ASSISTANT:"


def requests(runner: Runner) -> list[tuple[int, str, dict[str, Any]]]:
    """Image, question and options; fewer where Triton is interpreted."""
    images, budgets = ((0, 1), (20,)) if runner is V1 else ((1,), (24,))
    found = []
    for image in images:
        for budget in budgets:
            for form in FORMS:
                reads_text = pruner_class(form["method"]).reads_text
                for question in QUESTIONS if reads_text and runner is V1 else QUESTIONS[:1]:
                    found.append((image, question, {**form, "budget": budget}))
    both = {"method": "litelvlm", "texts": ["a red cup", "the dog's left ear"], "budget": 60}
    pad = {"frame": "pad", "budget": 40}
    return [
        *found,
        (2, QUESTIONS[0], both),
        (2, QUESTIONS[1], {**both, "method": "fovea", "budget": 30}),
        (1, QUESTIONS[0], {"method": "litelvlm", **pad}),
        (3, QUESTIONS[1], {"method": "context", **pad}),
    ]


@pytest.fixture(scope="module")
def run(
    runner: Runner,
    photographs: Sequence[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """On V1 a tower without its last layer; on V2 a whole one, of whose side patches leave a rest.

    On V2 tokens keep their original positions.
    """
    folder = tmp_path_factory.mktemp("siglip")
    if runner is V1:
        checkpoint = build_siglip(folder / "model")
    else:
        geometry = SiglipGeometry(image_size=230)
        checkpoint = build_siglip(folder / "model", "whole", geometry, generation=2)
    files = saved(photographs, folder)
    engine = {
        "model": str(checkpoint.llava),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "limit_mm_per_prompt": {"image": 1},
        "additional_config": {"litelvlm": {"clip_model": str(checkpoint.clip)}},
    }
    place = Workplace(folder, files, engine, runner)

    def job(image: int, question: str, options: Any) -> dict[str, Any]:
        return {
            "prompt": prompt(question),
            "images": [files[image]],
            "options": options,
            "tokens": TOKENS,
            "ignore_eos": True,
        }

    asked = requests(runner)
    trace = folder / "trace.jsonl"
    whole = [job(image, QUESTIONS[0], {"budget": 1.0}) for image in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_LITELVLM_TRACE", str(trace))
        found = place.run(
            [whole, [job(*one) for one in asked]],
            options={"positions": "compact" if runner is V1 else "original"},
        )
    stock: list[Any] = []
    if runner is V1:
        stock_jobs = [job(image, QUESTIONS[0], None) for image in range(4)]
        [stock] = place.run([stock_jobs], activate=False)
    assert isinstance(found[1], list), found[1]
    lines = [json.loads(line) for line in Path(trace).read_text().splitlines()]
    assert len(lines) == 4 + len(asked)  # every one is new, and images come in order
    return Run(
        checkpoint,
        photographs,
        [Asked(*one) for one in zip(*zip(*asked, strict=True), found[1], lines[4:], strict=True)],
        found[0],
        stock,
    )


@on_v1_alone
def test_budget_of_all_is_stock_bit_for_bit(run: Run) -> None:
    assert run.whole == run.stock
    prompts = {answer["prompt_tokens"] for answer in run.stock}
    assert len(prompts) == 1
    assert {tuple(answer["logprobs"]) for answer in run.stock} != prompts


def test_kept_tokens_are_those_of_an_independent_choice_and_so_are_answers(
    run: Run, runner: Runner
) -> None:
    """Log-probabilities to 2e-4 of transformers', given the rows; every method that is offered."""
    reference, worst, again = run.reference, 0.0, 0
    seen = {image: reference.see(picture) for image, picture in enumerate(run.photographs)}
    compared = [one for one in run.asked if "frame" not in one.options]
    assert len(compared) >= (40 if runner is V1 else 15)
    for one in compared:
        method, budget = one.options["method"], one.options["budget"]
        assert one.traced["method"] == method
        image = seen[one.image]
        selection = reference.select(image, one.texts, budget, method, one.form)
        kept, rows = selection.indices.tolist(), selection.tokens
        if method == "vispruner":
            # Its rounds of matching turn the last bit of a feature into another choice; the half by
            # attention is certain.
            kept = one.traced["kept"]
            attended = image.scores["cls_attention"].topk(budget // 2).indices.tolist()
            assert set(attended) <= set(kept)
            assert len(set(kept)) == budget
            rows = image.tokens[kept]
        assert one.traced["kept"] == kept, one.options
        if method in WRITTEN_AGAIN and not one.form:
            texts = one.texts or [one.question]
            expected = reference.choose(image, texts, budget, method)
            assert [place for place in kept if place < PATCHES] == expected, one.options
            again += 1
        behind = max(0, pruner_class(method)().places(PATCHES).stop - PATCHES)
        original = runner is not V1
        worst = max(
            worst,
            *distances(
                one,
                reference.follow(
                    prompt(one.question),
                    rows,
                    kept if original else range(budget),
                    PATCHES + behind if original else budget,
                    one.answer["token_ids"],
                ),
            ),
        )
    # Nearly all of them differ, so a mix-up would have shown.
    assert len({tuple(one.answer["logprobs"]) for one in compared}) > 0.8 * len(compared)
    firsts = [one.answer["logprobs"][0] for one in compared if one.image == 1]
    assert max(firsts) - min(firsts) > 0.01
    print(f"{len(compared)} of {runner}, {again} written again: {worst:.1e}")
    assert {one.options["method"] for one in compared} == set(METHODS)
    assert worst < 2e-4


def test_padded_pictures_keep_nothing_of_the_padding(run: Run, runner: Runner) -> None:
    reference = run.reference
    config = reference.llava.config.vision_config
    for one in run.asked:
        if "frame" not in one.options:
            continue
        picture = run.photographs[one.image]
        side = config.image_size / config.patch_size
        rows = by_hand(picture.size, side)
        among = [row * 14 + column for row in rows for column in range(14)]
        assert window(picture.size, 14) is not None
        assert len(among) < PATCHES
        image = reference.see(padded(picture, [0.5, 0.5, 0.5]))
        texts = one.texts or [one.question]
        budget, method = one.options["budget"], one.options["method"]
        expected = reference.choose(image, texts, budget, method, among)
        assert one.traced["kept"] == expected
        original = runner is not V1
        likely = reference.follow(
            prompt(one.question),
            image.tokens[expected],
            expected if original else range(budget),
            PATCHES if original else budget,
            one.answer["token_ids"],
        )
        assert max(distances(one, likely)) < 2e-4


def distances(one: Asked, likely: Sequence[float]) -> list[float]:
    assert len(likely) == TOKENS
    return [abs(ours - theirs) for ours, theirs in zip(one.answer["logprobs"], likely, strict=True)]


def by_hand(size: tuple[int, int], side: float) -> list[int]:
    """Rows of patches of which some pixel shows a picture wider than high."""
    width, height = size
    top = (width - height) // 2
    first, behind = top / width * side, (top + height) / width * side
    return [row for row in range(14) if row + 1 > first and row < behind]
