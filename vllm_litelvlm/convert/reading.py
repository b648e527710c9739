"""Reads checkpoints tensor by tensor: safetensors or PyTorch's .bin, one file or shards."""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vllm_litelvlm.convert.words import few
from vllm_litelvlm.errors import CompatibilityError, WeightsError

#: The first of these that a folder has is its checkpoint.
ENTRIES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
#: Dtypes by safetensors' names; of any other a checkpoint is quantised.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Held:
    """A tensor that a checkpoint holds, as its file's header tells."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises CompatibilityError where it is not there or none.

    What it is part of is not the layout that was asked for, then.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"it holds a {type(fields).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise CompatibilityError(f"{file} cannot be read ({error}).") from error
    return fields


def read_headers(folder: Path) -> dict[str, Held]:
    """Every tensor of a folder's checkpoint, by name; no weights are read.

    Raises WeightsError where there is none, a shard is missing or broken, or holds less than the
    index says.
    """
    entry = next((folder / name for name in ENTRIES if (folder / name).is_file()), None)
    if entry is None:
        raise WeightsError(f"{folder} has no weights; there should be one of {', '.join(ENTRIES)}.")
    if entry.suffix != ".json":
        return dict(_headers_of(entry))
    index = read_json(entry).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise WeightsError(f"{entry} has no 'weight_map'; download it again.")
    files = sorted({folder / str(name) for name in index.values()})
    if gone := [file.name for file in files if not file.is_file()]:
        raise WeightsError(
            f"{folder} lacks {few(gone, 'file')} of {entry.name}. Download what is missing."
        )
    found = {name: held for file in files for name, held in _headers_of(file)}
    if lost := sorted(index.keys() - found.keys()):
        raise WeightsError(
            f"The shards of {folder} lack {few(lost, 'tensor')} of {entry.name}. "
            "Download them again."
        )
    return found


def read_tensors(held: Mapping[str, Held]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, file by file, on the CPU; of a .bin they are views of a mapped file."""
    for file in sorted({one.file for one in held.values()}):
        names = [name for name, one in held.items() if one.file == file]
        if file.suffix == ".bin":
            loaded = _load(file)
            yield from ((name, loaded[name]) for name in names)
        else:
            with safe_open(file, "pt") as opened:
                yield from ((name, opened.get_tensor(name)) for name in names)


def _headers_of(file: Path) -> Iterator[tuple[str, Held]]:
    if file.suffix == ".bin":
        for name, tensor in _load(file).items():
            yield name, Held(file, tuple(tensor.shape), tensor.dtype)
        return
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                header = opened.get_slice(name)
                yield name, Held(file, tuple(header.get_shape()), _dtype(file, name, header))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} cannot be read ({error}). Download it again.") from error


def _dtype(file: Path, name: str, header: Any) -> torch.dtype:
    called = header.get_dtype()
    if called not in DTYPES:
        raise WeightsError(
            f"Tensor {name!r} of {file} has dtype {called}; known are {', '.join(DTYPES)}. "
            "Take the checkpoint that is not quantised."
        )
    return DTYPES[called]


def _load(file: Path) -> dict[str, Tensor]:
    """A .bin without its weights where it can be mapped: PyTorch before 1.6 wrote another kind."""
    try:
        loaded = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{file} cannot be read ({error}). Download it again.") from error
    if not isinstance(loaded, dict) or not all(isinstance(one, Tensor) for one in loaded.values()):
        raise WeightsError(f"{file} holds something else than a dict of name to tensor.")
    return loaded
