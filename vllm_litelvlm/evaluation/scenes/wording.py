"""The language of scenes: every wording of every split, and every word.

Wordings have fields in braces. ``{one}`` is a described object without article ("small red star"),
``{many}`` its plural, ``{counted}`` the same with "two" before it where there are two. ``{noun}``
and ``{adjectives}`` are its parts ("star", "small and red"). No split has another one's wording;
validation and test have words of training only.
"""

import re
from collections.abc import Mapping
from typing import Literal

from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Wordings = Mapping[Split, tuple[str, ...]]

#: Each kind of referring expression.
EXPRESSIONS: Mapping[str, Wordings] = {
    "attribute": {
        "train": (
            "the {one}",
            "the {one} in the image",
            "the one {one}",
            "the only {one} here",
            "the {one} in this picture",
            "the {noun} that is {adjectives}",
            "the only {noun} that is {adjectives}",
            "the {noun} you see that is {adjectives}",
        ),
        "val": ("the one {one} in the image", "the {noun} which is {adjectives}"),
        "test": ("the only {one} in this picture", "the one {noun} that is {adjectives}"),
    },
    "position": {
        "train": (
            "the {outermost} {one}",
            "the {one} {far}",
            "the {one} that is {far}",
            "the {one} closest to the {edge} edge",
            "the {outermost} one of the {many}",
            "the {one} you see {far}",
            "the one {one} that is {far}",
        ),
        "val": ("the {one} {far} of the image", "the {outermost} of the {many}"),
        "test": (
            "the {one} that is closest to the {edge} edge",
            "the {one} that is the {outermost} one",
        ),
    },
    "comparison": {
        "train": (
            "the {compared} {one}",
            "the {compared} {one} in the image",
            "the {compared} of the {counted}",
            "the {one} that is {compared}",
            "the only {compared} {one}",
            "the {one} you see that is {compared}",
        ),
        "val": ("the {compared} one of the {counted}", "the {compared} {one} in this picture"),
        "test": ("the one {one} that is {compared}", "the {one} that is the {compared} one"),
    },
    "relation": {
        "train": (
            "the {one} {side} the {other}",
            "the {one} {direction} the {other}",
            "the {one} {place} the {other}",
            "the {one} that is {side} the {other}",
            "the {one} you see {side} the {other}",
            "the one {one} {side} the {other}",
            "the {one} that is {place} the {other}",
        ),
        "val": (
            "the {one} that is {direction} the {other}",
            "the {one} which is {side} the {other}",
        ),
        "test": (
            "the {one} you see {direction} the {other}",
            "the {one} which is {place} the {other}",
        ),
    },
}

#: Each form of question. ``{x}`` and ``{y}`` are referring expressions.
QUESTIONS: Mapping[str, Wordings] = {
    "attribute": {
        "train": (
            "What {attribute} is {x}?",
            "What is the {attribute} of {x}?",
            "Which {attribute} does {x} have?",
            "Of what {attribute} is {x}?",
            "The {attribute} of {x} is what?",
            "Do you see what {attribute} {x} is?",
            "In the image, which {attribute} does {x} have?",
        ),
        "val": ("Which {attribute} is {x}?", "What {attribute} does {x} have?"),
        "test": ("Which is the {attribute} of {x}?", "Of which {attribute} is {x}?"),
    },
    "count": {
        "train": (
            "How many {many} are there?",
            "How many {many} do you see?",
            "How many {many} does the image have?",
            "What is the number of {many} in this picture?",
            "In this picture, how many {many} are there?",
            "Do you see how many {many} there are?",
            "What number of {many} does the image have?",
        ),
        "val": ("How many {many} are in the image?", "What number of {many} do you see?"),
        "test": ("How many {many} are here?", "What is the number of {many} here?"),
    },
    "presence": {
        "train": (
            "Is there a {one}?",
            "Is there a {one} in the image?",
            "Do you see a {one}?",
            "Does this picture have a {one}?",
            "In the image, is there a {one}?",
            "In this picture, do you see a {one}?",
        ),
        "val": ("Does the image have a {one}?", "Do you see a {one} here?"),
        "test": ("Is there a {one} in this picture?", "Is a {one} here?"),
    },
    "relation": {
        "train": (
            "Is {x} {side} {y}?",
            "Is {x} {direction} {y}?",
            "Is {x} {place} {y}?",
            "In this picture, is {x} {side} {y}?",
            "Do you see {x} {side} {y}?",
            "In the image, do you see {x} {direction} {y}?",
        ),
        "val": ("Do you see {x} {direction} {y}?", "In this picture, is {x} {direction} {y}?"),
        "test": ("Do you see {x} {place} {y}?", "In this picture, is {x} {place} {y}?"),
    },
    "box": {
        "train": (
            "Where is {x}?",
            "Where in the image is {x}?",
            "Where do you see {x}?",
            "What is the place of {x}?",
            "Where is the place of {x}?",
            "Do you see where {x} is?",
            "In this picture, where do you see {x}?",
            "At what place do you see {x}?",
        ),
        "val": ("Which is the place of {x}?", "Where in this picture is {x}?"),
        "test": ("In which place is {x}?", "In the image, where is {x}?"),
    },
}

