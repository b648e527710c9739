"""What is trained when: a table of stages."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.scenes.expressions import EXPRESSION_KINDS
from vllm_litelvlm.evaluation.scenes.scene import SceneOptions

_EASY = ("attribute", "position")


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one kind of pictures.

    ``canvas`` is the side of the square part of the image in patches; it lies anywhere in the
    whole image. ``batch`` images a step, with ``questions`` about each one (of the LLaVA only),
    which are read in ``groups`` of like length; a CLIP sees each picture in ``reuse`` steps, since
    on a CPU drawing costs about as much as learning. It
    ends after ``minutes`` of training or ``steps``, whichever comes first, or when a validation
    ``goal`` is reached: a figure's name and the value. The learning rate falls from ``rate`` to
    the share ``fall`` of it. ``losses`` of a CLIP: what each one counts.

    ``model`` is what learns: "sam" a SAM that boxes prompt, and "pointing" the language model with
    [SEG], led to such prompts. With [SEG] each image has conversations about masks beside its
    ``questions``.
    """

    name: str
    model: Literal["clip", "llava", "sam", "pointing"]
    canvas: int
    objects: tuple[int, int]
    batch: int
    minutes: float
    rate: float
    fall: float = 0.1
    questions: int = 0
    groups: int = 4
    reuse: int = 4
    steps: int | None = None
    goal: tuple[str, float] | None = None
    losses: dict[str, float] = field(default_factory=lambda: {"contrast": 1.0, "dense": 1.0})
    expressions: tuple[str, ...] = EXPRESSION_KINDS

    def scenes(self, patch: int) -> SceneOptions:
        """How its pictures are drawn."""
        return SceneOptions(side=self.canvas * patch, objects=self.objects)


#: About five hours on two cores: one and a half of the CLIP, first on crops until it knows shapes,
#: and the rest of the LLaVA.
SCHEDULE = (
    Stage("crops-5", "clip", 5, (1, 1), 192, 5, 1.5e-3, 0.7, goal=("dense.shape", 0.97)),
    Stage("crops-8", "clip", 8, (1, 2), 160, 35, 1.5e-3, 0.15, goal=("dense.shape", 0.98)),
    Stage("crops-12", "clip", 12, (1, 4), 80, 20, 1e-3, 0.3),
    Stage("scenes", "clip", 24, (3, 8), 32, 35, 8e-4, 0.03),
    Stage("answers-8", "llava", 8, (1, 2), 24, 40, 1.5e-3, 0.5, 12, expressions=_EASY),
    Stage("answers-12", "llava", 12, (2, 4), 16, 55, 1.2e-3, 0.4, 12),
    Stage("answers", "llava", 24, (3, 8), 8, 110, 1e-3, 0.03, 16),
)

#: What follows for a model that answers with masks: two hours on two cores. Both parts meet in what
#: a prompt means, so neither waits for the other; learning by masks together made the SAM worse.
MASKS = (
    Stage("sam", "sam", 24, (3, 8), 8, 40, 1e-3, 0.05),
    Stage("pointing-12", "pointing", 12, (2, 4), 8, 25, 8e-4, 0.5, 4, groups=1),
    Stage("pointing", "pointing", 24, (3, 8), 4, 60, 5e-4, 0.03, 4, groups=1),
)

#: Batch and minutes of the stages on a GPU, 25 minutes in all; there a step lasts as long as its
#: operators take to be launched, and 16 cores beside it draw half as fast as it learns.
_ON_GPU = {
    "crops-5": (256, 0.5),
    "crops-8": (256, 3.5),
    "crops-12": (128, 1.5),
    "scenes": (64, 3.0),
    "answers-8": (64, 2.5),
    "answers-12": (48, 4.0),
    "answers": (32, 10.0),
    "sam": (32, 4.0),
    "pointing-12": (48, 3.0),
    "pointing": (32, 8.0),
}


def gpu_schedule(stages: Sequence[Stage] = SCHEDULE) -> tuple[Stage, ...]:
    """The same stages for a GPU and some 16 cores: larger batches, fewer minutes, new pictures."""
    return tuple(
        replace(stage, batch=batch, minutes=minutes, groups=1, reuse=1)
        for stage in stages
        for batch, minutes in [_ON_GPU[stage.name]]
    )


def stage_number(stages: Sequence[Stage], name: str) -> int:
    """Where a stage stands. Raises OptionsError for one that does not exist."""
    names = [stage.name for stage in stages]
    if name not in names:
        raise OptionsError(f"stage={name!r}: want one of {', '.join(names)}")
    return names.index(name)
