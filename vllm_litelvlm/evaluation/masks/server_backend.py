"""``POST /v1/masks`` of a running ``vllm serve --plugin litelvlm``."""

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from openai import BadRequestError, NotFoundError, OpenAI
from pycocotools import mask as coco_mask

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.masks.backend import MaskAnswer, MaskQuestion, Picture
from vllm_litelvlm.options import OPTIONS_KEY


class ServerMasks:
    """Sends questions to a server, by the official OpenAI client.

    Args:
        url: the server's root, such as ``http://localhost:8000``.
        concurrent: how many questions are on their way at once.
        timeout: seconds to wait for one answer.
    """

    def __init__(self, url: str, concurrent: int = 1, timeout: float = 600) -> None:
        self._url = url.rstrip("/")
        self._client = OpenAI(
            base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=timeout
        )
        self._concurrent = concurrent

    def answer(self, questions: Sequence[MaskQuestion]) -> Iterator[MaskAnswer]:
        """One answer a question, in order.

        Raises OptionsError for what the server refuses, and the client's own errors where it does
        not answer.
        """
        pool = ThreadPoolExecutor(self._concurrent)
        try:
            yield from pool.map(self._answer, questions)
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, question: MaskQuestion) -> MaskAnswer:
        body = {
            "images": [_data_url(picture) for picture in question.pictures],
            "expressions": list(question.texts),
            "conversation": "rounds",
            "format": "rle",
            "mm_processor_kwargs": {OPTIONS_KEY: dict(question.options)},
        }
        try:
            answer: Any = self._client.post("/masks", body=body, cast_to=object)
        except BadRequestError as error:
            raise OptionsError(
                f"The server refused masks of {list(question.texts)}: {error.message}"
            ) from error
        except NotFoundError as error:
            raise OptionsError(
                f"The server at {self._url} has no /v1/masks. Start it with "
                "vllm serve MODEL --plugin litelvlm."
            ) from error
        count = len(question.texts)
        decoded = [coco_mask.decode(one["segmentation"]).astype(np.bool_) for one in answer["data"]]
        return MaskAnswer(
            masks=[np.stack(decoded[at : at + count]) for at in range(0, len(decoded), count)],
            prompt_tokens=answer["usage"]["prompt_tokens"] / len(question.pictures),
        )


def _data_url(picture: Picture) -> str:
    """A file as it is, and pixels without loss."""
    if isinstance(picture, Path):
        return f"data:image/jpeg;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    plain = picture.convert("RGB")
    plain.info = {}  # an orientation in it would turn the picture
    buffer = io.BytesIO()
    plain.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