#: What says the form of the answer, below a question of each kind.
ANSWER_FORMS: Mapping[str, str] = {
    **dict.fromkeys(ATTRIBUTES, "Answer with a single word."),
    "count": "Answer with a number.",
    "presence": "Answer yes or no.",
    "relation": "Answer yes or no.",
    "box": "Answer with a box.",
}

#: The words of every field that names a direction.
DIRECTION_WORDS: Mapping[str, Mapping[str, str]] = {
    "outermost": {
        "left": "leftmost",
        "right": "rightmost",
        "above": "topmost",
        "below": "bottommost",
    },
    "far": {
        "left": "on the far left",
        "right": "on the far right",
        "above": "at the very top",
        "below": "at the very bottom",
    },
    "edge": {"left": "left", "right": "right", "above": "top", "below": "bottom"},
    "side": {"left": "left of", "right": "right of", "above": "above", "below": "below"},
    "direction": {
        "left": "to the left of",
        "right": "to the right of",
        "above": "over",
        "below": "under",
    },
    "place": {
        "left": "on the left side of",
        "right": "on the right side of",
        "above": "higher than",
        "below": "lower than",
    },
}

#: The comparatives and superlatives of both sizes, first among two, then among more.
COMPARED_WORDS: Mapping[tuple[str, bool], tuple[str, ...]] = {
    ("small", True): ("smaller",),
    ("small", False): ("smallest",),
    ("large", True): ("larger", "bigger"),
    ("large", False): ("largest", "biggest"),
}

#: What an object is called whose shape is not named.
NOUNS = ("object", "thing")

#: Every answer that a question of each kind may have; a box has four of its words.
ANSWERS: Mapping[str, tuple[str, ...]] = {
    **ATTRIBUTES,
    "count": tuple(str(number) for number in range(9)),
    "presence": ("yes", "no"),
    "relation": ("yes", "no"),
    "box": tuple(f"{number:02d}" for number in range(100)),
}

FIELD = re.compile(r"\{(\w+)\}")
#: What speaks of the picture as a whole; twice in one question is too often.
PICTURE_WORDS = re.compile(r"\b(image|picture|here)\b")


def words(text: str) -> list[str]:
    """The words and numbers of a text, in small letters."""
    return re.findall(r"[a-z0-9]+", text.lower())


def plural(noun: str) -> str:
    """The plural of a shape or another noun of this language."""
    return noun + ("es" if noun.endswith("s") else "s")


def vocabulary(split: Split) -> frozenset[str]:
    """Every word that prompts of a split may hold."""
    wordings = [
        wording
        for forms in (EXPRESSIONS, QUESTIONS)
        for by_split in forms.values()
        for wording in by_split[split]
    ]
    fields = {field for wording in wordings for field in FIELD.findall(wording)}
    texts = [FIELD.sub(" ", wording) for wording in wordings]
    texts += [
        phrase
        for field in fields & DIRECTION_WORDS.keys()
        for phrase in DIRECTION_WORDS[field].values()
    ]
    nouns = [*ATTRIBUTES["shape"], *NOUNS]
    texts += [*ANSWER_FORMS.values(), *nouns, *map(plural, nouns), *ATTRIBUTES, "and", "an", "two"]
    texts += [value for values in ATTRIBUTES.values() for value in values]
    texts += [word for synonyms in COMPARED_WORDS.values() for word in synonyms]
    return frozenset(word for text in texts for word in words(text))
