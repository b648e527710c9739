"""Requests drawn at random: options, conversations, pictures, endpoints and models."""

import base64
import io
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vllm_litelvlm.options import COMMON_OPTIONS, SERVER_OPTIONS
from vllm_litelvlm.pruning.registry import method_names, pruner_class

VARIANTS: dict[str, Any] = {
    "fast": {"budget": 64, "served_model_name": "quick"},
    "fovea": {"method": "fovea", "budget": 0.1, "focus": 0.25, "positions": "original"},
    "whole": {"method": "keep-all"},
    "padded": {"method": "divprune", "budget": 29, "frame": "pad"},
}
MODELS = ["model", "alias", "adapter"]
_WHOLE = "quick"

_WORDS = ["the", "red", "cup", "where", "is", "USER:", "ASSISTANT:", "<s>", "<image>"]
_WORDS += ["’", "ﬁ", "&amp;", "赤い"]
_SIZES = [(1, 1), (1, 300), (300, 1), (40, 40), (64, 48), (48, 64), (333, 334), (900, 20)]
_FORMS = [("RGB", "PNG"), ("RGB", "JPEG"), ("RGBA", "PNG"), ("L", "PNG"), ("P", "GIF")]
_NOBODY = ["nobody", "model:nothing", ":fast", "model:", "model:fast:fast"]
_ODD: list[Any] = [None, True, -1, 0, 1, 1.5, 1e300, 2**70, "", "64", [], {}, [None], "x" * 500]


@dataclass(frozen=True)
class Generated:
    """A request; ``path`` is the endpoint's."""

    number: int
    path: str
    body: dict[str, Any]


class Generator:
    """A stream of requests that a seed and a number determine."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def request(self, number: int) -> Generated:
        """The request with a number."""
        draw = Draw(random.Random(f"{self._seed} {number}"))
        path = draw.random.choice(list(_ENDPOINTS))
        body = _ENDPOINTS[path](draw)
        return Generated(number, path, body)


@dataclass(frozen=True)
class Draw:
    """What a request consists of, one by one."""

    random: random.Random

    def often(self, share: float) -> bool:
        return self.random.random() < share

    def text(self) -> str:
        if self.often(0.05):
            return self.random.choice(["", " ", "\n", "x" * 3000, "\ud800", "\x00"])
        count = self.random.randint(1, 12)
        return " ".join(self.random.choices(_WORDS, k=count))

    def model(self) -> str:
        if self.often(0.05):
            return self.random.choice(_NOBODY)
        if self.often(0.1):
            return _WHOLE
        name = self.random.choice(MODELS)
        return f"{name}:{self.random.choice(list(VARIANTS))}" if self.often(0.5) else name

    def picture(self) -> str:
        mode, form = self.random.choice(_FORMS)
        colour = tuple(self.random.randrange(256) for _ in range(3))
        size = self.random.choice(_SIZES)
        image = Image.new("RGB", size, colour)
        if self.often(0.3):
            image = Image.effect_noise(size, 60).convert("RGB")
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, format=form)
        data = buffer.getvalue()
        if self.often(0.03):
            data = data[: len(data) // 2]
        return f"data:image/{form.lower()};base64,{base64.b64encode(data).decode()}"

    def options(self) -> Any:
        """Options of a request, most of them right."""
        if self.often(0.05):
            return self.random.choice(_ODD)
        method = self.random.choice([*method_names(), "litelvlm", "fovea"])
        likely: dict[str, Callable[[], Any]] = {
            "method": lambda: method,
            "budget": lambda: self.random.choice([1, 2, 29, 64, 200, 575, 576, 0.05, 0.5, 1.0]),
            "texts": lambda: [self.text() for _ in range(self.random.randint(1, 3))],
            "guide": lambda: self.random.choice(["last", "first", "all"]),
            "focus": lambda: self.random.choice([0, 0.25, 0.5]),
            "positions": lambda: self.random.choice(["compact", "original"]),
            "frame": lambda: self.random.choice(["crop", "pad"]),
        }
        assert set(likely) == set(COMMON_OPTIONS)
        options = {name: value() for name, value in likely.items() if self.often(0.4)}
        if self.often(0.3):
            name = self.random.choice([*pruner_class(method).model_fields, *COMMON_OPTIONS])
            options[name] = self.random.choice([0, 0.5, 1, "low", "high", "value", None, *_ODD])
        if self.often(0.05):
            options[self.random.choice([*SERVER_OPTIONS, "bugdet", "parameters"])] = 1
        return options

    def kwargs(self) -> dict[str, Any]:
        """What carries options, if anything."""
        if self.often(0.3):
            return {}
        kwargs = {"litelvlm": self.options()}
        if self.often(0.03):
            kwargs[self.random.choice(["litelvlm_variant", "litelvlm_conversation", "budget"])] = 64
        if self.often(0.05):  # where nobody reads it
            return self.random.choice([kwargs, {"extra_body": kwargs}, {"litelvlm": None}])
        return {"mm_processor_kwargs": kwargs}

    def sampling(self, limit: str) -> dict[str, Any]:
        return {limit: self.random.randint(1, 4), "temperature": self.random.choice([0, 1])}

    def conversation(self, image: Callable[[str], dict[str, Any]], text: str) -> list[Any]:
        """Messages; ``image`` makes a part of a picture, and ``text`` is the type of a text's."""
        messages: list[Any] = []
        if self.often(0.3):
            messages.append({"role": "system", "content": self.text()})
        for turn in range(self.random.choice([1, 1, 1, 2, 3])):
            parts: list[Any] = [{"type": text, "text": self.text()}]
            pictures = self.random.choice([0, 1, 1, 1, 2, 3] if turn == 0 else [0, 0, 1])
            for _ in range(pictures):
                parts.insert(self.random.randint(0, len(parts)), image(self.picture()))
            words_alone = len(parts) == 1 and self.often(0.5)
            messages.append({"role": "user", "content": parts[0]["text"] if words_alone else parts})
            messages.append({"role": "assistant", "content": self.text() or "Yes"})
        return messages[:-1]


