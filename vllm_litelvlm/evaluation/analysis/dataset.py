"""The data set that a command line names."""

from importlib import import_module
from pathlib import Path
from typing import cast, get_args

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.samples import Dataset
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset
from vllm_litelvlm.evaluation.scenes.wording import SPLITS


def open_dataset(name: str, split: str, folder: Path | None, samples: int) -> Dataset:
    """A data set by its name, or the one at MODULE:NAME.

    Args:
        name: scenes, refcoco, refcoco+ or refcocog; or MODULE:NAME, a data set, or what makes one
            when it is called with the split.
        split: of the data set.
        folder: of the files, for the three sets that have some.
        samples: how many scenes' samples to make.

    Raises OptionsError for what there is not, and DataError for files that are missing.
    """
    if ":" in name:
        return _import(name, split)
    if name == "scenes":
        if split not in SPLITS:
            raise OptionsError(f"--split {split}: scenes have {', '.join(SPLITS)}.")
        return SceneDataset(split, samples)
    # pycocotools is for these sets alone.
    from vllm_litelvlm.evaluation.refer import ReferDataset, ReferName, ReferSplit

    if name not in get_args(ReferName):
        allowed = ", ".join(["scenes", *get_args(ReferName)])
        raise OptionsError(f"--dataset {name}; allowed: {allowed}, or MODULE:NAME of your own.")
    if folder is None:
        raise OptionsError(f"--dataset {name} needs --data, the folder of its files.")
    return ReferDataset(folder, cast(ReferName, name), cast(ReferSplit, split))


def _import(place: str, split: str) -> Dataset:
    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ModuleNotFoundError, ValueError, AttributeError) as error:
        raise OptionsError(f"--dataset {place}: {error}.") from None
    made = found(split) if callable(found) else found
    if not all(hasattr(made, needed) for needed in ("name", "split", "__len__", "__iter__")):
        raise OptionsError(
            f"--dataset {place}: no data set there. NAME must have name, split, a length and "
            "samples, or make that when it is called with the split."
        )
    return cast(Dataset, made)
