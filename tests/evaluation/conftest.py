"""A checkpoint deep enough for every method, and the backend on it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from vllm_litelvlm.demo.checkpoint import TINY, Checkpoint, build_checkpoint
from vllm_litelvlm.evaluation.decoder_walk import Prompt
from vllm_litelvlm.evaluation.llava import HfLlava
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend

#: SparseVLM prunes after layer 15; grouped-query attention as in newer Llamas.
DEEP = dataclasses.replace(TINY, llm_layers=18, llm_heads=4, llm_kv_heads=2)


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return build_checkpoint(Path(tmp_path_factory.mktemp("deep")), DEEP)


@pytest.fixture(scope="session")
def backend(deep: Checkpoint) -> TransformersBackend:
    return TransformersBackend(str(deep.llava), str(deep.clip), device="cpu")


@pytest.fixture(scope="session")
def llava(deep: Checkpoint) -> HfLlava:
    return HfLlava(str(deep.llava), None, torch.device("cpu"))


@pytest.fixture(scope="session")
@torch.no_grad()
def prompts(llava: HfLlava, photographs: Sequence[Image.Image]) -> list[Prompt]:
    """Three questions with all of their images' tokens."""
    texts = ["Where is the cup?", "What is on the left?", "Is there a dog?"]
    prompts = []
    for text, photograph in zip(texts, photographs, strict=False):
        features, _ = llava.images(photograph).run([0], with_input=False)
        prompts.append(llava.prompt(text, features[0, 1:]))
    return prompts
