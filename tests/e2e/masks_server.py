"""A server that answers with masks, and what its answers are held to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file, save_file

from tests.e2e.client import user_turn
from tests.e2e.masks_reference import MasksReference
from tests.e2e.runners import Runner
from vllm_litelvlm.demo.grounding import build_grounding
from vllm_litelvlm.demo.server import serve

TWO = ["the red cup", "a spoon on the table"]
EIGHT = [*TWO, "the saucer", "coffee", "wood", "a shadow", "the handle", "something bright"]
ARGUMENTS = (
    "--served-model-name=model",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=2048",
    "--max-num-seqs=8",
    "--max-num-batched-tokens=150",
)


def landscape_and_portrait(photographs: Sequence[Image.Image]) -> list[Image.Image]:
    return [photographs[1], photographs[3].resize((200, 320))]


@dataclass(frozen=True)
class MasksServer:
    url: str
    llava: Path
    clip: Path
    reference: MasksReference

    def post(self, body: Any, path: str = "/v1/masks") -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=300)

    def masks(self, body: Any) -> dict[str, Any]:
        answer = self.post(body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=30).text


@contextmanager
def masks_server(
    runner: Runner,
    folder: Path,
    *arguments: str,
    talkative: bool = False,
    **options: object,
) -> Iterator[MasksServer]:
    """``talkative``: a model that says [SEG] by itself now and then."""
    checkpoint = build_grounding(folder / "model")
    if talkative:
        raise_seg(checkpoint.llava)
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"positions": "original", **options},
        arguments=(*ARGUMENTS, *arguments),
        environment=runner.environment,
        log=folder / "server.log",
    ) as running:
        reference = MasksReference(checkpoint.llava, checkpoint.clip)
        yield MasksServer(running.url, checkpoint.llava, checkpoint.clip, reference)


def raise_seg(llava: Path) -> None:
    """Make the logit of [SEG], a random number with the others, the largest in one of six."""
    file, name = llava / "model.safetensors", "language_model.lm_head.weight"
    tensors = load_file(file)
    tensors[name][-1] *= 3.5 * tensors[name][:-1].norm(dim=1).mean() / tensors[name][-1].norm()
    save_file(tensors, file, metadata={"format": "pt"})


def decoded(one: dict[str, Any]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = coco_mask.decode(one["segmentation"]).astype(bool)
    return found


def assert_alike(data: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    """The same masks: what shares a step with a request may change its last digits."""
    for one, other in zip(data, others, strict=True):
        assert (decoded(one) != decoded(other)).mean() < 1e-4


def assert_masks(
    data: Sequence[dict[str, Any]],
    reference: MasksReference,
    picture: Image.Image,
    vectors: torch.Tensor,
    distinct: bool = True,
) -> None:
    """Each mask is that of its vector, but where the logit is next to 0."""
    different = set()
    for one, vector in zip(data, vectors, strict=True):
        logits = reference.logits(picture, vector)
        mask = decoded(one)
        assert mask.shape == (picture.height, picture.width)
        unlike = mask != (logits > 0)
        assert np.abs(logits[unlike]).max(initial=0) < 1e-3
        assert unlike.mean() < 1e-4
        assert one["area"] == mask.sum()
        assert 0 < mask.mean() < 1
        different.add(mask.tobytes())
    assert len(different) == len(data) or not distinct


#: Of a conversation that nobody had: what is asked, and answered behind ``ASSISTANT:``.
SAID = [
    ("Where is the red cup?", " The <p> red cup </p> [SEG] stands beside a spoon [SEG]."),
    ("And the saucer?", " Sure, it is [SEG]."),
]
NAMED = ["red cup", "stands beside a spoon", "Sure, it is"]


def spoken(picture: Image.Image) -> list[dict[str, Any]]:
    """Its messages."""
    messages: list[dict[str, Any]] = []
    for question, answer in SAID:
        messages.append(user_turn(question, *([] if messages else [picture])))
        messages.append({"role": "assistant", "content": answer})
    return messages


def assert_points(server: MasksServer, picture: Image.Image, budget: int, original: bool) -> None:
    """A conversation's masks are of the states that its answers would have been said by."""
    options = {"budget": budget, "positions": "original" if original else "compact"}
    messages = spoken(picture)
    answer = server.masks({"messages": messages, "mm_processor_kwargs": {"litelvlm": options}})
    assert [one["expression"] for one in answer["data"]] == NAMED
    assert [one["turn"] for one in answer["data"]] == [1, 1, 3]
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    reference, vectors = server.reference, []
    for number, (question, words) in enumerate(SAID):
        ids = reference.ids(reference.prompt(messages[: 2 * number + 1]) + words)
        kept = reference.choose(picture, [question], budget).kept if budget < 576 else range(576)
        found = reference.pointed([picture], ids, [list(kept)], original)
        vectors.append(found[-words.count("[SEG]") :])
    assert_masks(answer["data"], reference, picture, torch.cat(vectors))
