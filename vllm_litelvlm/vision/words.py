"""The words of a text that say something of an image, for methods that cover them one by one."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: How many tokens of an image's words count, of all of its texts together.
MOST_WORDS = 256

#: Words that show nothing: MMTok leaves them out.
_SILENT = frozenset(
    (
        *("a", "an", "the"),
        *("i", "you", "he", "she", "it", "we", "they"),
        *("who", "what", "which", "where", "when", "why", "how"),
        *("be", "been", "being", "is", "are", "was", "were"),
        *("do", "does", "did", "have", "has", "had"),
        *("and", "or", "but", "if", "then", "so"),
        *("at", "by", "for", "from", "into", "onto", "to", "upon", "with"),
        *("question", "answer"),
    )
)
#: What benchmarks put behind a question.
_INSTRUCTIONS = re.compile(
    r"Answer the question using a single word or phrase\."
    r"|Answer with the option's letter from the given choices directly\."
)
_WORD = re.compile(r"\w+")


def telling_words(text: str) -> str:
    """A text's words but for those that show nothing; where no other is left, the text."""
    said = _INSTRUCTIONS.sub("", text).strip() or text
    telling = [word for word in _WORD.findall(said) if word.lower() not in _SILENT]
    return " ".join(telling) or said


def word_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids of the telling words of all texts, each one's beginning, int32 [words].

    Args:
        tokenizer: the language model's.
        texts: of an image.
    """
    ids: list[int] = []
    for text in texts:
        own = tokenizer.encode(telling_words(text), add_special_tokens=False)
        ids += own[: max(1, MOST_WORDS // len(texts))]
    return torch.tensor(ids[:MOST_WORDS], dtype=torch.int32)
