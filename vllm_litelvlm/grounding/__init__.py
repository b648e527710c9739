"""Masks of what an expression refers to: from the states that predict [SEG], by SAM, to formats."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_litelvlm.grounding.offline import segment, segment_frames

__all__ = ["segment", "segment_frames"]


def __getattr__(name: str) -> Any:
    """Both need SAM, which other parts of the package do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm_litelvlm.grounding import offline

    return getattr(offline, name)
