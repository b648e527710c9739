"""How a model is asked for masks, in words."""

from collections.abc import Sequence
from typing import Any, Literal

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.grounding.layout import SEG_TOKEN

#: The first of GLaMM's question templates, and of its answers (arXiv 2311.03356, released code).
_QUESTION = "Can you please segment the {} in this image?"
_ANSWER = f"Sure, it is {SEG_TOKEN}."


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


def before_last(token: int, ids: Sequence[int]) -> list[int]:
    """Token ids in front of the last such token: the last of them predicts it.

    Raises ValueError where there is none.
    """
    behind = list(reversed(ids)).index(token)
    return list(ids[: len(ids) - behind - 1])
