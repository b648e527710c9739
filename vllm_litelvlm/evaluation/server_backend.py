"""A running ``vllm serve --plugin litelvlm``, asked with the official OpenAI client."""

import base64
import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from openai import BadRequestError, OpenAI
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.backend import Answer, Question
from vllm_litelvlm.options import OPTIONS_KEY
from vllm_litelvlm.pruning.registry import decoder_method_names, method_names, pruner_class


class ServerBackend:
    """Sends questions to a server; which patches it kept, it does not say.

    Args:
        url: the server's root, such as ``http://localhost:8000``.
        concurrent: how many questions are on their way at once. A question's seconds then include
            its waiting for the others.
        timeout: seconds to wait for one answer.
    """

    def __init__(self, url: str, concurrent: int = 1, timeout: float = 600) -> None:
        self._client = OpenAI(
            base_url=f"{url.rstrip('/')}/v1", api_key="none", max_retries=0, timeout=timeout
        )
        self._concurrent = concurrent

    def methods(self) -> tuple[str, ...]:
        """Those of the engine."""
        return method_names()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order.

        Raises OptionsError for options that the server refuses, and the client's own errors where
        it does not answer.
        """
        for question in questions:
            method = question.options.get("method")
            if method in decoder_method_names():
                pruner_class(method)  # says why the engine cannot run it
        if questions:
            _ = self._image_token  # found once, before many ask for it
        with ThreadPoolExecutor(self._concurrent) as pool:
            return list(pool.map(self._answer, questions))

    @cached_property
    def _model(self) -> str:
        return str(self._client.models.list().data[0].id)

    @cached_property
    def _image_token(self) -> int:
        """The placeholder's id: what a prompt with an image has most of."""
        blank = Image.new("RGB", (640, 640))  # many tokens, whatever the model
        completion = self._ask(Question(blank, "What is this?", max_tokens=1))
        [(token, _)] = Counter(completion.prompt_token_ids).most_common(1)
        return int(token)

    def _answer(self, question: Question) -> Answer:
        began = time.perf_counter()
        completion = self._ask(question)
        choice = completion.choices[0]
        return Answer(
            text=(choice.message.content or "").strip(),
            token_ids=tuple(choice.token_ids),
            prompt_tokens=completion.usage.prompt_tokens,
            visual_tokens=completion.prompt_token_ids.count(self._image_token),
            kept=None,
            guided=None,
            seconds=time.perf_counter() - began,
        )

    def _ask(self, question: Question) -> Any:
        """A chat completion, with vLLM's token ids as extra fields."""
        parts: list[Mapping[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(question.image)}},
            {"type": "text", "text": question.prompt},
        ]
        extra: dict[str, Any] = {"return_token_ids": True}
        if question.options:
            extra["mm_processor_kwargs"] = {OPTIONS_KEY: dict(question.options)}
        try:
            return self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": parts}],  # type: ignore[misc, list-item]
                max_tokens=question.max_tokens,
                temperature=0,
                extra_body=extra,
            )
        except BadRequestError as error:
            raise OptionsError(f"The server refused the question: {error.message}") from error


def _data_url(image: Image.Image) -> str:
    """An image without loss."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
