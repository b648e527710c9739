"""Prompts of SAM in the outputs of a generating engine, and which engine there is by default."""

from typing import Any

import pytest
import torch
from vllm import EngineArgs
from vllm.v1.outputs import ModelRunnerOutput

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.grounding import build_grounding
from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.pointing import POINTING, _Prompts, cuts

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def grounding(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return build_grounding(tmp_path_factory.mktemp("grounding"))


def build(checkpoint: Checkpoint, options: Any = None, **more: Any) -> Any:
    given = {"clip_model": str(checkpoint.clip), **(options or {})}
    return EngineArgs(
        model=str(checkpoint.llava),
        dtype="float32",
        max_model_len=1024,
        additional_config={"litelvlm": given},
        **more,
    ).create_engine_config()


def test_model_that_points_generates_unless_told_otherwise(grounding: Checkpoint) -> None:
    assert build(grounding).model_config.runner_type == "generate"
    pooling = build(grounding, runner="pooling").model_config
    assert (pooling.runner_type, pooling.convert_type) == ("pooling", "none")


def test_options_of_sam_reach_the_model_configuration(grounding: Checkpoint) -> None:
    options = {"sam_device": "cpu", "sam_cache_gb": 0.5}
    server = guidance_config(build(grounding, options).model_config.hf_config).server
    assert (server.sam_device, server.sam_cache_gb) == ("cpu", 0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sam_device": "cuda:99"}, "'sam_device' is 'cuda:99'; allowed on this machine: cpu"),
        ({"sam_device": 0}, "'sam_device' is 0; allowed: the device that SAM computes on"),
        ({"sam_device": ""}, "'sam_device' is \"\"; allowed"),
        ({"sam_cache_gb": -1}, "'sam_cache_gb' is -1; allowed: a number of GiB from 0"),
        ({"sam_cache_gb": "1"}, "'sam_cache_gb' is \"1\"; allowed.* Write it without quotes: 1"),
    ],
)
def test_options_of_sam_that_cannot_be_stop_the_start(
    grounding: Checkpoint, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(Exception, match=told):
        build(grounding, options)


def test_conversation_is_cut_in_front_of_its_last_segs() -> None:
    seg, conversation = 9, {"prompt_token_ids": [1, 9, 2, 3, 9, 4], "type": "token"}

    def cut(count: int) -> list[list[int]]:
        assert all(one["type"] == "token" for one in cuts(conversation, count, seg))
        return [one["prompt_token_ids"] for one in cuts(conversation, count, seg)]

    assert cut(1) == [[1, 9, 2, 3, 9, 4]]
    assert cut(2) == [[1, 9, 2, 3], [1, 9, 2, 3, 9, 4]]
    assert cut(3) == [[1], [1, 9, 2, 3], [1, 9, 2, 3, 9, 4]]
    assert conversation["prompt_token_ids"] == [1, 9, 2, 3, 9, 4]


def test_prompts_go_with_the_requests_that_were_sampled() -> None:
    first, second = f"{POINTING}a", f"{POINTING}b"
    names = ["chat", second, first]
    output = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[5], [], [7]],  # the second request's prompt is not complete yet
    )
    put = _Prompts([first, second], torch.tensor([[1.0, 2.0], [3.0, 4.0]])).put_into(output)
    assert put is output
    chat, incomplete, found = output.pooler_output or []
    assert chat is None
    assert incomplete is None
    assert found is not None
    assert found.tolist() == [1.0, 2.0]
