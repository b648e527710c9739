"""Scenes, expressions and questions against what the pixels say, worked out anew."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import islice

import numpy as np
import pytest

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.samples import Box, Dataset, Sample
from vllm_litelvlm.evaluation.scenes import answers, wording
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset, SceneSample, scene_seed
from vllm_litelvlm.evaluation.scenes.drawing import PALETTE
from vllm_litelvlm.evaluation.scenes.expressions import EXPRESSION_KINDS, Expression
from vllm_litelvlm.evaluation.scenes.guesses import guess_accuracy, random_object_guess
from vllm_litelvlm.evaluation.scenes.meanings import Beside, Compared, Description, Extreme
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES
from vllm_litelvlm.evaluation.scenes.questions import QUESTION_KINDS
from vllm_litelvlm.evaluation.scenes.scene import Scene, SceneOptions
from vllm_litelvlm.evaluation.scenes.shapes import coverage

SPLITS = wording.SPLITS
VALUES = {value: name for name, values in ATTRIBUTES.items() for value in values}
PLURALS = {wording.plural(shape): shape for shape in ATTRIBUTES["shape"]}
NOUNS = {*ATTRIBUTES["shape"], *PLURALS, "object", "objects", "thing", "things"}


@pytest.fixture(scope="module")
def samples() -> dict[str, list[SceneSample]]:
    sizes = {"train": 1200, "val": 320, "test": 320}
    return {split: list(SceneDataset(split, sizes[split], texts=2)) for split in SPLITS}


@pytest.fixture(scope="module")
def every(samples: dict[str, list[SceneSample]]) -> list[SceneSample]:
    return [sample for split in SPLITS for sample in samples[split]]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [Scene.make(seed) for seed in range(60)]


def of_kind(samples: Sequence[SceneSample], kind: str) -> list[SceneSample]:
    found = [sample for sample in samples if sample.kind == kind]
    assert len(found) > 20, kind
    return found


def attributes_in(text: str) -> list[str]:
    named = [PLURALS.get(word, word) for word in wording.words(text)]
    return [word for word in named if word in VALUES]


def having(scene: Scene, values: Sequence[str]) -> set[int]:
    return {
        one.index
        for one in scene.objects
        if set(values) <= {one.size, one.colour, one.texture, one.shape}
    }


def seen_box(mask: np.ndarray) -> Box:
    down, right = np.nonzero(mask)
    return right.min(), down.min(), right.max() + 1, down.max() + 1


@cache
def centre(scene: Scene, index: int) -> tuple[float, float]:
    left, top, right, bottom = seen_box(scene.owners == index)
    return (left + right) / 2, (top + bottom) / 2


def gap(scene: Scene, one: int, direction: str, other: int) -> float:
    """Pixels by which one centre is farther in a direction than the other."""
    x, y = (a - b for a, b in zip(centre(scene, one), centre(scene, other), strict=True))
    return {"left": -x, "right": x, "above": -y, "below": y}[direction]


def hard_absences(scene: Scene) -> set[tuple[str, str]]:
    """Pairs of values that are both there, but not together."""
    there = {one.attribute(name) for one in scene.objects for name in ATTRIBUTES}
    return {
        (one, other)
        for one in there
        for other in there
        if VALUES[one] != VALUES[other] and not having(scene, [one, other])
    }


# Scenes.


def test_scene_of_a_seed_is_the_same_every_time(scenes: Sequence[Scene]) -> None:
    hashes = [hashlib.sha256(scene.pixels.tobytes()).hexdigest() for scene in scenes[:5]]
    again = [Scene.make(scene.seed) for scene in scenes[:5]]
    assert [hashlib.sha256(scene.pixels.tobytes()).hexdigest() for scene in again] == hashes
    assert len(set(hashes)) == 5
    for scene, other in zip(scenes, again, strict=False):
        assert (scene.owners == other.owners).all()
        assert scene.objects == other.objects


def test_scene_has_three_to_eight_objects_of_either_size(scenes: Sequence[Scene]) -> None:
    assert {len(scene.objects) for scene in scenes} == {3, 4, 5, 6, 7, 8}
    for scene in scenes:
        assert scene.image.size == (336, 336)
        assert scene.image.mode == "RGB"
        for one in scene.objects:
            low, high = {"small": (44, 60), "large": (84, 108)}[one.size]
            assert low <= one.extent <= high


def test_boxes_enclose_the_visible_pixels_and_every_pixel_has_one_owner(
    scenes: Sequence[Scene],
) -> None:
    for scene in scenes:
        assert set(np.unique(scene.owners)) == {-1, *range(len(scene.objects))}
        for one in scene.objects:
            assert one.box == seen_box(scene.mask(one.index))
        both = scene.mask(0) | scene.mask(1)
        assert (scene.mask(0, 1) == both).all()


def test_pixels_of_a_mask_have_the_colour_of_its_object_and_others_are_muted(
    scenes: Sequence[Scene],
) -> None:
    palette = np.array([PALETTE[name] for name in ATTRIBUTES["colour"]])
    for scene in scenes:
        for one in scene.objects:
            inner = scene.mask(one.index)
            for axis in (0, 1, 0, 1, 0, 1):
                inner = inner & np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
            pixels = scene.pixels[inner].astype(int)
            bright = pixels[pixels.sum(axis=1) >= np.percentile(pixels.sum(axis=1), 75)]
            distances = np.abs(palette - np.median(bright, axis=0)).sum(axis=1)
            assert ATTRIBUTES["colour"][distances.argmin()] == one.colour
            assert distances.min() < 60
        behind = scene.pixels[scene.owners < 0].astype(int)
        assert np.percentile(np.ptp(behind, axis=1), 97) < 90
        assert behind.std() > 10  # textured


def test_occlusion_leaves_most_of_every_object(scenes: Sequence[Scene]) -> None:
    hidden = 0
    for scene in scenes[:20]:
        for one in scene.objects:
            tilted = (coverage(one.shape, one.extent, tilt) for tilt in range(-12, 13))
            whole = {np.count_nonzero(covered > 127) for covered in tilted}
            seen = np.count_nonzero(scene.owners == one.index)
            assert one.visible >= 0.6
            assert round(seen / one.visible) in whole
            hidden += one.visible < 0.9
    assert hidden > 10


def test_patch_labels_tell_which_object_covers_more_than_half(scenes: Sequence[Scene]) -> None:
    for scene in scenes[:10]:
        labels = scene.patch_labels()
        assert labels.shape == (24, 24)
        for row in range(24):
            for column in range(24):
                patch = scene.owners[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
                [(owner, count)] = Counter(patch.flatten().tolist()).most_common(1)
                assert labels[row, column] == (owner if owner >= 0 and count > 98 else -1)


@pytest.mark.parametrize(
    ("side", "objects"), [(70, (1, 2)), (112, (1, 2)), (168, (2, 4)), (126, (8, 8))]
)
def test_small_pictures_have_as_many_objects_as_fit(side: int, objects: tuple[int, int]) -> None:
    options = SceneOptions(side=side, objects=objects)
    counts = set()
    for seed in range(30):
        scene = Scene.make(seed, options)
        assert scene.pixels.shape == (side, side, 3)
        assert scene.patch_labels().shape == (side // 14, side // 14)
        assert all(one.visible >= 0.6 for one in scene.objects)
        counts.add(len(scene.objects))
    assert min(counts) >= 1
    assert max(counts) <= objects[1]


def test_sizes_of_objects_can_be_chosen() -> None:
    options = SceneOptions(side=196, objects=(2, 4), small=(20, 24), large=(40, 48))
    for seed in range(10):
        for one in Scene.make(seed, options).objects:
            assert one.extent in (range(20, 25) if one.size == "small" else range(40, 49))


@pytest.mark.parametrize(
    "wrong",
    [
        {"side": 40},
        {"objects": (0, 3)},
        {"objects": (4, 3)},
        {"objects": (3, 9)},
        {"small": (44, 90)},
        {"large": (90, 80)},
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionsError, match=f"{next(iter(wrong))}="):
        SceneOptions(**wrong)  # type: ignore[arg-type]


def test_patches_that_do_not_fill_the_picture_are_refused() -> None:
    with pytest.raises(OptionsError, match="patch=14"):
        Scene.make(0, SceneOptions(side=100)).patch_labels()


# Expressions.


def described(scene: Scene, description: Description) -> set[int]:
    return having(scene, list(description.named().values()))


def could_mean(scene: Scene, expression: Expression) -> set[int]:
    """Every object that someone not too exact might take it for."""
    first, *narrowing = expression.meaning
    meant = described(scene, first)
    extent = {one.index: one.extent for one in scene.objects}
    for one in narrowing:
        if isinstance(one, Beside):
            [reference] = described(scene, one.reference)
            meant = {
                index
                for index in meant - {reference}
                if gap(scene, index, one.direction, reference) > -19
            }
        elif isinstance(one, Extreme):
            meant = {
                index
                for index in meant
                if all(gap(scene, index, one.direction, other) > -19 for other in meant)
            }
        elif isinstance(one, Compared):
            sign = 1 if one.size == "large" else -1
            assert len(meant) > 1
            assert one.pair == (len(meant) == 2)
            most = max(sign * extent[index] for index in meant)
            meant = {index for index in meant if sign * extent[index] > most - 20}
        else:
            raise AssertionError(one)
    return meant


def test_expressions_mean_one_object_even_to_the_inexact(every: Sequence[SceneSample]) -> None:
    kinds: Counter[str] = Counter()
    for sample in every:
        for expression in sample.expressions:
            assert could_mean(sample.scene, expression) == {expression.target}
            kinds[expression.kind] += 1
    assert set(kinds) == set(EXPRESSION_KINDS)
    assert min(kinds.values()) > 0.08 * kinds.total()


def test_expressions_are_clearly_true_of_what_they_mean(every: Sequence[SceneSample]) -> None:
    for sample in every:
        for expression in sample.expressions:
            for one in expression.meaning:
                if isinstance(one, Beside):
                    [reference] = described(sample.scene, one.reference)
                    assert gap(sample.scene, expression.target, one.direction, reference) >= 20


def test_expressions_say_what_they_mean(every: Sequence[SceneSample]) -> None:
    for sample in every:
        for expression in sample.expressions:
            said = Counter(attributes_in(expression.text))
            meant: Counter[str] = Counter()
            for one in expression.meaning:
                if isinstance(one, Description):
                    meant.update(one.named().values())
                elif isinstance(one, Beside):
                    meant.update(one.reference.named().values())
                elif isinstance(one, Compared):
                    words = ("small", "smallest") if one.size == "small" else ("larg", "bigg")
                    assert any(word in expression.text for word in words)
            assert said == meant


def test_narrowing_is_never_idle(every: Sequence[SceneSample]) -> None:
    for sample in every:
        for expression in sample.expressions:
            if len(expression.meaning) > 1:
                assert len(described(sample.scene, expression.meaning[0])) > 1


# Wordings.


def abstract(text: str) -> str:
    """The text without what changes from object to object."""
    for word in wording.words(text):
        if word in NOUNS:
            text = re.sub(rf"\b{word}\b", "NOUN", text)
        elif word in VALUES:
            text = re.sub(rf"\b{word}\b", "ADJECTIVE", text)
    return re.sub(r"ADJECTIVE(,? (and )?ADJECTIVE)*", "ADJECTIVES", text)


def test_every_form_has_several_wordings_and_no_wording_is_in_two_splits() -> None:
    for forms in (wording.EXPRESSIONS, wording.QUESTIONS):
        for by_split in forms.values():
            counts = Counter(one for split in SPLITS for one in by_split[split])
            assert set(counts.values()) == {1}
            assert len(by_split["train"]) >= 3
            assert min(len(by_split["val"]), len(by_split["test"])) >= 2


def test_splits_share_no_expression_pattern_and_no_question_wording(
    samples: dict[str, list[SceneSample]],
) -> None:
    patterns = {
        split: {abstract(one.text) for sample in samples[split] for one in sample.expressions}
        for split in SPLITS
    }
    templates = {
        split: {sample.question.template for sample in samples[split]}
        | {one.template for sample in samples[split] for one in sample.expressions}
        for split in SPLITS
    }
    for found in (patterns, templates):
        assert not found["train"] & found["val"]
        assert not found["train"] & found["test"]
        assert not found["val"] & found["test"]
    used = sum(
        len(by[s])
        for forms in (wording.EXPRESSIONS, wording.QUESTIONS)
        for by in forms.values()
        for s in SPLITS
    )
    assert sum(map(len, templates.values())) == used


def test_splits_share_no_scene(samples: dict[str, list[SceneSample]]) -> None:
    seeds = {split: {sample.scene.seed for sample in samples[split]} for split in SPLITS}
    pictures = {
        split: {
            hashlib.sha256(sample.scene.pixels.tobytes()).digest() for sample in samples[split][::4]
        }
        for split in SPLITS
    }
    for found in (seeds, pictures):
        assert len(set().union(*found.values())) == sum(map(len, found.values()))
    assert len({scene_seed(split, number) for split in SPLITS for number in range(99)}) == 297


def test_every_prompt_has_words_of_its_split_and_all_are_words_of_training(
    samples: dict[str, list[SceneSample]],
) -> None:
    for split in SPLITS:
        said = {word for sample in samples[split] for word in wording.words(sample.prompt)}
        assert said <= wording.vocabulary(split) <= wording.vocabulary("train")


def test_no_text_has_a_wrong_article_or_an_open_field(every: Sequence[SceneSample]) -> None:
    for sample in every:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|[{}]|  ", sample.prompt)


# Questions.


def test_texts_are_in_the_prompt_and_the_question_is_about_the_first(
    every: Sequence[SceneSample],
) -> None:
    for sample in every:
        question = sample.question
        assert sample.texts[: len(question.texts)] == question.texts
        assert all(text in sample.prompt for text in question.texts)
        assert sample.expressions[: len(question.expressions)] == question.expressions
        if question.targets:
            owned = np.isin(sample.scene.owners, question.targets)
            assert sample.mask is not None
            assert (sample.mask == owned).all()
        else:
            assert sample.mask is None
            assert sample.answer in ("no", "0")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute_questions_ask_for_what_the_text_does_not_tell(
    every: Sequence[SceneSample], name: str
) -> None:
    for sample in of_kind(every, name):
        [target] = sample.question.targets
        assert sample.answer == getattr(sample.scene.objects[target], name)
        [expression] = sample.question.expressions
        assert name not in expression.meaning[0].named()
        if name == "size":
            assert not any(isinstance(one, Compared) for one in expression.meaning)


def test_boxes_are_those_of_the_masks(every: Sequence[SceneSample]) -> None:
    for sample in of_kind(every, "box"):
        assert sample.answer is None
        assert sample.mask is not None
        assert sample.box == seen_box(sample.mask)


def test_counts_are_right_and_none_is_of_things_half_there(every: Sequence[SceneSample]) -> None:
    for sample in of_kind(every, "count"):
        values = attributes_in(sample.texts[0])
        assert sample.answer == str(len(having(sample.scene, values)))
        assert all(having(sample.scene, [value]) for value in values)


def test_presence_is_right_and_no_is_hard(every: Sequence[SceneSample]) -> None:
    for sample in of_kind(every, "presence"):
        values = attributes_in(sample.texts[0])
        assert len(values) in (2, 3)
        assert sample.answer == ("yes" if having(sample.scene, values) else "no")
        if sample.answer == "no" and hard_absences(sample.scene):
            assert all(having(sample.scene, [value]) for value in values)
            # One object has all but one of them.
            assert any(having(sample.scene, [v for v in values if v != one]) for one in values)


def test_relations_are_right(every: Sequence[SceneSample]) -> None:
    directions = {
        phrase: direction
        for field in ("side", "direction", "place")
        for direction, phrase in wording.DIRECTION_WORDS[field].items()
    }
    for sample in of_kind(every, "relation"):
        rest = sample.prompt
        for text in sample.question.texts:
            rest = rest.replace(text, "X")
        [direction] = {d for phrase, d in directions.items() if re.search(rf"X {phrase} X", rest)}
        one, other = sample.question.targets
        distance = gap(sample.scene, one, direction, other)
        assert abs(distance) >= 20
        assert sample.answer == ("yes" if distance > 0 else "no")


def test_no_answer_is_overwhelmingly_common(samples: dict[str, list[SceneSample]]) -> None:
    most = {"colour": 0.25, "shape": 0.25, "texture": 0.5, "size": 0.64, "count": 0.5}
    for kind in QUESTION_KINDS:
        asked = of_kind(samples["train"], kind)
        given = Counter(answers.right_answer(sample) for sample in asked)
        [(_, commonest)] = given.most_common(1)
        assert commonest / len(asked) < (0.05 if kind == "box" else most.get(kind, 0.6)), kind
        if kind != "box":
            assert set(given) <= set(wording.ANSWERS[kind])
            assert kind == "count" or set(given) == set(wording.ANSWERS[kind])


def test_kinds_of_questions_are_about_as_frequent(samples: dict[str, list[SceneSample]]) -> None:
    counts = Counter(sample.kind for sample in samples["train"])
    assert set(counts) == set(QUESTION_KINDS)
    assert min(counts.values()) > 0.7 * max(counts.values())


# Answers.


def test_box_is_read_back_within_half_a_step() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = (
            float(edge) for edge in random.integers([0, 0, 160, 160], [150, 150, 337, 337])
        )
        box = (left, top, right, bottom)
        text = answers.write_box(box, 336, 336)
        assert re.fullmatch(r"(\d\d ){3}\d\d", text)
        read = answers.read_box(text, 336, 336)
        assert read is not None
        assert np.abs(np.subtract(read, box)).max() <= 336 / 99 / 2 + 1e-9
        assert answers.iou(read, box) > 0.5


def test_box_numbers_span_the_image_and_halves_go_up() -> None:
    assert answers.write_box((0, 0, 640, 480), 640, 480) == "00 00 99 99"
    assert answers.write_box((0.5, 1.49, 2.5, 98.5), 99, 99) == "01 01 03 99"
    assert answers.read_box("00 00 99 99", 640, 480) == (0, 0, 640, 480)
    assert answers.read_box("[1, 2, 33, 44].", 99, 99) == (1, 2, 33, 44)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no",
        "1 2 3",
        "1 2 3 4 5",
        "10 10 10 20",
        "10 20 30 10",
        "-1 2 3 4",
        "1 2 100 4",
        "1.5 2 3 4",
    ],
)
def test_what_is_no_box_is_not_read(answer: str) -> None:
    assert answers.read_box(answer, 336, 336) is None


def test_overlap_of_boxes() -> None:
    assert answers.iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert answers.iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert answers.iou((0, 0, 2, 2), (2, 0, 3, 2)) == 0
    assert answers.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_right_answers_are_right_in_any_case_and_with_any_punctuation(
    every: Sequence[SceneSample],
) -> None:
    for sample in every:
        right = answers.right_answer(sample)
        assert answers.is_right(sample, right)
        assert answers.is_right(sample, f" {right.capitalize()}.\n")
        assert not answers.is_right(sample, "")
        assert not answers.is_right(sample, "something else")


def test_number_words_are_numbers(every: Sequence[SceneSample]) -> None:
    count = next(sample for sample in every if sample.answer == "2")
    assert answers.is_right(count, "Two.")
    assert not answers.is_right(count, "3")
    assert not answers.is_right(count, "2 3")


def test_answer_of_another_object_with_another_colour_is_wrong(
    every: Sequence[SceneSample],
) -> None:
    for sample in of_kind(every, "colour"):
        for one in sample.scene.objects:
            assert answers.is_right(sample, one.colour) == (one.colour == sample.answer)


def test_guesses_are_answers_but_seldom_right(every: Sequence[SceneSample]) -> None:
    random = np.random.default_rng(0)
    for sample in islice(every, 50):
        guess = random_object_guess(sample, random)
        assert set(wording.words(guess)) <= set(wording.ANSWERS[sample.kind])
    accuracy = guess_accuracy(every, random)
    assert set(accuracy) == set(QUESTION_KINDS)
    for kind, most in {"colour": 0.5, "shape": 0.5, "box": 0.3, "count": 0.5}.items():
        assert 0.05 < accuracy[kind] < most
    for kind in ("presence", "relation"):
        assert accuracy[kind] == pytest.approx(0.5, abs=0.12)


# The data set.


def alike(one: Sample, other: Sample) -> bool:
    return (one.name, one.prompt, one.texts, one.answer, one.box) == (
        other.name,
        other.prompt,
        other.texts,
        other.answer,
        other.box,
    ) and one.image.tobytes() == other.image.tobytes()


def test_dataset_is_the_same_every_time_and_as_long_as_it_says() -> None:
    dataset: Dataset = SceneDataset("val", 21)
    assert (dataset.name, dataset.split, len(dataset)) == ("scenes", "val", 21)
    first, again = list(dataset), list(dataset)
    assert len(first) == 21
    assert all(alike(*pair) for pair in zip(first, again, strict=True))


def test_names_are_unique_and_a_scene_s_prompts_differ(every: Sequence[SceneSample]) -> None:
    assert len({sample.name for sample in every}) == len(every)
    assert len({(sample.scene.seed, sample.prompt) for sample in every}) == len(every)


def test_samples_about_one_image_follow_each_other() -> None:
    dataset = SceneDataset("train", 40, questions=5, first=7)
    seeds = [sample.scene.seed for sample in dataset]
    assert seeds == sorted(seeds)
    assert seeds[0] == scene_seed("train", 7)
    assert max(Counter(seeds).values()) == 5


def test_three_texts_mean_three_objects_where_there_are_so_many() -> None:
    for sample in SceneDataset("test", 60, texts=3):
        assert len(sample.texts) == len(set(sample.texts)) == 3
        own = len(sample.question.texts)
        more = [expression.target for expression in sample.expressions[-(3 - own) :]]
        assert len(set(more)) == len(more) or len(sample.scene.objects) < 5


def test_dataset_asks_only_what_it_was_told_to() -> None:
    dataset = SceneDataset(
        "train",
        30,
        kinds=("colour", "box"),
        expression_kinds=("attribute",),
        scenes=SceneOptions(side=112, objects=(1, 2)),
    )
    for sample in dataset:
        assert sample.kind in ("colour", "box")
        assert sample.image.size == (112, 112)
        assert {one.kind for one in sample.expressions} == {"attribute"}


def test_one_object_is_enough_for_presence_of_both_answers() -> None:
    dataset = SceneDataset(
        "train", 60, kinds=("presence",), scenes=SceneOptions(side=112, objects=(1, 1))
    )
    assert {sample.answer for sample in dataset} == {"yes", "no"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": ("color",)},
        {"expression_kinds": ()},
        {"questions": 0},
        {"texts": 0},
        {"first": -1},
    ],
)
def test_dataset_refuses_what_it_does_not_know(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionsError, match=next(iter(wrong))):
        SceneDataset("train", 8, **wrong)  # type: ignore[arg-type]


def test_dataset_that_can_ask_nothing_says_so() -> None:
    lonely = SceneOptions(side=70, objects=(1, 1))
    with pytest.raises(OptionsError, match="no question"):
        list(SceneDataset("train", 8, kinds=("relation",), scenes=lonely))
