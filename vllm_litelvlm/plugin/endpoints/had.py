"""A conversation that was had with the model, read for the [SEG]s of its answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from PIL import Image
from vllm.exceptions import VLLMValidationError

from vllm_litelvlm.grounding.layout import SEG_TOKEN
from vllm_litelvlm.plugin.endpoints.asking import Answer, Asking, pictures_of
from vllm_litelvlm.plugin.endpoints.protocol import (
    MOST_EXPRESSIONS,
    MasksRequest,
    Message,
)


@dataclass(frozen=True)
class Turn:
    """An answer with [SEG]: its number among the messages, and the prompt that it answers."""

    number: int
    prompt: Any
    answer: Answer


@dataclass(frozen=True)
class Had:
    """What a conversation points at: the answers that do, and the number of the picture."""

    turns: list[Turn]
    image: int
    picture: Image.Image

    @classmethod
    async def read(cls, asking: Asking, request: MasksRequest) -> "Had":
        """Render every answer's prompt as chat did; pictures are fetched once.

        Raises VLLMValidationError for a conversation that points at nothing, or at no one picture.
        """
        messages = request.messages or []
        _check_words(messages)
        pointing = [number for number, one in enumerate(messages) if asking.points(one)]
        if not pointing:
            raise _refusal(
                f"No answer in messages has {SEG_TOKEN}, of which masks are made. Ask the model to "
                "segment something and send its answer as it came, or name expressions."
            )
        if len(pointing) > MOST_EXPRESSIONS:  # and each is an answer to be rendered
            raise _too_many(f"{len(pointing)} or more")
        last, seen = pointing[-1], [0, *accumulate(one.images for one in messages)]
        image = _image(request.image_index, seen[last])
        early = next((one for one in pointing if seen[one] <= image), None)
        if early is not None:
            raise _refusal(
                f"The answer in messages[{early}] stands before image {image} of the conversation, "
                "which its masks cannot be of. Leave its [SEG] out, or name an earlier image."
            )
        spoken = _spoken(messages)
        found = {last: await asking.answered(spoken[:last], messages[last])}
        fetched = found[last][0]["multi_modal_data"]["image"]
        pictures = pictures_of(found[last][0])
        spoken = _with_pictures(spoken, pictures)
        for number in pointing[:-1]:
            prompt, answer = await asking.answered(spoken[:number], messages[number])
            if isinstance(fetched, list):
                prompt["multi_modal_data"]["image"] = fetched[: seen[number]]
            found[number] = prompt, answer
        turns = [Turn(number, *read) for number, read in sorted(found.items())]
        count = sum(len(one.answer.names) for one in turns)
        if count > MOST_EXPRESSIONS:
            raise _too_many(str(count))
        return cls(turns, image, pictures[image])


def _check_words(messages: Sequence[Message]) -> None:
    for number, one in enumerate(messages):
        if one.role != "assistant" and SEG_TOKEN in one.text:
            raise _refusal(
                f"messages[{number}] is by {one.role!r} and has {SEG_TOKEN}, which is the model's "
                "to say; leave it out."
            )
        if one.role != "assistant" and one.token_ids is not None:
            raise _refusal(
                f"messages[{number}] is by {one.role!r} and has token_ids, which are of answers "
                "alone; leave them out."
            )


def _image(asked: int | None, images: int) -> int:
    """The number of the picture that masks are of, among those in front of the last answer."""
    if not images:
        raise _refusal(
            f"There is no image in front of the conversation's last {SEG_TOKEN}, so there is "
            "nothing that a mask could be of. Send the messages as chat had them, with the image."
        )
    if asked is None and images > 1:
        raise _refusal(
            f"The conversation has {images} images in front of its last {SEG_TOKEN}; say with "
            f"'image_index', 0 to {images - 1}, which one the masks are of."
        )
    if asked is not None and asked >= images:
        raise _refusal(
            f"image_index is {asked}; the conversation has {images} image(s) in front of its last "
            f"{SEG_TOKEN}, so 0 to {images - 1} are allowed."
        )
    return asked or 0


def _spoken(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As chat takes them."""
    return [one.model_dump(include={"role", "content"}) for one in messages]


def _with_pictures(
    messages: Sequence[dict[str, Any]], pictures: Sequence[Image.Image]
) -> list[dict[str, Any]]:
    """With what their links led to."""
    left = iter(pictures)

    def put(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image_url":
            return part
        return {"type": "image_pil", "image_pil": next(left, None)}

    return [
        one
        if isinstance(one["content"], str)
        else {**one, "content": [put(part) for part in one["content"]]}
        for one in messages
    ]


def _too_many(count: str) -> VLLMValidationError:
    return _refusal(
        f"The answers have {count} {SEG_TOKEN}; a request may have {MOST_EXPRESSIONS}. Send the "
        "conversation up to an earlier answer."
    )


def _refusal(sentence: str) -> VLLMValidationError:
    return VLLMValidationError(sentence, parameter="messages")
