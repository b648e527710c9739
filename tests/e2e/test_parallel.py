"""Several worker processes and several API servers."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.e2e.client import Answer, ask, async_client, read, request, user_turn
from tests.e2e.conftest import ARGUMENTS
from tests.e2e.reference import Reference
from tests.e2e.runners import TWO_WORKERS, Runner, needs_memory_nodes, on_v1_alone
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.evaluation.backend import Question
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend


def test_tensor_parallel_workers_behind_two_api_servers_answer_as_transformers(
    runner: Runner, checkpoint: Checkpoint, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    reference = Reference(checkpoint.llava, checkpoint.clip)
    left, cup, dog = "What is on the left?", "Where is the red cup?", "Is there a dog?"
    asked = [
        (left, photographs[0], {"positions": "original"}),
        (cup, photographs[1], {"positions": "compact"}),
        (dog, photographs[2], {"positions": "original"}),
        # Both workers have this image's features by now, and another text needs no more.
        (cup, photographs[0], {}),
    ]
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"positions": "original"},
        arguments=[*ARGUMENTS, "--tensor-parallel-size=2", "--api-server-count=2"],
        environment={**runner.environment, **TWO_WORKERS},
        log=tmp_path / "server.log",
    ) as running:
        for question, photograph, chosen in asked:
            options = {"budget": 64, **chosen}
            served = ask(running.url, user_turn(question, photograph), options, 12)
            kept = reference.choose(photograph, [question], 64).kept
            prompt = f"USER: <image>\n{question} ASSISTANT:"
            original = chosen.get("positions", "original") == "original"
            tokens = reference.generate(prompt, [photograph], [kept], 12, original=original)
            assert list(served.token_ids) == tokens
        # Its keys are means over heads, half of which each worker has.
        merging = {"method": "tome", "budget": 100, "positions": "original"}
        served = ask(running.url, user_turn(left, photographs[0]), merging, 12)
        beside = TransformersBackend(checkpoint.llava, checkpoint.clip)
        [expected] = beside.answer([Question(photographs[0], left, merging, 12)])
        assert served.token_ids == expected.token_ids
        metrics = httpx.get(f"{running.url}/metrics", timeout=30).text.splitlines()
    # One observation a request: of the ranks only the first counts, of the servers all do.
    assert "litelvlm_guidance_seconds_count 5.0" in metrics
    assert "litelvlm_feature_cache_queries_total 4.0" in metrics
    assert "litelvlm_feature_cache_hits_total 1.0" in metrics
    assert 'litelvlm_images_total{method="litelvlm"} 4.0' in metrics


@needs_memory_nodes
@on_v1_alone
def test_data_parallel_engines_have_caches_of_their_own_and_answer_as_one(
    runner: Runner,
    server: Any,
    checkpoint: Checkpoint,
    photographs: Sequence[Image.Image],
    tmp_path: Path,
) -> None:
    requests = [
        (user_turn(f"Where is the {thing}?", photograph), {"budget": budget})
        for budget in (64, 128)
        for thing in ("cup", "dog", "rocket")
        for photograph in photographs
    ]

    async def answers(url: str) -> list[Answer]:
        async with async_client(url) as client:
            create = client.chat.completions.create
            asked = [create(**request(turn, options, 12)) for turn, options in requests]
            return [read(completion) for completion in await asyncio.gather(*asked)]

    alone = asyncio.run(answers(server.url))
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        arguments=[*ARGUMENTS, "--data-parallel-size=2"],
        environment={**runner.environment, **TWO_WORKERS},
        log=tmp_path / "server.log",
    ) as running:
        first, second = (asyncio.run(answers(running.url)) for _ in range(2))
        metrics = httpx.get(f"{running.url}/metrics", timeout=30).text
    assert [answer.token_ids for answer in first] == [answer.token_ids for answer in alone]
    assert [answer.token_ids for answer in second] == [answer.token_ids for answer in alone]
    succeeded = r'vllm:request_success_total\{[^}]*engine="(.)"[^}]*reason="length"[^}]*\} (\S+)'
    served = re.findall(succeeded, metrics)
    assert {engine for engine, number in served if float(number) > 0} == {"0", "1"}
    # Each image was encoded once by every engine that got a request about it, and no more often.
    queries, hits = (
        float(re.search(rf"(?m)^litelvlm_feature_cache_{what}_total (\S+)", metrics)[1])
        for what in ("queries", "hits")
    )
    assert len(photographs) <= queries - hits <= 2 * len(photographs)
