"""What ``POST /v1/masks`` is asked, and what it answers."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from vllm_litelvlm.grounding.layout import SEG_TOKEN
from vllm_litelvlm.grounding.masks import Format

#: How many expressions a request may have, and how many frames.
MOST_EXPRESSIONS = MOST_FRAMES = 64
#: Of a conversation, and the tokens of one of its answers.
MOST_MESSAGES, _MOST_TOKENS = 1000, 1_000_000
_LONGEST = 1000

Expression = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_LONGEST)
]
Link = Annotated[str, StringConstraints(min_length=1)]


class TextPart(BaseModel):
    """Words of a turn."""

    type: Literal["text"]
    text: str


class ImageLink(BaseModel):
    """A URL or a data URL."""

    url: Link


class ImagePart(BaseModel):
    """An image of a turn."""

    type: Literal["image_url"]
    image_url: ImageLink


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """A turn of a conversation, as chat has it; what else a client keeps with it is not read.

    ``token_ids`` of an assistant's turn are those that were generated, as chat gives them where
    ``return_token_ids`` is asked for: without them the text is tokenized, and what the model wrote
    in another way than the tokenizer has another state.
    """

    role: Literal["system", "user", "assistant"]
    content: str | list[Part] = Field(union_mode="left_to_right")
    token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=_MOST_TOKENS)

    @property
    def text(self) -> str:
        """All words."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> int:
        """How many it has."""
        return sum(isinstance(part, ImagePart) for part in self.content)


class MasksRequest(BaseModel):
    """Expressions that refer to what is in an image or in the frames of a video, or a conversation.

    ``conversation``: whether the expressions are "rounds" of one conversation about an image, which
    share the visual tokens that all of them chose, or "separate" ones. ``mm_processor_kwargs`` as
    in chat, with the pruning options in ``litelvlm``; ``texts`` are the expressions by default.

    ``messages`` are a conversation with the model that was had, with the same
    ``mm_processor_kwargs``: each [SEG] of its answers becomes a mask. Where it has several images,
    ``image_index`` says which one, from 0.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    image: Link | None = None
    images: list[Link] | None = Field(None, min_length=1, max_length=MOST_FRAMES)
    expressions: list[Expression] | None = Field(None, min_length=1, max_length=MOST_EXPRESSIONS)
    conversation: Literal["rounds", "separate"] = "rounds"
    messages: list[Message] | None = Field(None, min_length=1, max_length=MOST_MESSAGES)
    image_index: int | None = Field(None, ge=0)
    mm_processor_kwargs: dict[str, Any] | None = None
    format: Format = "rle"

    @model_validator(mode="after")
    def _asks_in_one_way(self) -> "MasksRequest":
        if self.messages is not None:
            others = {"image", "images", "expressions", "conversation"} & self.model_fields_set
            given = [name for name in sorted(others) if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"'messages' are a whole conversation, with images and answers; leave out "
                    f"{' and '.join(map(repr, given))}"
                )
            return self
        if self.image_index is not None:
            raise ValueError("'image_index' is of 'messages'; leave it out")
        if self.expressions is None:
            raise ValueError(
                "give either 'expressions' and a picture, or 'messages', a conversation whose "
                f"answers have {SEG_TOKEN}"
            )
        if (self.image is None) is (self.images is None):
            raise ValueError(
                "give either 'image', a URL or data URL, or 'images', a list of them that are the "
                "frames of a video"
            )
        return self

    @property
    def frames(self) -> list[str]:
        """The links of all pictures."""
        return self.images if self.images is not None else [str(self.image)]


class MaskData(BaseModel):
    """The mask of an expression in a picture, or of a [SEG] in a conversation.

    ``index`` numbers the expressions, or each [SEG] of the conversation, and ``frame`` the
    pictures. ``turn`` numbers the message whose [SEG] it is; ``expression`` is then what the answer
    says in front of it: the phrase in <p> and </p>, or all since the [SEG] before. ``bbox`` is
    left, top, width and height in pixels; ``score`` SAM's own guess of the mask's IoU.
    """

    index: int
    frame: int
    expression: str
    turn: int | None = None
    segmentation: Mapping[str, object] | str | list[list[int]]
    bbox: list[int]
    area: int
    score: float


class MasksUsage(BaseModel):
    """Tokens of all conversations, and those of them that vLLM's prefix cache had.

    A conversation counts once, also where an engine that generates reads it up to each [SEG].
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0

    @classmethod
    def sum(cls, parts: Iterable["MasksUsage"]) -> "MasksUsage":
        """Of all together."""
        used = list(parts)
        return cls(
            prompt_tokens=sum(one.prompt_tokens for one in used),
            cached_tokens=sum(one.cached_tokens for one in used),
        )


class MasksResponse(BaseModel):
    """All masks, frame by frame, or in the order of the conversation."""

    object: Literal["list"] = "list"
    model: str
    data: list[MaskData]
    usage: MasksUsage
