"""Where SAM computes: a GPU that has room for it beside an engine, or the CPU."""

import logging

import torch
from transformers import SamConfig, SamModel

from vllm_litelvlm.errors import OptionsError

logger = logging.getLogger(__name__)

_GIB = 2**30


def check_device(asked: str | None) -> None:
    """Raise OptionsError for a device that this machine does not have."""
    if asked is None:
        return
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    allowed = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if asked not in allowed:
        raise OptionsError(
            f"litelvlm option 'sam_device' is {asked!r}; allowed on this machine: "
            f"{', '.join(allowed)}, or null, which chooses."
        )


def choose_device(
    asked: str | None, config: SamConfig, kept_bytes: int, processes: int = 1
) -> torch.device:
    """The device that is asked for; else the first GPU if SAM has room there, or the CPU.

    An engine has by then taken what memory it wants of a GPU. What it left is measured, and has to
    hold SAM's weights and work, and the features that are kept: a server that runs out of memory
    on a request is worse than one that is slow.

    Args:
        asked: a device that this machine has, or None.
        config: of SAM.
        kept_bytes: what features may take.
        processes: that load a SAM each.
    """
    if asked is not None:
        return torch.device(asked)
    if torch.cuda.device_count() == 0:
        return torch.device("cpu")
    try:
        free, _ = torch.cuda.mem_get_info(0)
    except RuntimeError as error:  # another process may have the GPU for itself
        logger.warning("SAM computes on the CPU, for the GPU cannot be used (%s).", error)
        return torch.device("cpu")
    return _with_room(free // processes, needed_bytes(config) + kept_bytes)


def needed_bytes(config: SamConfig) -> int:
    """Of a device's memory: float32 weights, and the work of two threads, an encoder's each."""
    with torch.device("meta"):
        weights = sum(one.numel() for one in SamModel(config).parameters())
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    # Its scores, what positions add to them, and their softmax.
    attention = 3 * vision.num_attention_heads * tokens**2
    return int(4 * (weights + 2 * attention)) + _GIB


def _with_room(free: int, needed: int) -> torch.device:
    if free >= needed:
        return torch.device("cuda:0")
    logger.warning(
        "SAM computes on the CPU, where a new picture may take seconds: it needs about %.1f GiB, "
        "and the GPU has %.1f left. Lower --gpu-memory-utilization, or set the litelvlm option "
        "'sam_device' to another GPU, or to \"cpu\" to leave this out.",
        needed / _GIB,
        free / _GIB,
    )
    return torch.device("cpu")
