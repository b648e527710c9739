"""Prompts of SAM in the outputs of a generating engine, and which engine there is by default."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import EngineArgs
from vllm.v1.outputs import ModelRunnerOutput

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.grounding import build_grounding
from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.pointing import POINTING, _Prompts, _sampled_v1, _sampled_v2, cuts

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


NAMES = ["chat", f"{POINTING}a", "other", f"{POINTING}b"]
DRAFTS = [2, 0, 3, 0]
#: Rows of the step that are sampled from: of each request one, and one for each of its drafts.
STATES = torch.arange(9.0)[:, None].expand(-1, 4)
FIRST = [0, 3, 4, 8]


def v1(drafts: list[int] | None) -> tuple[Any, Any]:
    state = SimpleNamespace(
        sample_hidden_states=STATES if drafts else STATES[: len(NAMES)],
        spec_decode_metadata=SimpleNamespace(num_draft_tokens=drafts) if drafts else None,
    )
    return SimpleNamespace(
        execute_model_state=state, input_batch=SimpleNamespace(req_ids=NAMES)
    ), _sampled_v1


def v2(drafts: list[int] | None) -> tuple[Any, Any]:
    counts = [1 + count for count in drafts or [0] * len(NAMES)]
    batch = SimpleNamespace(
        req_ids=NAMES,
        cu_num_logits_np=np.cumsum([0, *counts]),
        # Between the rows that are sampled from are those of prompts.
        logits_indices=torch.arange(sum(counts)) * 3 + 2,
    )
    state = SimpleNamespace(
        input_batch=batch,
        hidden_states=torch.arange(3.0 * sum(counts))[:, None].expand(-1, 4).sub(2).div(3),
    )
    return SimpleNamespace(execute_model_state=state), _sampled_v2


@pytest.mark.parametrize("of", [v1, v2])
@pytest.mark.parametrize(("drafts", "rows"), [(None, [1, 3]), (DRAFTS, [FIRST[1], FIRST[3]])])
def test_rows_are_found_behind_the_drafts_of_other_requests(
    of: Any, drafts: list[int] | None, rows: list[int]
) -> None:
    runner, find = of(drafts)
    runner.get_model = lambda: SimpleNamespace(litelvlm_prompts=lambda states: states.float())
    prompts = _Prompts.of(runner, find)
    assert prompts is not None
    assert prompts._names == [NAMES[1], NAMES[3]]
    assert prompts._rows[:, 0].tolist() == pytest.approx(rows)


@pytest.mark.parametrize("of", [v1, v2])
def test_step_without_such_requests_is_left_alone(of: Any) -> None:
    runner, find = of(None)
    if find is _sampled_v1:
        runner.input_batch.req_ids = ["chat"]
    else:
        runner.execute_model_state.input_batch.req_ids = ["chat"]
    runner.get_model = lambda: SimpleNamespace(litelvlm_prompts=None)
    assert _Prompts.of(runner, find) is None
