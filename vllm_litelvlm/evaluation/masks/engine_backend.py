"""Masks by vLLM's offline class, without a server between."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.engine_backend import refusals_told
from vllm_litelvlm.evaluation.masks.backend import MaskAnswer, MaskQuestion, Picture
from vllm_litelvlm.grounding import segment_frames


class EngineMasks:
    """Hands questions to an engine, one after the other; the pictures of one are in it at once.

    Args:
        llm: of :func:`~vllm_litelvlm.evaluation.engine_backend.start_engine`, with
            ``--runner=pooling``.

    Raises OptionsError for an engine that generates.
    """

    def __init__(self, llm: Any) -> None:
        runner = llm.llm_engine.model_config.runner_type
        if runner != "pooling":
            raise OptionsError(
                f"The engine's runner is {runner!r}; masks are judged by 'pooling', a conversation "
                "in one prefill. Leave --runner out."
            )
        self._llm = _Counting(llm)

    def answer(self, questions: Sequence[MaskQuestion]) -> Iterator[MaskAnswer]:
        """One answer a question, in order. Raises OptionsError for what is refused."""
        for question in questions:
            with refusals_told():
                found = segment_frames(
                    self._llm,
                    [_opened(picture) for picture in question.pictures],
                    question.texts,
                    options=question.options,
                )
            yield MaskAnswer(
                masks=[np.stack([mask.pixels for mask in masks]) for masks in found],
                prompt_tokens=self._llm.prompt_tokens / len(question.pictures),
            )


class _Counting:
    """An engine that knows how many tokens the prompts had that it was given last."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.prompt_tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def encode(self, prompts: Any, **further: Any) -> Any:
        """As vLLM's, without its progress bar."""
        outputs = self._llm.encode(prompts, **{**further, "use_tqdm": False})
        self.prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        return outputs


def _opened(picture: Picture) -> Image.Image:
    return Image.open(picture) if isinstance(picture, Path) else picture
