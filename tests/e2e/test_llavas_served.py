"""LLaVA-NeXT and a LLaVA with a SigLIP tower over HTTP, with a LoRA adapter beside the model."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from PIL import Image

from tests.e2e.adapter import lora_arguments, merge_adapter, write_adapter
from tests.e2e.client import Answer, async_client, read, request, user_turn
from tests.e2e.conftest import TracedServer
from tests.e2e.llava_next_reference import LlavaNextReference
from tests.e2e.runners import SPREADS, TWO_WORKERS, Runner, on_v1_alone
from tests.e2e.siglip_reference import SiglipReference
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.llava_next import build_llava_next
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.demo.siglip import build_siglip

TOLERANCE = 2e-4
TOKENS = 4
Kind = Literal["llava_next", "siglip"]
Reference = LlavaNextReference | SiglipReference
#: Steps that cut images.
ARGUMENTS = (
    "--served-model-name=model",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=2048",
    "--max-num-seqs=16",
    "--max-num-batched-tokens=150",
    '--limit-mm-per-prompt={"image": 2}',
)


@dataclass(frozen=True)
class Asked:
    """A request: the model or the adapter, numbers of pictures, and options."""

    model: str
    question: str
    pictures: Sequence[int]
    options: dict[str, Any]


ASKED = [
    Asked(model, question, pictures, {"method": method, "budget": budget, "positions": places})
    for model, places in (("model", "compact"), ("adapter", "original"), ("model", "original"))
    for question, pictures, method, budget in (
        ("Where is the red cup?", [1], "litelvlm", 40),
        ("Is there a dog on the left?", [1], "litelvlm", 40),
        ("Where is the red cup?", [0], "context", 25),
        ("What flies?", [3], "litelvlm", 60),
    )
]
#: In LLaVA-NeXT alone: two images.
PAIR = Asked("adapter", "Which is red?", [1, 2], {"budget": 0.25, "positions": "original"})


@dataclass(frozen=True)
class Served:
    """A server, and what transformers makes of the checkpoint and of the adapted one."""

    server: TracedServer
    pictures: Sequence[Image.Image]
    references: dict[str, Reference]
    asked: Sequence[Asked]

    def request(self, one: Asked) -> dict[str, Any]:
        pictures = [self.pictures[number] for number in one.pictures]
        turn = user_turn(one.question, *pictures)
        return request(turn, one.options, TOKENS, one.model, add_special_tokens=True)

    async def answers(self, asked: Sequence[Asked]) -> list[Answer]:
        """At the same time."""
        async with async_client(self.server.url) as client:
            create = client.chat.completions.create
            sent = [create(**self.request(one)) for one in asked]
            return [read(answer) for answer in await asyncio.gather(*sent)]

    def alone(self, one: Asked) -> Answer:
        [answer] = asyncio.run(self.answers([one]))
        return answer

    def follow(self, one: Asked, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of an answer in transformers, whose own choice of tokens stays."""
        reference = self.references[one.model]
        images = [self.pictures[number] for number in one.pictures]
        prompt = "USER: " + "<image>\n" * len(images) + f"{one.question} ASSISTANT:"
        original = one.options["positions"] == "original"
        method, budget = one.options.get("method", "litelvlm"), one.options["budget"]
        if isinstance(reference, LlavaNextReference):
            kept = []
            for image in images:
                whole = len(reference.see(image).features)
                count = budget if isinstance(budget, int) else int(budget * whole + 0.5)
                kept.append(reference.choose(image, [one.question], method, count))
            return reference.follow(prompt, images, kept, token_ids, original)[1]
        [image] = images
        seen = reference.see(image)
        places = reference.choose(seen, [one.question], budget, method)
        return reference.follow(
            prompt,
            seen.tokens[places],
            places if original else range(budget),
            len(seen.tokens) if original else budget,
            token_ids,
        )


@contextmanager
def serve_llava(
    kind: Kind,
    runner: Runner,
    photographs: Sequence[Image.Image],
    folder: Path,
    arguments: Sequence[str] = (),
    **environment: str,
) -> Iterator[Served]:
    make: Callable[[Path], Checkpoint] = build_llava_next if kind == "llava_next" else build_siglip
    checkpoint = make(folder / "model")
    adapter = write_adapter(folder / "adapter", checkpoint.llava)
    merged = merge_adapter(checkpoint.llava, adapter, folder / "merged")
    build = LlavaNextReference if kind == "llava_next" else SiglipReference
    references: dict[str, Reference] = {
        "model": build(checkpoint.llava, checkpoint.clip),
        "adapter": build(merged, checkpoint.clip),
    }
    trace = folder / "trace.jsonl"
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"positions": "original"},
        arguments=[*ARGUMENTS, *lora_arguments(adapter), *arguments],
        environment={
            **runner.environment,
            **environment,
            "VLLM_LITELVLM_TRACE": str(trace),
            "VLLM_SERVER_DEV_MODE": "1",
        },
        log=folder / "server.log",
    ) as running:
        asked = [*ASKED, PAIR] if kind == "llava_next" else ASKED
        yield Served(TracedServer(running.url, trace), photographs, references, asked)


@pytest.fixture(scope="module", params=["llava_next", "siglip"])
def served(
    request: pytest.FixtureRequest,
    runner: Runner,
    photographs: Sequence[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    with serve_llava(request.param, runner, photographs, folder) as running:
        yield running


@on_v1_alone
def test_answers_are_those_of_transformers_with_the_adapter_and_without(served: Served) -> None:
    assert_follows(served)


@pytest.mark.slow
@on_v1_alone
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("kind", ["llava_next", "siglip"])
def test_two_ranks_answer_as_transformers(
    kind: Kind,
    spread: str,
    runner: Runner,
    photographs: Sequence[Image.Image],
    tmp_path: Path,
) -> None:
    arguments = [f"--{spread}-parallel-size=2"]
    with serve_llava(kind, runner, photographs, tmp_path, arguments, **TWO_WORKERS) as running:
        assert_follows(running)


def assert_follows(served: Served) -> None:
    """Transformers is as sure of every token of every answer."""
    answers = [served.alone(one) for one in served.asked]
    for one, answer in zip(served.asked, answers, strict=True):
        likely = served.follow(one, answer.token_ids)
        assert answer.logprobs == pytest.approx(likely, abs=TOLERANCE), one
    assert len({answer.logprobs for answer in answers}) == len(answers)


@on_v1_alone
def test_shuffled_concurrent_requests_are_each_answered_as_alone(served: Served) -> None:
    asked = served.asked
    alone = [served.alone(one) for one in asked]
    order = [number % len(asked) for number in range(120)]
    random.Random(6).shuffle(order)
    served.server.forget()
    together = asyncio.run(served.answers([asked[number] for number in order]))
    for number, answer in zip(order, together, strict=True):
        assert answer.prompt_tokens == alone[number].prompt_tokens
        assert answer.token_ids == alone[number].token_ids
        assert answer.logprobs == pytest.approx(alone[number].logprobs, abs=TOLERANCE)


@on_v1_alone
def test_usage_is_what_tokenize_counts(served: Served) -> None:
    for one in served.asked[::3]:
        asked = served.request(one)
        body = {
            "model": one.model,
            "messages": asked["messages"],
            "add_special_tokens": True,
            "mm_processor_kwargs": {"litelvlm": one.options},
        }
        counted = httpx.post(f"{served.server.url}/tokenize", json=body, timeout=60).json()["count"]
        assert served.alone(one).prompt_tokens == counted
