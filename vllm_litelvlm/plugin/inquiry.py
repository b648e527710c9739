"""How the API server asks the model, which lives in other processes."""

from typing import Any

from vllm.distributed import get_tensor_model_parallel_rank
from vllm.engine.protocol import EngineClient

from vllm_litelvlm.plugin.wrap import find

_ANSWER = "litelvlm_answer"


def answer_inquiries() -> None:
    """Let this worker process answer; called where a model of ours is built. Idempotent."""
    _, module = find("vllm.v1.worker.worker_base", "WorkerBase")
    setattr(module.WorkerBase, _ANSWER, _answer)


async def ask(engine: EngineClient, method: str, *arguments: Any) -> list[Any]:
    """What the model's ``method`` returns, of every process that has something to say.

    All workers of all engines call it, between two steps. The first of the ranks that share a
    layer answers; None is no answer. One engine without pipeline stages thus gives one answer, and
    data-parallel engines one each, in order.

    Args:
        engine: that the API server has.
        method: by name.
        arguments: None, truth values, numbers, texts, bytes, and lists or dictionaries of such.
            The answer is one of these too; a tuple arrives as a list.

    Raises RuntimeError with the worker's own sentence where the method raises; the engine serves
    on.
    """
    core: Any = getattr(engine, "engine_core")  # noqa: B009 - of vLLM's one client, not its base
    answers = await core.call_utility_all_async(
        "collective_rpc", _ANSWER, None, (method, arguments), None
    )
    told = [one for workers in answers for one in workers if one is not None]
    for failure, _ in told:
        if failure is not None:
            raise RuntimeError(f"{method} failed in a worker: {failure}")
    return [answer for _, answer in told if answer is not None]


def _answer(worker: Any, method: str, arguments: list[Any]) -> tuple[str | None, Any] | None:
    """In a worker: why it failed, and the answer.

    A raise is told as data. Of one that several workers raise vLLM reads the first alone, and takes
    the others for answers to what it asks next.
    """
    failure, answer = None, None
    try:
        answer = getattr(worker.get_model(), method)(*arguments)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    return (failure, answer) if get_tensor_model_parallel_rank() == 0 else None
