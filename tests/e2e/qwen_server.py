"""Servers of tiny Qwen-VLs, and what tests ask them."""

import base64
import dataclasses
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.e2e.adapter import lora_arguments, write_adapter
from tests.e2e.client import Answer, ask, data_url
from tests.e2e.conftest import TracedServer
from tests.e2e.qwen_reference import Picture, QwenReference
from tests.e2e.runners import Runner
from vllm_litelvlm.demo.qwen import build_qwen
from vllm_litelvlm.demo.qwen_config import TINY_QWEN, Kind
from vllm_litelvlm.demo.server import serve

KINDS: tuple[Kind, ...] = ("qwen2_5_vl", "qwen3_vl")
#: Thin neighbours of these, which share their code.
THIN: tuple[Kind, ...] = ("qwen2_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


#: Steps that cut images, and a KV cache that a few long requests fill.
ARGUMENTS = (
    "--served-model-name=model",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=2048",
    "--max-num-seqs=16",
    "--max-num-batched-tokens=96",
    "--num-gpu-blocks-override=24",
    "--trust-request-chat-template",
    '--limit-mm-per-prompt={"image": 3, "video": 1}',
)


@dataclass(frozen=True)
class QwenServer:
    """A server with the plugin, and the same model in transformers."""

    kind: Kind
    folder: Path
    arguments: Sequence[str]
    traced: TracedServer
    reference: QwenReference

    @property
    def adapter(self) -> Path:
        """A LoRA adapter, which is served as the model "adapter"."""
        return self.folder.parent / "adapter"

    def kept(
        self,
        question: str,
        pictures: Sequence[Picture],
        options: Any,
        tokens: int = 1,
        model: str = "model",
    ) -> tuple[Answer, list[list[int]]]:
        """An answer, and the tokens that were kept of each image or frame for it."""
        self.traced.forget()
        before = len(self.traced.selections())
        answer = ask(self.traced.url, turn(question, pictures), options, tokens, model)
        lines = self.traced.selections()[before:]
        different = list(dict.fromkeys(map(id, pictures)))  # equal ones are encoded once
        assert len(lines) == len(different)
        if isinstance(pictures[0], Image.Image):
            return answer, [lines[different.index(id(one))]["kept"] for one in pictures]
        frames, [line] = (len(pictures[0]) + 1) // 2, lines
        return answer, split(line["kept"], frames)


def split(kept: Sequence[int], frames: int) -> list[list[int]]:
    """What was kept of a video, frame by frame; of one that is whole all is numbered on."""
    each = len(kept) // frames
    parts = [list(kept[frame * each : (frame + 1) * each]) for frame in range(frames)]
    is_whole = list(kept) == list(range(len(kept)))
    return [[one % each for one in part] for part in parts] if is_whole else parts


@contextmanager
def qwen_server(
    kind: Kind, runner: Runner, folder: Path, arguments: Sequence[str] = (), **environment: str
) -> Iterator[QwenServer]:
    """A Qwen3.5 is without the layers that vLLM computes in bfloat16 alone on a CPU."""
    attending = dataclasses.replace(TINY_QWEN, attention_interval=1)
    model, trace = build_qwen(folder / "model", kind, attending), folder / "trace.jsonl"
    # vLLM's prefix cache of a Qwen3.5 looks for recurrent layers.
    common = [*ARGUMENTS, *["--no-enable-prefix-caching"] * kind.startswith("qwen3_5"), *arguments]
    lora: list[str] = []
    if kind in KINDS:
        lora = lora_arguments(write_adapter(folder / "adapter", model))
    with serve(
        model,
        arguments=[*common, *lora],
        environment={
            **runner.environment,
            **environment,
            "VLLM_LITELVLM_TRACE": str(trace),
            "VLLM_SERVER_DEV_MODE": "1",
        },
        log=folder / "server.log",
    ) as running:
        traced = TracedServer(running.url, trace)
        yield QwenServer(kind, model, common, traced, QwenReference(model))


def turn(question: str, pictures: Sequence[Picture]) -> dict[str, Any]:
    """A user's turn with images or videos, in front of the question."""
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(one)}}
        if isinstance(one, Image.Image)
        else {"type": "video_url", "video_url": {"url": video_url(one)}}
        for one in pictures
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def video_url(frames: Sequence[Image.Image]) -> str:
    """A sequence of JPEGs, as vLLM takes one for a video."""
    return "data:video/jpeg;base64," + ",".join(map(_jpeg, frames))


def as_sent(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """What the server sees of a video."""
    return [
        Image.open(io.BytesIO(base64.b64decode(_jpeg(frame)))).convert("RGB") for frame in frames
    ]


def _jpeg(frame: Image.Image) -> str:
    kept = io.BytesIO()
    frame.save(kept, format="JPEG", quality=95)
    return base64.b64encode(kept.getvalue()).decode()
