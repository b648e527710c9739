"""Masks without a server, by vLLM's offline class."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from PIL import Image

from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.grounding.conversation import asking_ids, conversations, rounds
from vllm_litelvlm.grounding.layout import POOLING_TASK, seg_token_index
from vllm_litelvlm.grounding.masks import Mask
from vllm_litelvlm.grounding.picture import upright
from vllm_litelvlm.grounding.sam import Sam
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
        llm: a ``vllm.LLM`` of a checkpoint with [SEG], made with ``runner="pooling"`` after
            ``vllm_litelvlm.activate()``.
        images: each is asked about in conversations of its own.
        expressions: at least one.
        conversation: whether they are rounds of one conversation, which share the visual tokens
            that all of them chose, or separate ones.
        options: of the pruning, as in ``mm_processor_kwargs["litelvlm"]``; ``texts`` are the
            expressions by default.
        segmenter: makes the masks; by default of the checkpoint's SAM, on the CPU.

    Raises OptionsError for no expressions or empty ones, CompatibilityError for an engine that
    does not give prompts of SAM, WeightsError for a checkpoint without a SAM.
    """
    texts = [expression.strip() for expression in expressions]
    if not texts or not all(texts):
        raise OptionsError(
            f"The expressions are {list(expressions)!r}; give at least one, none of them empty."
        )
    config = llm.llm_engine.model_config
    seg_token_index(config.hf_config)
    if config.runner_type != "pooling":
        raise CompatibilityError(
            f"The engine's runner is {config.runner_type!r}; masks need one that was made with "
            'LLM(..., runner="pooling").'
        )
    tokenizer = llm.get_tokenizer()
    # The language model and SAM see the same.
    pictures = [upright(image) for image in images]
    asked = []
    for together in conversations(texts, conversation):
        messages = rounds({"type": "image"}, together)
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        named = {name: it for name, it in (options or {}).items() if it is not None}
        asked.append(
            {
                "prompt_token_ids": asking_ids(ids, together, config.hf_config),
                "mm_processor_kwargs": {"litelvlm": {"texts": list(together), **named}},
            }
        )
    prompts = [
        {**one, "multi_modal_data": {"image": picture}} for picture in pictures for one in asked
    ]
    outputs = llm.encode(prompts, pooling_task=POOLING_TASK, use_tqdm=len(prompts) > 1)
    segmenter = segmenter or _segmenter(config.model, config.revision)
    found = []
    for number, picture in enumerate(pictures):
        of_picture = outputs[number * len(asked) : (number + 1) * len(asked)]
        rows = torch.cat([output.outputs.data.float() for output in of_picture])
        found.append(segmenter.masks(picture, rows))
    return found


@lru_cache(maxsize=1)
def _segmenter(model: str, revision: str | None) -> Segmenter:
    """Of the checkpoint that was asked last."""
    return Segmenter(Sam.load(model, revision))
