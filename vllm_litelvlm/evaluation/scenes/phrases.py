"""From meanings and wordings to texts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from vllm_litelvlm.evaluation.scenes.meanings import (
    Beside,
    Compared,
    Description,
    Extreme,
    Meaning,
)
from vllm_litelvlm.evaluation.scenes.wording import (
    COMPARED_WORDS,
    DIRECTION_WORDS,
    FIELD,
    NOUNS,
    PICTURE_WORDS,
    plural,
)

Value = TypeVar("Value")


def pick(random: np.random.Generator, values: Sequence[Value]) -> Value:
    """One of the values, each as likely as the others."""
    return values[int(random.integers(len(values)))]


def shuffled(random: np.random.Generator, values: Iterable[Value]) -> list[Value]:
    """The values in random order."""
    listed = list(values)
    return [listed[place] for place in random.permutation(len(listed)).tolist()]


def noun_fields(description: Description, random: np.random.Generator) -> dict[str, str]:
    """The words for a described object, by the field that takes them."""
    named = description.named()
    noun = named.pop("shape", None) or pick(random, NOUNS)
    adjectives = list(named.values())
    joined = " and ".join([", ".join(adjectives[:-1]), *adjectives[-1:]]).removeprefix(" and ")
    return {
        "noun": noun,
        "adjectives": joined,
        "one": " ".join([*adjectives, noun]),
        "many": " ".join([*adjectives, plural(noun)]),
    }


def direction_fields(direction: str) -> dict[str, str]:
    """The words for a direction, by the field that takes them."""
    return {field: phrases[direction] for field, phrases in DIRECTION_WORDS.items()}


def meaning_fields(meaning: Meaning, random: np.random.Generator) -> dict[str, str]:
    """The words for all that a meaning says, by the field that takes them."""
    description, *narrowing = meaning
    fields = noun_fields(description, random)
    for one in narrowing:
        if isinstance(one, Compared):
            fields["compared"] = pick(random, COMPARED_WORDS[one.size, one.pair])
            fields["counted"] = f"two {fields['many']}" if one.pair else fields["many"]
        elif isinstance(one, Extreme):
            fields |= direction_fields(one.direction)
        elif isinstance(one, Beside):
            fields |= direction_fields(one.direction)
            fields["other"] = noun_fields(one.reference, random)["one"]
    if "compared" in fields and "other" in fields:
        fields["one"] = f"{fields['compared']} {fields['one']}"
    return fields


def fill(
    wordings: Sequence[str], fields: Mapping[str, str], random: np.random.Generator
) -> tuple[str, str]:
    """One of the wordings that the fields suffice for, and the text that it gives.

    Where the fields speak of the picture, a wording that does so again is taken only if all do.
    """
    suiting = [
        wording for wording in wordings if all(fields.get(name) for name in FIELD.findall(wording))
    ]
    if any(PICTURE_WORDS.search(value) for value in fields.values()):
        suiting = [one for one in suiting if not PICTURE_WORDS.search(one)] or suiting
    wording = pick(random, suiting)
    return wording, re.sub(r"\ba (?=[aeiou])", "an ", wording.format_map(fields))