def _image_url(draw: Draw) -> Callable[[str], dict[str, Any]]:
    def part(url: str) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
        if draw.often(0.1):
            made["uuid"] = draw.random.choice(string.ascii_lowercase)
            if draw.often(0.5):
                made["image_url"] = None
        return made

    return part


def _chat(draw: Draw) -> dict[str, Any]:
    return {
        "model": draw.model(),
        "messages": draw.conversation(_image_url(draw), "text"),
        "stream": draw.often(0.2),
        **draw.kwargs(),
        **draw.sampling("max_tokens"),
    }


def _batch(draw: Draw) -> dict[str, Any]:
    count = draw.random.randint(1, 3)
    return {
        "model": draw.model(),
        "messages": [draw.conversation(_image_url(draw), "text") for _ in range(count)],
        **draw.kwargs(),
        **draw.sampling("max_tokens"),
    }


def _completions(draw: Draw) -> dict[str, Any]:
    return {
        "model": draw.model(),
        "prompt": draw.text() or "a",
        **draw.kwargs(),
        **draw.sampling("max_tokens"),
    }


def _responses(draw: Draw) -> dict[str, Any]:
    def part(url: str) -> dict[str, Any]:
        return {"type": "input_image", "image_url": url, "detail": "auto"}

    messages = draw.conversation(part, "input_text")
    return {
        "model": draw.model(),
        "input": messages,
        **draw.kwargs(),
        **draw.sampling("max_output_tokens"),
    }


def _messages(draw: Draw) -> dict[str, Any]:
    def part(url: str) -> dict[str, Any]:
        media, _, data = url.removeprefix("data:").partition(";base64,")
        return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}

    talk = [one for one in draw.conversation(part, "text") if one["role"] != "system"]
    return {
        "model": draw.model(),
        "messages": talk,
        **draw.kwargs(),
        **draw.sampling("max_tokens"),
    }


def _count_tokens(draw: Draw) -> dict[str, Any]:
    body = _messages(draw)
    return {
        name: value for name, value in body.items() if name not in ("max_tokens", "temperature")
    }


def _scoring(draw: Draw) -> dict[str, Any]:
    return {
        "model": draw.model(),
        "query": draw.text() or "a",
        "items": [draw.text() or "b" for _ in range(draw.random.randint(1, 3))],
        "label_token_ids": [draw.random.randrange(100) for _ in range(2)],
        **draw.kwargs(),
    }


def _tokenize(draw: Draw) -> dict[str, Any]:
    messages = draw.conversation(_image_url(draw), "text")
    return {"model": draw.model(), "messages": messages, **draw.kwargs()}


_ENDPOINTS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "/v1/chat/completions": _chat,
    "/v1/chat/completions/batch": _batch,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/v1/messages/count_tokens": _count_tokens,
    "/generative_scoring": _scoring,
    "/tokenize": _tokenize,
}
