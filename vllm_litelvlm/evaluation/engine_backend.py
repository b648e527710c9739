"""The plugin in vLLM's offline class: without a server between, which on a CPU is far faster."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vllm import LLM, EngineArgs, RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_litelvlm.activation import activate
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.backend import Answer, Question
from vllm_litelvlm.options import OPTIONS_KEY
from vllm_litelvlm.pruning.registry import decoder_method_names, method_names, pruner_class


def start_engine(model: str, options: Mapping[str, Any], arguments: Sequence[str]) -> LLM:
    """An engine with the plugin.

    On a CPU it runs in this process, unless ``VLLM_ENABLE_V1_MULTIPROCESSING`` says otherwise: in
    one of its own it keeps a core busy while it waits for the model.

    Args:
        model: hub name or folder of a checkpoint that the plugin serves.
        options: the plugin's server options.
        arguments: those of ``vllm serve``, as on its command line.
    """
    activate()
    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    engine = EngineArgs.from_cli_args(parser.parse_args(["--model", model, *arguments]))
    engine.additional_config = {OPTIONS_KEY: dict(options)}
    return LLM.from_engine_args(engine)


@contextmanager
def refusals_told() -> Iterator[None]:
    """Raise OptionsError for what the engine refuses."""
    try:
        yield
    except VLLMValidationError as error:
        raise OptionsError(f"The engine refused the question: {error}") from error


class EngineBackend:
    """Hands questions to an engine; which patches it kept, it does not say.

    The arguments are those of :func:`start_engine`.
    """

    def __init__(
        self, model: str, options: Mapping[str, Any], arguments: Sequence[str] = ()
    ) -> None:
        self._llm = start_engine(model, options, arguments)
        config = self._llm.model_config.hf_config
        named = getattr(config, "image_token_id", None)
        self._image_token = config.image_token_index if named is None else named

    def methods(self) -> tuple[str, ...]:
        """Those of the engine."""
        return method_names()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order. All are in the engine at once, and share its time.

        Raises OptionsError for options that are refused.
        """
        for question in questions:
            method = question.options.get("method")
            if method in decoder_method_names():
                pruner_class(method)  # says why the engine cannot run it
        began = time.perf_counter()
        try:
            with refusals_told():
                for question in questions:
                    self._enqueue(question)
        except OptionsError:
            self._llm.wait_for_completion(RequestOutput, use_tqdm=False)  # those before it
            raise
        outputs = self._llm.wait_for_completion(RequestOutput, use_tqdm=False)
        seconds = time.perf_counter() - began
        return [self._read(output, seconds) for output in outputs]

    def _enqueue(self, question: Question) -> None:
        content: list[Any] = [
            {"type": "image_pil", "image_pil": question.image},
            {"type": "text", "text": question.prompt},
        ]
        self._llm.enqueue_chat(
            [{"role": "user", "content": content}],
            SamplingParams(temperature=0, max_tokens=question.max_tokens),
            use_tqdm=False,
            mm_processor_kwargs={OPTIONS_KEY: dict(question.options)},
        )

    def _read(self, output: RequestOutput, seconds: float) -> Answer:
        prompt = output.prompt_token_ids
        assert prompt is not None
        [said] = output.outputs
        return Answer(
            text=said.text.strip(),
            token_ids=tuple(said.token_ids),
            prompt_tokens=len(prompt),
            visual_tokens=prompt.count(self._image_token),
            kept=None,
            guided=None,
            seconds=seconds,
        )
