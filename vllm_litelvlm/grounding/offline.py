"""Masks without a server, by vLLM's offline class."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.grounding.conversation import asking_ids, conversations, rounds
from vllm_litelvlm.grounding.features import KEPT_BYTES
from vllm_litelvlm.grounding.layout import POOLING_TASK, seg_token_index
from vllm_litelvlm.grounding.masks import Mask
from vllm_litelvlm.grounding.picture import upright
from vllm_litelvlm.grounding.segmenter import Segmenter


def segment(llm: Any, image: Image.Image, expressions: Sequence[str], **further: Any) -> list[Mask]:
    """A mask an expression, in order; ``further`` as :func:`segment_frames` takes it."""
    [masks] = segment_frames(llm, [image], expressions, **further)
    return masks


def segment_frames(
    llm: Any,
    images: Sequence[Image.Image],
    expressions: Sequence[str],
    *,
    conversation: Literal["rounds", "separate"] = "rounds",
    options: Mapping[str, Any] | None = None,
    segmenter: Segmenter | None = None,
) -> list[list[Mask]]:
    """The same of several pictures at once, such as the frames of a video.

    Args:
        llm: a ``vllm.LLM`` of a checkpoint with [SEG], made after ``vllm_litelvlm.activate()``.
            With ``runner="pooling"`` a conversation is one prefill; an engine that generates, as
            it does by default, computes it up to each [SEG], mostly from its prefix cache.
        images: each is asked about in conversations of its own.
        expressions: at least one.
        conversation: whether they are rounds of one conversation, which share the visual tokens
            that all of them chose, or separate ones.
        options: of the pruning, as in ``mm_processor_kwargs["litelvlm"]``; ``texts`` are the
            expressions by default.
        segmenter: makes the masks; by default of the checkpoint's SAM, as the options
            ``sam_device`` and ``sam_cache_gb`` in the engine's ``additional_config`` have it.

    Raises OptionsError for no expressions or empty ones, CompatibilityError for a checkpoint
    without [SEG] or an engine without the plugin, WeightsError for a checkpoint without a SAM.
    """
    texts = [expression.strip() for expression in expressions]
    if not texts or not all(texts):
        raise OptionsError(
            f"The expressions are {list(expressions)!r}; give at least one, none of them empty."
        )
    config = llm.llm_engine.model_config
    seg_token_index(config.hf_config)
    if not hasattr(llm.llm_engine, "litelvlm_prompts"):
        raise CompatibilityError(
            "The engine was made without litelvlm; call vllm_litelvlm.activate() before LLM(...)."
        )
    tokenizer = llm.get_tokenizer()
    # The language model and SAM see the same.
    pictures = [upright(image) for image in images]
    asked = []
    together = conversations(texts, conversation)
    for one in together:
        messages = rounds({"type": "image"}, one)
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        named = {name: it for name, it in (options or {}).items() if it is not None}
        asked.append(
            {
                "prompt_token_ids": asking_ids(ids, one, config.hf_config),
                "mm_processor_kwargs": {"litelvlm": {"texts": list(one), **named}},
            }
        )
    prompts = [
        {**one, "multi_modal_data": {"image": picture}} for picture in pictures for one in asked
    ]
    rows = _rows(llm, prompts, [len(one) for _ in pictures for one in together])
    segmenter = segmenter or _segmenter(config.model, config.revision, *_server_options(llm))
    found = []
    for number, picture in enumerate(pictures):
        of_picture = rows[number * len(asked) : (number + 1) * len(asked)]
        found.append(segmenter.masks(picture, torch.cat(of_picture)))
    return found


def _rows(llm: Any, prompts: Sequence[Any], counts: Sequence[int]) -> list[Tensor]:
    """SAM's prompts, float32 [expressions, width] a conversation."""
    if llm.llm_engine.model_config.runner_type == "pooling":
        outputs = llm.encode(prompts, pooling_task=POOLING_TASK, use_tqdm=len(prompts) > 1)
        return [output.outputs.data.float() for output in outputs]
    pointed: list[Tensor] = llm.llm_engine.litelvlm_prompts(list(zip(prompts, counts, strict=True)))
    return pointed


def _server_options(llm: Any) -> tuple[str | None, float]:
    """Those of SAM, which were checked when the engine was built."""
    additional = llm.llm_engine.vllm_config.additional_config
    given = (additional.get("litelvlm") if isinstance(additional, dict) else None) or {}
    device, cache_gb = given.get("sam_device"), given.get("sam_cache_gb")
    return device, KEPT_BYTES / 2**30 if cache_gb is None else cache_gb


@lru_cache(maxsize=1)
def _segmenter(model: str, revision: str | None, device: str | None, cache_gb: float) -> Segmenter:
    """Of the checkpoint that was asked last."""
    return Segmenter.load(model, revision, device, cache_gb)
