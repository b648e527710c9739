"""Writes checkpoints shard by shard into a folder that stands only once it is whole."""

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vllm_litelvlm.errors import OptionsError, WeightsError

#: Bytes of a LLaVA's shard, unless a single tensor has more; as many are in memory at a time.
SHARD_SIZE = 2 * 1024**3


@contextmanager
def replacing(output: Path, overwrite: bool, keep: Collection[Path]) -> Iterator[Path]:
    """A new folder ``OUTPUT.partial``, which becomes ``output`` when the block ends well.

    Where the block raises, by an interrupt too, the new folder is removed and ``output`` stays
    what it was.

    Args:
        output: the folder wanted.
        overwrite: whether what is in it may go, and an ``OUTPUT.partial`` of a killed run.
        keep: folders that must not go with it.

    Raises OptionsError where it may not.
    """
    output = output.absolute()
    partial = output.with_name(f"{output.name}.partial")
    for folder in keep:
        if output.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise OptionsError(f"OUTPUT {output} holds {folder}, which is read. Name another one.")
    if output.exists() and not output.is_dir():
        raise OptionsError(f"OUTPUT {output} is a file; it has to be a folder. Name another one.")
    for folder in (output, partial):
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise OptionsError(
                f"{folder} exists and is not empty. Name another OUTPUT, or add --overwrite."
            )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _put(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(new: Path, output: Path) -> None:
    """Rename, so that at no time ``output`` holds a part of anything."""
    if not output.exists():
        new.rename(output)
        return
    with TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.replaced-") as old:
        output.rename(Path(old) / output.name)
        new.rename(output)


class ShardWriter:
    """Writes ``model.safetensors``, or shards and their index, as transformers names them.

    Args:
        folder: made where it does not exist.
        dtype: of what is written; None keeps each tensor's.
        size: bytes of a shard; without it there is one.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None, size: float = float("inf")) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._dtype = dtype
        self._size = size
        self._waiting: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, now or with later ones.

        Raises WeightsError for a number that the dtype cannot hold.
        """
        # A copy: views of a mapped file would be read when the file may be closed.
        copy = torch.empty(tensor.shape, dtype=self._dtype or tensor.dtype)
        copy.copy_(tensor.detach())
        if copy.dtype == torch.float16 != tensor.dtype and not torch.isfinite(copy).all():
            raise WeightsError(
                f"Tensor {name!r} has numbers beyond float16's (65504). Take --dtype bfloat16."
            )
        if self._waiting and self._bytes_waiting() + copy.nbytes > self._size:
            self._write()
        self._waiting[name] = copy

    def close(self) -> None:
        """Write what waits, name the shards by their count, and write the index of several."""
        self._write()
        count = len(self._shards)
        if count == 1:
            self._file(1).rename(self._folder / "model.safetensors")
            return
        index: dict[str, str] = {}
        for number, names in enumerate(self._shards, start=1):
            file = self._folder / f"model-{number:05}-of-{count:05}.safetensors"
            self._file(number).rename(file)
            index |= dict.fromkeys(names, file.name)
        told = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(index.items()))}
        file = self._folder / "model.safetensors.index.json"
        file.write_text(json.dumps(told, indent=2), encoding="utf-8")

    def _bytes_waiting(self) -> int:
        return sum(tensor.nbytes for tensor in self._waiting.values())

    def _file(self, number: int) -> Path:
        return self._folder / f"model-{number:05}.safetensors"

    def _write(self) -> None:
        self._shards.append(list(self._waiting))
        self._total += self._bytes_waiting()
        file = self._file(len(self._shards))
        try:
            save_file(self._waiting, file, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file} cannot be written ({error}).") from error
        self._waiting = {}
