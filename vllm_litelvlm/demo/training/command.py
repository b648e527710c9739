"""The command: arguments to options to a training or an evaluation."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_litelvlm.demo.training.schedule import MASKS, SCHEDULE
from vllm_litelvlm.errors import LiteLVLMError, OptionsError, WeightsError

if TYPE_CHECKING:
    import torch

    from vllm_litelvlm.demo.training.trainer import Trainer

HELP = "train the small model of the demo, a CLIP and a LLaVA, on scenes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder for the state, the log and the models; a training there goes on",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="exported model to begin with instead of random weights; with --stage, most often",
    )
    parser.add_argument(
        "--masks",
        action="store_true",
        help="teach --start (the demo's model, if left out) to answer with masks, too: the token "
        "[SEG], and a SAM",
    )
    parser.add_argument(
        "--method",
        help="with --masks: let conversations about whole scenes see only the tokens that this "
        "method keeps, at their original positions, as in fine-tuning for a pruned server",
    )
    parser.add_argument(
        "--budget", type=int, default=64, help="how many tokens --method keeps of an image (64)"
    )
    parser.add_argument(
        "--minutes", type=float, help="end after so many, with everything saved; all if left out"
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="of how long every stage lasts, such as 0.5 for half as long (1)",
    )
    parser.add_argument(
        "--stage",
        choices=[stage.name for stage in (*SCHEDULE, *MASKS)],
        help="train this stage only, with the weights as they are",
    )
    parser.add_argument(
        "--threads", type=int, help="of the CPU, each in a process; one a core if left out"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        help="to compute in; bfloat16 if left out, or float32 on a CPU that has no bfloat16",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that draw ahead; if left out none on the CPU, and most cores beside a GPU",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="do not train; print how good the exported models are",
    )
    parser.add_argument(
        "--samples", type=int, default=480, help="questions that an evaluation asks"
    )


def run(chosen: argparse.Namespace) -> None:
    """Do what the arguments say."""
    import torch

    from vllm_litelvlm.demo.run import SHIPPED
    from vllm_litelvlm.demo.training.settings import TRAINED_MASKS, Pruning, TrainingOptions, on_gpu
    from vllm_litelvlm.demo.training.trainer import Trainer

    torch.set_flush_denormal(True)
    cores = len(os.sched_getaffinity(0))
    on_cpu = chosen.device == "cpu"
    threads = chosen.threads or (cores if on_cpu else 1)
    workers = chosen.workers
    if workers is None:
        workers = 0 if on_cpu else max(1, cores - 2)
    if not chosen.evaluate:
        torch.set_num_threads(1)
        options = TrainingOptions(
            chosen.output,
            seed=chosen.seed,
            device=chosen.device,
            processes=threads if on_cpu else 1,
            workers=workers,
            dtype=_dtype(chosen.dtype, on_cpu),
            start=chosen.start,
        )
        if chosen.masks:
            start = chosen.start or SHIPPED
            options = replace(options, geometry=TRAINED_MASKS, stages=MASKS, start=start)
            if chosen.method is not None:
                options = replace(options, pruning=Pruning(chosen.method, chosen.budget))
        elif chosen.method is not None:
            raise OptionsError(f"--method {chosen.method} is for conversations; add --masks.")
        if not on_cpu:
            options = on_gpu(options)
        stages = (replace(one, minutes=chosen.scale * one.minutes) for one in options.stages)
        options = replace(options, stages=tuple(stages))
        trainer = Trainer(options)
        _stop_on_signal(trainer)
        written = trainer.run(chosen.minutes, chosen.stage)
        print(f"{written.llava} holds the LLaVA as it is now, and in {written.clip} its CLIP.")
        return
    torch.set_num_threads(threads)
    evaluate(chosen.output, chosen.samples, chosen.device)


def _dtype(name: str | None, on_cpu: bool) -> "torch.dtype":
    """The one that is named, or that which the device computes fast in."""
    import torch

    slow = on_cpu and not torch.cpu._is_avx512_bf16_supported()
    found = getattr(torch, name or ("float32" if slow else "bfloat16"))
    assert isinstance(found, torch.dtype)
    return found


def evaluate(output: Path, samples: int, device: str) -> None:
    """Print and log how good the exported models are. Raises WeightsError where there are none."""
    from vllm_litelvlm.demo.training.evaluate import Evaluation, show
    from vllm_litelvlm.demo.training.export import exported_in
    from vllm_litelvlm.demo.training.state import append_line

    checkpoint = exported_in(output / "model")
    if not (checkpoint.llava / "model.safetensors").is_file():
        raise WeightsError(f"There is no model in {output / 'model'}. Train one there first.")
    figures = Evaluation(checkpoint, samples, device).figures()
    append_line(output / "log.jsonl", {"stage": "exported", "evaluation": figures})
    show(figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. Errors of the package are told in a sentence."""
    parser = argparse.ArgumentParser(prog="litelvlm train", description=HELP)
    add_arguments(parser)
    try:
        run(parser.parse_args(arguments))
    except LiteLVLMError as error:
        print(f"litelvlm train: {error}", file=sys.stderr)
        return 1
    return 0


def _stop_on_signal(trainer: "Trainer") -> None:
    """Let the first signal end the training after the step, and the second at once."""

    def stop(number: int, _: object) -> None:
        trainer.stop = True
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
