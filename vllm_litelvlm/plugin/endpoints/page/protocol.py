"""What ``POST /litelvlm/kept`` is asked, and what it answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from vllm_litelvlm.plugin.endpoints.protocol import MasksRequest

#: Width and height in pixels.
Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class KeptMasks(MasksRequest):
    """A request for masks; ``sizes`` of its pictures, for :attr:`Grid.box`."""

    sizes: list[Size] | None = None


class KeptChat(ChatCompletionRequest):
    """A request of the chat API; ``sizes`` of its pictures, for :attr:`Grid.box`."""

    sizes: list[Size] | None = None


def _kind(body: Any) -> str:
    of_masks = {"expressions", "image", "images"}
    return "masks" if isinstance(body, dict) and not of_masks.isdisjoint(body) else "chat"


KeptRequest = Annotated[
    Annotated[KeptMasks, Tag("masks")] | Annotated[KeptChat, Tag("chat")], Discriminator(_kind)
]


class Grid(BaseModel):
    """Of a picture's tokens.

    ``box`` is what it covers of the picture: left, top, width and height in pixels. It reaches
    beyond a picture that was padded, and is null where no size was given.
    """

    frames: int
    rows: int
    columns: int
    box: tuple[float, float, float, float] | None = None


class KeptData(BaseModel):
    """What was kept of a picture.

    ``picture`` numbers those of the request. ``expressions``: of the conversation about it, in a
    request for masks. Where ``remembered`` is false, too many others came since, and the rest is
    empty.

    ``kept`` are places in the grid, counted row by row, or among the ``tokens`` of a picture
    without one, in the order in which the language model reads them; -1 is [CLS], and what sums up
    other tokens has a place behind the last. ``guided``: whether the text had a say. All frames of
    a video have as many, one frame behind the other.
    """

    picture: int = 0
    expressions: list[str] | None = None
    remembered: bool = False
    method: str | None = None
    tokens: int | None = None
    grid: Grid | None = None
    kept: list[int] = []
    guided: list[bool] = []


class KeptResponse(BaseModel):
    """All pictures, conversation by conversation."""

    object: Literal["list"] = "list"
    model: str
    data: list[KeptData]
