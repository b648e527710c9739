"""What one evaluation is asked to do."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from vllm_litelvlm.errors import LiteLVLMError, OptionsError
from vllm_litelvlm.evaluation.command.arguments import VIDEOS
from vllm_litelvlm.evaluation.command.conditions import Method, methods_of

#: Options that only masks have.
_OF_MASKS = (
    "protocols",
    "together",
    "keep_case",
    "annotators",
    "videos",
    "frames_per_request",
    "contact_sheets",
)


class EvaluationError(LiteLVLMError, RuntimeError):
    """An evaluation cannot run or go on; the message says what to change."""


@dataclass(frozen=True)
class Settings:
    """The command's arguments, checked; see its help for their meaning."""

    model: str | None
    clip_model: str | None
    url: str | None
    backend: str
    dtype: str | None
    concurrent: int
    dataset: str
    split: str
    data: Path | None
    questions: int
    frame: Literal["crop", "pad"]
    per_image: int | None
    by_expressions: bool
    texts: int
    seed: int
    methods: tuple[Method, ...]
    budgets: tuple[int, ...]
    output: Path
    extra_arguments: tuple[str, ...] = ()

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> "Settings":
        """From a parsed command line. Raises OptionsError for what does not go together."""
        if chosen.dataset in VIDEOS:
            raise OptionsError(f"--dataset {chosen.dataset} needs --task masks.")
        refuse_given(chosen, _OF_MASKS, "needs --task masks.")
        _check_tuning(chosen)
        return cls(**common_fields(chosen))

    @property
    def answerer(self) -> str:
        """The model or the server, as tables name it."""
        return str(self.model or self.url)

    @property
    def original_positions(self) -> bool:
        """Whether some method's tokens are to keep their own positions."""
        return any(method.positions == "original" for method in self.methods)

    def identity(self) -> dict[str, Any]:
        """What must not change when an evaluation goes on; methods and budgets may."""
        free = ("methods", "budgets", "output")
        named = {name: value for name, value in vars(self).items() if name not in free}
        return {**named, "version": version("vllm-litelvlm")}


def refuse_given(chosen: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise OptionsError if one of some options was given."""
    for name in names:
        if getattr(chosen, name) is not None:
            raise OptionsError(f"--{name.replace('_', '-')} {why}")


def _check_tuning(chosen: argparse.Namespace) -> None:
    if chosen.tune is None:
        refuse_given(chosen, ["tune_questions"], "needs --tune METHOD.")
        return
    if chosen.split.startswith("test"):
        raise OptionsError(
            f"--tune chooses by what is asked, and --split {chosen.split} is there to judge what "
            "was chosen: tune on --split val or train, and judge on the test split."
        )
    if chosen.methods or chosen.ablation:
        raise OptionsError(
            "--tune names the one method itself; leave --methods and --ablation out."
        )
    if len(set(chosen.positions)) > 1:
        raise OptionsError("--tune takes one of --positions: compact or original.")


def common_fields(chosen: argparse.Namespace, *, compared: bool = True) -> dict[str, Any]:
    """The fields of :class:`Settings`, checked; ``compared`` as of :func:`methods_of`."""
    transformers = chosen.backend == "transformers"
    if transformers and (chosen.url or not chosen.model or chosen.extra_arguments):
        raise OptionsError(
            "--backend transformers needs --model, and takes neither --url nor arguments of "
            "vllm serve."
        )
    if chosen.backend == "engine" and not chosen.model:
        raise OptionsError("--backend engine needs --model, and takes no --url.")
    if bool(chosen.model) == bool(chosen.url):
        raise OptionsError("Name either --model, to be served, or the --url of a server.")
    if chosen.url and (chosen.clip_model or chosen.dtype or chosen.extra_arguments):
        raise OptionsError(
            "--clip-model, --dtype and arguments of vllm serve are for a server that is "
            "started here; the one at --url has its own."
        )
    if chosen.texts > 1 and chosen.guide_by != "expressions":
        raise OptionsError("--texts above 1 needs --guide-by expressions.")
    return {
        "model": chosen.model,
        "clip_model": chosen.clip_model,
        "url": chosen.url,
        "backend": chosen.backend,
        "dtype": chosen.dtype,
        "concurrent": 1 if transformers else chosen.concurrent,
        "dataset": chosen.dataset,
        "split": chosen.split,
        "data": chosen.data,
        "questions": chosen.questions,
        "frame": chosen.frame,
        "per_image": chosen.per_image,
        "by_expressions": chosen.guide_by == "expressions",
        "texts": chosen.texts,
        "seed": chosen.seed,
        "methods": methods_of(
            chosen.methods if chosen.tune is None else [chosen.tune],
            chosen.ablation,
            list(dict.fromkeys(chosen.positions)),
            decoder=transformers,
            compared=compared,
        ),
        "budgets": tuple(sorted(set(chosen.budgets), reverse=True)),
        "output": chosen.output,
        "extra_arguments": tuple(chosen.extra_arguments),
    }
