"""How a model is asked for masks, in words, and how its answers name what they are of."""

from collections.abc import Sequence
from typing import Any, Literal

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.grounding.layout import SEG_TOKEN, seg_token_index

#: The first of GLaMM's question templates, and of its answers (arXiv 2311.03356, released code).
_QUESTION = "Can you please segment the {} in this image?"
_ANSWER = f"Sure, it is {SEG_TOKEN}."
_OPEN, _CLOSE = "<p>", "</p>"


def rounds(image: dict[str, Any], expressions: Sequence[str]) -> list[dict[str, Any]]:
    """Messages of one conversation about an image, a question and an answer an expression.

    Args:
        image: a message's part, such as ``{"type": "image_url", "image_url": {"url": ...}}``.
        expressions: at least one.
    """
    messages: list[dict[str, Any]] = []
    for expression in expressions:
        asked = {"type": "text", "text": _QUESTION.format(expression)}
        content = [asked] if messages else [image, asked]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]})
    return messages


def conversations(
    expressions: Sequence[str], conversation: Literal["rounds", "separate"]
) -> list[Sequence[str]]:
    """The expressions of each conversation. Raises OptionsError for another way."""
    if conversation not in ("rounds", "separate"):
        raise OptionsError(
            f"conversation is {conversation!r}; allowed: 'rounds' (one conversation) or 'separate'."
        )
    return [expressions] if conversation == "rounds" else [[one] for one in expressions]


def asking_ids(ids: Sequence[int], expressions: Sequence[str], config: Any) -> list[int]:
    """The tokens of a conversation in front of its last [SEG]: the last of them predicts it.

    Args:
        ids: of the whole conversation, with a placeholder for its image.
        expressions: that it asks for.
        config: of the model.

    Raises OptionsError where expressions bring special tokens of the model.
    """
    seg_token = seg_token_index(config)
    if ids.count(seg_token) != len(expressions) or ids.count(config.image_token_index) != 1:
        raise OptionsError(
            f"Among the expressions {list(expressions)!r:.300} are special tokens of the model, "
            f"such as {SEG_TOKEN}; leave those out."
        )
    behind = list(reversed(ids)).index(seg_token)
    return list(ids[: len(ids) - behind - 1])


def named(said: Sequence[str]) -> list[str]:
    """What each [SEG] of an answer stands for, in the answer's own words.

    That is the phrase in front of it, which GLaMM writes between <p> and </p>; without one, all
    that is said since the last [SEG], which may be nothing.

    Args:
        said: the words in front of each [SEG], since the one before.
    """
    return list(map(_name, said))


def _name(words: str) -> str:
    phrase = words.strip().removesuffix(_CLOSE)
    start = phrase.rfind(_OPEN)
    is_phrase = words.rstrip().endswith(_CLOSE) and start >= 0
    return phrase[start + len(_OPEN) :].strip() if is_phrase else words.strip()
