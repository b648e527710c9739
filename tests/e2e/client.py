"""The official OpenAI client, with the few things that every end-to-end test asks of it."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI, OpenAI
from PIL import Image


@dataclass(frozen=True)
class Answer:
    """What a test compares: token ids, each with its log-probability, and the prompt's length."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def user_turn(text: str, *images: Image.Image | str) -> dict[str, Any]:
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def anthropic_turn(text: str, url: str | None = None) -> dict[str, Any]:
    """A user's turn of ``/v1/messages``; ``url`` is a PNG's data URL."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if url is not None:
        source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
        content.insert(0, {"type": "image", "source": source})
    return {"role": "user", "content": content}


def request(
    messages: list[dict[str, Any]] | dict[str, Any],
    options: object = None,
    tokens: int = 8,
    model: str = "model",
    **extra: Any,
) -> dict[str, Any]:
    """Arguments of ``chat.completions.create``, greedy, with log-probabilities."""
    body: dict[str, Any] = {"return_token_ids": True, **extra}
    if options is not None:
        body["mm_processor_kwargs"] = {"litelvlm": options}
    return {
        "model": model,
        "messages": messages if isinstance(messages, list) else [messages],
        "max_tokens": tokens,
        "temperature": 0,
        "logprobs": True,
        "extra_body": body,
    }


def read(completion: Any) -> Answer:
    choice = completion.choices[0]
    return Answer(
        token_ids=tuple(choice.token_ids),
        logprobs=tuple(entry.logprob for entry in choice.logprobs.content),
        prompt_tokens=completion.usage.prompt_tokens,
    )


def ask(url: str, *args: Any, **kwargs: Any) -> Answer:
    """Send one request and wait for its answer."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return read(client.chat.completions.create(**request(*args, **kwargs)))


def async_client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
