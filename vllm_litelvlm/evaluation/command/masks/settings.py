"""What one evaluation of masks is asked to do."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.command.arguments import (
    ANNOTATORS,
    IMAGES,
    JUDGED_VIDEOS,
    MOST_DRAWN,
    MOST_FRAMES,
    PROTOCOLS,
    SUBMITTED_VIDEOS,
    VIDEOS,
)
from vllm_litelvlm.evaluation.command.conditions import Asked, Condition
from vllm_litelvlm.evaluation.command.settings import Settings, common_fields, refuse_given

_FRAMES_PER_REQUEST = 16
_DRAWN = 6


@dataclass(frozen=True, kw_only=True)
class MaskSettings(Settings):
    """The command's arguments, checked. What a data set does not have is empty.

    ``videos``: None for all; ``drawn``: pictures in a contact sheet.
    """

    protocols: tuple[str, ...]
    together: int
    lower_case: bool
    annotators: tuple[str, ...]
    videos: int | None
    frames_per_request: int
    drawn: int

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> "MaskSettings":
        """From a parsed command line. Raises OptionsError for what does not go together."""
        _check(chosen)
        is_video = chosen.dataset in VIDEOS
        submitted = chosen.dataset in SUBMITTED_VIDEOS
        fields = common_fields(chosen, compared=not submitted)
        drawn = 0 if submitted else _given(chosen.contact_sheets, _DRAWN)
        return cls(
            **{**fields, "by_expressions": True},
            protocols=() if is_video else _once(chosen.protocols or PROTOCOLS, PROTOCOLS),
            together=_given(chosen.together, 1 if is_video else 3),
            lower_case=not chosen.keep_case,
            annotators=(
                _once(chosen.annotators or ANNOTATORS, ANNOTATORS)
                if chosen.dataset in JUDGED_VIDEOS
                else ()
            ),
            videos=chosen.videos,
            frames_per_request=_given(chosen.frames_per_request, _FRAMES_PER_REQUEST),
            drawn=drawn,
        )

    def asked(self, text: str) -> str:
        """An expression as the model is asked for it."""
        text = text.strip()
        return text.lower() if self.lower_case else text

    def options(self, condition: Condition, asked: Asked) -> dict[str, Any]:
        """What a request under a condition asks for; its expressions guide without being named."""
        options = condition.options(asked, False, self.seed)
        return options if self.frame == "crop" else {**options, "frame": self.frame}

    def identity(self) -> dict[str, Any]:
        """What must not change when an evaluation goes on."""
        free = ("drawn", "frames_per_request", "concurrent")
        named = {name: value for name, value in super().identity().items() if name not in free}
        return {"task": "masks", **named}


#: What may not be asked of which data sets.
_REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "images": (
        ("annotators", "videos", "frames_per_request"),
        "is for videos: --dataset " + ", ".join(VIDEOS) + ".",
    ),
    "judged": (("protocols",), "is for images: --dataset " + ", ".join(IMAGES) + "."),
    "submitted": (
        ("protocols", "annotators", "contact_sheets", "videos"),
        "does not go with a data set that a submission is written for: it takes every mask, and "
        "only the benchmark's server knows the right ones.",
    ),
}


def _check(chosen: argparse.Namespace) -> None:
    if chosen.backend == "transformers":
        raise OptionsError("--task masks needs --backend server or engine.")
    if chosen.guide_by == "prompt":
        raise OptionsError(
            "--guide-by prompt: masks are guided by their expressions; leave it out."
        )
    if chosen.texts > 1:
        raise OptionsError(
            "--texts: of masks say by --together how many expressions guide at once."
        )
    tuning = ["tune", "tune_questions"]
    refuse_given(chosen, tuning, "is for answers; leave it out with --task masks.")
    refuse_given(chosen, ["per_image"], "does not go with --task masks, which has --protocols.")
    submitted = chosen.dataset in SUBMITTED_VIDEOS
    kind = "judged" if chosen.dataset in JUDGED_VIDEOS else "submitted" if submitted else "images"
    refuse_given(chosen, *_REFUSED[kind])
    if submitted and not chosen.methods:
        raise OptionsError(
            f"--dataset {chosen.dataset} needs --methods: a submission is written for each, such "
            "as keep-all or fovea, at each of --budgets."
        )
    for name, most in (
        ("together", MOST_FRAMES),
        ("frames_per_request", MOST_FRAMES),
        ("contact_sheets", MOST_DRAWN),
    ):
        value = getattr(chosen, name)
        if value is not None and not 0 <= value <= most:
            raise OptionsError(f"--{name.replace('_', '-')} {value}; allowed: at most {most}.")


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _once(chosen: Any, order: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in order if name in chosen)
