"""The command line of ``litelvlm evaluate``. Importing this loads nothing heavy."""

import argparse
from pathlib import Path

BACKENDS = ("server", "engine", "transformers")
TASKS = ("answers", "masks")
IMAGES = ("scenes", "refcoco", "refcoco+", "refcocog")
#: With right masks, and with masks that only a server of the benchmark's judges.
JUDGED_VIDEOS, SUBMITTED_VIDEOS = ("ref-davis17",), ("mevis", "refer-youtube-vos")
VIDEOS = (*JUDGED_VIDEOS, *SUBMITTED_VIDEOS)
DATASETS = (*IMAGES, *VIDEOS)
SPLITS = ("train", "val", "test", "testA", "testB")
ABLATIONS = ("share", "components")
POSITIONS = ("compact", "original")
FRAMES = ("crop", "pad")
PROTOCOLS = ("authors", "all")
ANNOTATORS = ("annot1", "annot1_full_video", "annot2", "annot2_full_video")
#: How many frames of a video a request may have.
MOST_FRAMES = 64
#: Of how many pictures masks are kept, to be drawn.
MOST_DRAWN = 16

#: The budgets of the paper's Table 1.
BUDGETS = (192, 128, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every argument. Counts are whole numbers from 1."""
    _add_model(parser)
    _add_questions(parser)
    _add_conditions(parser)
    _add_tuning(parser)
    _add_masks(parser)
    add = parser.add_argument
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("litelvlm-evaluation"),
        help="for answers.jsonl, results.json, table.md, plot.png, tuned.yaml, contact-sheets and "
        "the server's log (%(default)s)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the answers in --output; methods and budgets may be added",
    )
    add("extra_arguments", nargs="*", help=argparse.SUPPRESS)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """What answers."""
    add = parser.add_argument
    add("--model", metavar="CHECKPOINT", help="hub name or folder of a LLaVA-1.5 checkpoint")
    add("--clip-model", metavar="CHECKPOINT", help="the vision tower's CLIP, if not the published")
    add("--url", help="a running server to ask instead, such as http://localhost:8000")
    add(
        "--backend",
        choices=BACKENDS,
        default="server",
        help="server (default): starts vllm serve --plugin litelvlm, with all arguments after --; "
        "engine: vLLM's offline class in this process, with the same arguments, faster where both "
        "would share few cores; transformers: runs fastv and sparsevlm besides",
    )
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="the model's; else its own")
    add(
        "--concurrent",
        metavar="C",
        type=count,
        default=8,
        help="requests on their way to the server at once (8)",
    )


def _add_questions(parser: argparse.ArgumentParser) -> None:
    """What is asked."""
    add = parser.add_argument
    add(
        "--task",
        choices=TASKS,
        default="answers",
        help="answers (default) in words and boxes, or masks, of a model with [SEG]",
    )
    add(
        "--dataset",
        choices=DATASETS,
        default="scenes",
        help="scenes (default) are drawn here; the last three are videos, for masks",
    )
    add("--split", choices=SPLITS, default="val", help="of the data set (val)")
    add("--data", metavar="FOLDER", type=Path, help="where the files of others lie")
    add(
        "--questions",
        metavar="N",
        type=count,
        default=400,
        help="the data set's first N in all, of whatever kinds; of masks, expressions (400)",
    )
    add(
        "--frame",
        choices=FRAMES,
        default="crop",
        help="of pictures that are no squares: the middle as the processor crops it (default), or "
        "all of it, padded to a square, as LLaVA-1.5 was trained and judged",
    )
    add(
        "--per-image",
        metavar="N",
        type=count,
        help="of RefCOCO: at most so many sentences an image (the paper's authors: 3)",
    )
    add(
        "--guide-by",
        choices=("prompt", "expressions"),
        help="whether the whole prompt (default) or the expressions in it guide the pruning; of "
        "masks always the expressions",
    )
    add(
        "--texts",
        metavar="N",
        type=count,
        default=1,
        help="expressions that guide at once, the question's own and others about its image (1)",
    )
    add("--seed", metavar="S", type=int, default=0, help="of random draws (0)")


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    """What is compared; keep-all always is, and random with all others."""
    add = parser.add_argument
    add(
        "--methods",
        metavar="METHOD",
        nargs="+",
        help="names as in `litelvlm methods`, with options as in litelvlm:share=0.25,context=false "
        "or fovea:focus=0.25,text=16; litelvlm-reference, litelvlm-value, "
        "litelvlm-reference-value, fovea-layers, fovea-no-text; all (default: litelvlm, "
        "litelvlm-reference, litelvlm-value, fovea; with --ablation none)",
    )
    add(
        "--budgets",
        metavar="TOKENS",
        type=count,
        nargs="+",
        default=list(BUDGETS),
        help=f"visual tokens that are kept ({' '.join(map(str, BUDGETS))})",
    )
    add(
        "--positions",
        choices=POSITIONS,
        nargs="+",
        default=["compact"],
        help="of kept tokens in the language model: compact (default), original, or both as "
        "conditions of their own; a server at --url must have been started for original ones",
    )
    add(
        "--ablation",
        choices=ABLATIONS,
        nargs="+",
        default=[],
        help="of litelvlm: share: 0 to 1 (the paper's Table 5); components: direction and context "
        "(Table 4)",
    )


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    """What is searched in place of a comparison."""
    add = parser.add_argument_group("tuning").add_argument
    add(
        "--tune",
        metavar="METHOD",
        help="search this method's options, but for those it is given with, as in fovea:context=4, "
        "and write the server options that won (tuned.yaml) with the table they were chosen by "
        "(tuned.md). One half of --questions chooses: option by option, values contend in three "
        "rounds of ever more questions and ever fewer values, and one that beats the present value "
        "on the same questions by more than a standard error takes its place. The other half "
        "judges: the defaults stay unless what was found beats them there by more than two. What "
        "counts is the score, its mean over --budgets",
    )
    add(
        "--tune-questions",
        metavar="N",
        type=count,
        help="how many the model may be asked in all, a question about each setting at each budget "
        "counted as one, with the evaluation of all tokens, random tokens, defaults and winner; "
        "the search takes what that leaves (default: what half of --questions and every option "
        "twice take at most)",
    )


def _add_masks(parser: argparse.ArgumentParser) -> None:
    """What of masks is asked; nothing by default, so that it is told where it does not apply."""
    add = parser.add_argument_group("masks", "with --task masks").add_argument
    add(
        "--protocols",
        choices=PROTOCOLS,
        nargs="+",
        help="of images: the paper's authors' (at most three expressions an image) and all "
        "expressions (default: both)",
    )
    add(
        "--together",
        metavar="N",
        type=count,
        help="expressions that share a conversation and guide one pruning (3; of videos 1)",
    )
    add(
        "--keep-case",
        action="store_true",
        default=None,
        help="ask in the expressions' own capitals; without, in lower case, as GLaMM's and "
        "VideoGLaMM's evaluations do",
    )
    add(
        "--annotators",
        choices=ANNOTATORS,
        nargs="+",
        help="of Ref-DAVIS17 (default: all four, whose mean is its figure)",
    )
    add("--videos", metavar="N", type=count, help="the data set's first N (default: all)")
    add(
        "--frames-per-request",
        metavar="N",
        type=count,
        help=f"of a video; SAM takes its time for each (16; at most {MOST_FRAMES})",
    )
    add(
        "--contact-sheets",
        metavar="N",
        type=int,
        help="pictures in the contact sheets, one a method, of right and predicted masks over "
        f"budgets (6; at most {MOST_DRAWN}, 0 for none)",
    )


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number from 1")
    return value
