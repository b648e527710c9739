"""What every method costs beside the vision tower, and whether it makes the host wait."""

from collections.abc import Callable

import torch
from rich.console import Console

from benchmarks.gpu.journal import Journal
from benchmarks.gpu.limit import Limit
from benchmarks.gpu.settings import Settings
from benchmarks.selection_inputs import GEOMETRIES, Inputs, Size
from benchmarks.selection_rounds import DTYPES, action, blocks, tasks
from benchmarks.selection_rounds import Settings as SelectionSettings
from vllm_litelvlm.pruning.base import Pruner
from vllm_litelvlm.pruning.registry import build_pruner, method_names

_BUDGET = 64


def selection_settings(settings: Settings) -> SelectionSettings:
    """The selection benchmark's own, at the tower's number of patches."""
    geometry = GEOMETRIES["tiny" if settings.geometry == "tiny" else "large"]
    patches = (geometry.image_size // geometry.patch_size) ** 2
    batches = (1,) if settings.small else (1, 8, 32)
    return SelectionSettings(
        methods=tuple(name for name in method_names() if name != "keep-all"),
        sizes=tuple(Size(patches, images, _BUDGET) for images in batches),
        rounds=1,
        dtype="bfloat16",
        device=settings.device,
        threads=torch.get_num_threads(),
        geometry=geometry,
        max_gib=32.0,
        seed=settings.seed,
        output=settings.output,
    )


def measure_methods(settings: Settings, journal: Journal, limit: Limit, console: Console) -> None:
    """Time every method and look for waits, until the limit."""
    chosen = selection_settings(settings)
    pruners = {method: build_pruner(method, {}) for method in chosen.methods}
    for block in blocks(chosen, pruners, console):
        journal.add_method_block(block)
        if limit.passed:
            return
    if settings.device == "cuda":
        find_waits(chosen, pruners, journal)
        torch.cuda.empty_cache()


@torch.inference_mode()
def find_waits(chosen: SelectionSettings, pruners: dict[str, Pruner], journal: Journal) -> None:
    """Run every method under PyTorch's own check, which refuses to wait for the device."""
    inputs = Inputs(chosen.geometry, DTYPES[chosen.dtype], torch.device(chosen.device), chosen.seed)
    waits: dict[str, list[str]] = {method: [] for method in chosen.methods}
    for size in chosen.sizes:
        for what, method in tasks(chosen, inputs, pruners, size):
            if method is None or what == "tower":
                continue
            call = action(inputs, pruners, (what, method), size)
            call()  # what is made once may wait
            if said := wait_of(call):
                waits[method].append(f"{what}, batch {size.images}: {said}")
    for method, found in waits.items():
        journal.add_waits(method, tuple(found))


def wait_of(call: Callable[[], object]) -> str | None:
    """What PyTorch says where the call makes the host wait for the device, else None."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return str(error).partition("\n")[0][:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None
