"""vLLM's real engine in this very process, so that the parts of a request can be timed."""

import itertools
import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

import vllm_litelvlm
from benchmarks.breakdown_meter import Meter, Times, attach
from benchmarks.checkpoints import Source
from benchmarks.workload import WORDS, question
from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.options import OPTIONS_KEY

#: Tokens of prompt and answer together.
_CONTEXT = 2048
_IMAGE_SIZE = (640, 480)


class EngineError(LiteLVLMError, RuntimeError):
    """The engine did something else than what was to be measured."""


@dataclass(frozen=True)
class Answer:
    """What one request took. ``first_token``: seconds until the engine gave out the first."""

    times: Times
    first_token: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Questions:
    """Images and questions that no cache has seen; all cost the same.

    The images are noise, as no time depends on what they show, and the questions are
    permutations of the same words.
    """

    def __init__(self, seed: int) -> None:
        self._noise = np.random.default_rng(seed)
        orders = list(itertools.permutations(WORDS))
        random.Random(seed).shuffle(orders)
        self._orders = itertools.cycle(orders)  # longer than any text stays in a cache

    def image(self) -> Image.Image:
        width, height = _IMAGE_SIZE
        return Image.fromarray(self._noise.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def text(self) -> str:
        return question(next(self._orders))


class Engine:
    """vLLM with litelvlm, in this process, answering one request at a time.

    It stays until the process ends, and vLLM changes the process (threads, environment): a test
    that needs one runs it in a process of its own.
    """

    def __init__(self, source: Source) -> None:
        _prepare_process()
        from vllm import LLM

        self._llm = LLM(
            source.model,
            dtype="bfloat16",
            load_format=source.load_format,
            enforce_eager=True,  # hooks see no pass that a CUDA graph replays
            max_model_len=_CONTEXT,
            max_num_seqs=1,
            limit_mm_per_prompt={"image": 1},
            additional_config={OPTIONS_KEY: {"clip_model": source.clip_model}},
        )
        self._meter = Meter()
        self._llm.apply_model(lambda model: attach(self._meter, model))
        self._requests = 0

    @property
    def config(self) -> Any:
        """The model's configuration, as transformers has it."""
        return self._llm.llm_engine.model_config.hf_config

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        dtype: torch.dtype = self._llm.llm_engine.model_config.dtype
        return dtype

    @property
    def kv_cache_groups(self) -> Any:
        """vLLM's own description of its KV cache."""
        core = self._llm.llm_engine.engine_core.engine_core
        return core.scheduler.kv_cache_config.kv_cache_groups

    def ask(
        self, image: Image.Image, text: str, method: str, budget: int, output_tokens: int
    ) -> Answer:
        """Have one request answered with exactly ``output_tokens`` tokens.

        Raises EngineError where it was not, or the image got another number of tokens than
        ``budget``.
        """
        from vllm import SamplingParams
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        engine, meter = self._llm.llm_engine, self._meter
        renderer = engine.renderer
        sampling = SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
        prompt = {
            "prompt": f"USER: <image>\n{text} ASSISTANT:",
            "multi_modal_data": {"image": image},
            "mm_processor_kwargs": {OPTIONS_KEY: {"method": method, "budget": budget}},
        }
        self._requests += 1
        first_token = None
        meter.start()
        with meter.part("preprocessing"):
            parsed = parse_model_prompt(engine.model_config, prompt)
            (rendered,) = renderer.render_cmpl([parsed], renderer.default_cmpl_tok_params)
            engine.add_request(str(self._requests), rendered, sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if first_token is None and output.outputs[0].token_ids:
                    first_token = meter.elapsed()
        times = meter.stop()
        assert first_token is not None
        answered = len(output.outputs[0].token_ids)
        kept = output.prompt_token_ids.count(self.config.image_token_index)
        if (answered, kept) != (output_tokens, budget):
            raise EngineError(
                f"{kept} visual tokens and {answered} answered ones where {budget} and "
                f"{output_tokens} were asked for."
            )
        return Answer(
            times, first_token, len(output.prompt_token_ids), output.num_cached_tokens, answered
        )


def _prepare_process() -> None:
    """Ask for the plugin, one process, and a quiet log; what the user has set otherwise stays."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    vllm_litelvlm.activate()
