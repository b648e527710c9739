"""Prompts of SAM from a generating engine: they travel in the output of a request.

A request whose name begins with :data:`POINTING` is one for a prompt and nothing else: the state
that its one token is sampled from is projected, and takes the place that an output of vLLM has for
what a pooling engine gives. So nothing is kept in the workers, whatever becomes of the request: one
that was preempted comes by again, one that was aborted has no output.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.outputs import PoolingRequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from vllm_litelvlm.grounding.layout import seg_token_index
from vllm_litelvlm.plugin.wrap import find, wrap
from vllm_litelvlm.pruning.base import to_device

#: vLLM's endpoints put a word of their own before a client's name for its request. /v1/responses
#: does not: who takes this one there gets an error, and nobody else does.
POINTING = "litelvlm-point-"


def pointing_params() -> SamplingParams:
    """Of a request for a prompt: what is sampled is of no interest."""
    return SamplingParams(
        max_tokens=1, temperature=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def cuts(conversation: Any, count: int, seg_token: int) -> list[Any]:
    """A conversation cut in front of each of its last [SEG]s: what predicts it ends the prompt.

    Args:
        conversation: rendered for the engine, up to the token that predicts the last of them.
        count: how many, from 1.
        seg_token: the id of [SEG].
    """
    ids = conversation["prompt_token_ids"]
    places = [place for place, token in enumerate(ids) if token == seg_token]
    ends = [*places, len(ids)][-count:]
    return [{**conversation, "prompt_token_ids": ids[:end]} for end in ends]


def install() -> None:
    """Let the engine of vLLM's offline class give prompts of SAM. Idempotent."""
    engine, _ = find("vllm.v1.engine.llm_engine", "LLMEngine")
    engine.litelvlm_prompts = _engine_prompts


def _engine_prompts(engine: Any, asked: Sequence[tuple[Any, int]]) -> list[Tensor]:
    """Prompts of SAM, float32 [count, prompt width] a conversation.

    Args:
        engine: that generates, and has nothing else to do.
        asked: prompts of token ids, each with how many [SEG] at its end count, as for :func:`cuts`.
    """
    seg_token = seg_token_index(engine.model_config.hf_config)
    rendered = engine.renderer.render_cmpl([prompt for prompt, _ in asked])
    counts = [count for _, count in asked]
    parts = [
        one
        for conversation, count in zip(rendered, counts, strict=True)
        for one in cuts(conversation, count, seg_token)
    ]
    names = [f"{POINTING}{number}" for number in range(len(parts))]
    found: dict[str, Tensor] = {}
    try:
        for name, part in zip(names, parts, strict=True):
            engine.add_request(name, part, pointing_params())
        with Progress(transient=True, disable=len(names) == 1) as progress:
            bar = progress.add_task("Pointing", total=len(names))
            while engine.has_unfinished_requests():
                found |= {one.request_id: _prompt(one) for one in engine.step()}
                progress.update(bar, completed=len(found))
    except BaseException:
        engine.abort_request(names)
        raise
    return list(torch.stack([found[name] for name in names]).float().split(counts))


def _prompt(output: Any) -> Tensor:
    """Raises RuntimeError where the engine ended the request without one."""
    if not isinstance(output, PoolingRequestOutput):
        raise RuntimeError(f"The engine ended {output.request_id!r} without a prompt of SAM.")
    prompt: Tensor = output.outputs.data
    return prompt


def point(v2: bool) -> None:
    """Let a model of ours give prompts for what is sampled. Idempotent.

    Args:
        v2: which of vLLM's two model runners this process has.
    """
    module = "vllm.v1.worker.gpu.model_runner" if v2 else "vllm.v1.worker.gpu_model_runner"
    wrap(module, "GPUModelRunner.sample_tokens", functools.partial(_send_prompts, v2))


def _send_prompts(v2: bool, stock: Callable[..., Any]) -> Callable[..., Any]:
    find = _sampled_v2 if v2 else _sampled_v1

    @functools.wraps(stock)
    def sample_tokens(runner: Any, grammar_output: Any) -> Any:
        # Of the ranks that have the same states one is heard.
        heard = runner.execute_model_state is not None and get_tensor_model_parallel_rank() == 0
        prompts = _Prompts.of(runner, find) if heard else None
        output = stock(runner, grammar_output)
        return output if prompts is None else prompts.put_into(output)

    return sample_tokens


class _Prompts:
    """Prompts of a step on their way out of the device.

    Args:
        names: of the requests.
        rows: float32 [requests, prompt width].
    """

    def __init__(self, names: list[str], rows: Tensor) -> None:
        self._names = names
        self._rows = rows.to("cpu", non_blocking=True)
        self._copied = None
        if rows.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    @classmethod
    def of(cls, runner: Any, find: Callable[[Any], Any]) -> "_Prompts | None":
        """Of the step whose tokens are about to be sampled; None where no one asks for any."""
        names, states, rows = find(runner)
        wanted = {name: row for name, row in zip(names, rows, strict=False) if _points(name)}
        project = getattr(runner.get_model(), "litelvlm_prompts", None)
        if not wanted or states is None or project is None:
            return None
        picked = states.index_select(0, to_device(list(wanted.values()), states.device))
        return cls(list(wanted), project(picked))

    def put_into(self, output: Any) -> Any:
        """The step's output with the prompts; vLLM may take it in another thread, and later."""
        if not hasattr(output, "get_output"):
            return self._put(output)
        get_output = output.get_output

        def with_prompts() -> Any:
            del output.get_output  # or it would keep itself from being freed
            return self._put(get_output())

        output.get_output = with_prompts
        return output

    def _put(self, output: Any) -> Any:
        if self._copied is not None:
            self._copied.synchronize()
        found: Mapping[str, Tensor] = dict(zip(self._names, self._rows, strict=True))
        # Of a prompt that is not complete yet no token is sampled.
        output.pooler_output = [
            found.get(name) if tokens else None
            for name, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True)
        ]
        return output


def _points(name: str) -> bool:
    return name.startswith(POINTING)


def _sampled_v1(runner: Any) -> tuple[list[str], Tensor | None, Iterator[int]]:
    """Names, states, and of each request the row from which its first token is sampled."""
    state = runner.execute_model_state
    names, drafts = list(runner.input_batch.req_ids), state.spec_decode_metadata
    counts = [0] * len(names) if drafts is None else drafts.num_draft_tokens
    return names, state.sample_hidden_states, accumulate((1 + n for n in counts), initial=0)


def _sampled_v2(runner: Any) -> tuple[list[str], Tensor | None, Iterator[int]]:
    """The same. Later stages of a pipeline alone have states."""
    batch, states = runner.execute_model_state.input_batch, runner.execute_model_state.hidden_states
    if states is None or not any(map(_points, batch.req_ids)):
        return [], None, iter(())
    return batch.req_ids, states[batch.logits_indices], iter(batch.cu_num_logits_np.tolist())
