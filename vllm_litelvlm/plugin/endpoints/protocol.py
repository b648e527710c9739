"""What ``POST /v1/masks`` is asked, and what it answers."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from vllm_litelvlm.grounding.masks import Format

#: How many expressions a request may have, and how many frames.
MOST_EXPRESSIONS = MOST_FRAMES = 64
_LONGEST = 1000

Expression = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_LONGEST)
]
Link = Annotated[str, StringConstraints(min_length=1)]


class MasksRequest(BaseModel):
    """One image or the frames of a video, and expressions that refer to what is in them.

    ``conversation``: whether the expressions are "rounds" of one conversation about an image, which
    share the visual tokens that all of them chose, or "separate" ones. ``mm_processor_kwargs`` as
    in chat, with the pruning options in ``litelvlm``; ``texts`` are the expressions by default.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    image: Link | None = None
    images: list[Link] | None = Field(None, min_length=1, max_length=MOST_FRAMES)
    expressions: list[Expression] = Field(min_length=1, max_length=MOST_EXPRESSIONS)
    conversation: Literal["rounds", "separate"] = "rounds"
    mm_processor_kwargs: dict[str, Any] | None = None
    format: Format = "rle"

    @model_validator(mode="after")
    def _has_one_kind_of_picture(self) -> "MasksRequest":
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
    """The mask of an expression in a picture.

    ``index`` numbers the expressions, ``frame`` the pictures. ``bbox`` is left, top, width and
    height in pixels; ``score`` SAM's own guess of the mask's IoU.
    """

    index: int
    frame: int
    expression: str
    segmentation: Mapping[str, object] | str | list[list[int]]
    bbox: list[int]
    area: int
    score: float


class MasksUsage(BaseModel):
    """Tokens of all prompts, and those of them that vLLM's prefix cache had."""

    prompt_tokens: int = 0
    cached_tokens: int = 0


class MasksResponse(BaseModel):
    """All masks, frame by frame."""

    object: Literal["list"] = "list"
    model: str
    data: list[MaskData]
    usage: MasksUsage
