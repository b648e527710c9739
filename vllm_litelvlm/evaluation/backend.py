"""The contract between evaluations and whatever answers their questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True)
class Question:
    """One image and what the user says of it.

    ``options`` are those of ``mm_processor_kwargs["litelvlm"]``. Where they name no ``texts``, the
    prompt guides the pruning. Answers are greedy, of at most ``max_tokens`` tokens.
    """

    image: Image.Image
    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 64


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it saw of the image.

    ``token_ids`` end with the end token, unless ``max_tokens`` came first; ``text`` is without it
    and without white space around it.
    ``prompt_tokens`` counts what the language model's first layer gets, ``visual_tokens`` how many
    tokens of the image its last layer sees.
    ``kept``: whose place each of these takes, in order, as in
    :attr:`vllm_litelvlm.pruning.base.Selection.indices`; ``guided``: whether the text had a say in
    its choice. Both are None where the backend cannot tell.
    ``seconds`` from the question to the answer.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    visual_tokens: int
    kept: tuple[int, ...] | None
    guided: tuple[bool, ...] | None
    seconds: float


class Backend(Protocol):
    """Answers questions by the methods that it can run."""

    def methods(self) -> tuple[str, ...]:
        """The names that ``options["method"]`` may have."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order. Raises OptionsError for options not allowed."""
