"""Triton kernels: they choose what their loops choose, and compile for the GPUs they are meant for.

How each case is made: :mod:`tests.pruning.kernel_cases`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pruning.kernel_cases import KERNELS, compare
from vllm_litelvlm.pruning import kernels

pytest.importorskip("triton")

every_kernel = pytest.mark.parametrize("name", KERNELS)


@every_kernel
def test_kernel_chooses_what_its_loop_chooses(name: str) -> None:
    """In Triton's interpreter, which computes on a CPU."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.pruning.kernel_cases", name],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_kernel
def test_gpu_chooses_what_the_loop_chooses_on_a_cpu(name: str) -> None:
    assert compare(name, "cuda") >= 16


def _started(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """The kernel that a call starts, with its arguments and constants."""
    starts: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        kernels,
        "launch",
        lambda kernel, grid, *given, **fixed: starts.append((kernel, given, fixed)),
    )
    call()
    [start] = starts
    return start


def _call(name: str, patches: int, dtype: torch.dtype) -> Callable[[], object]:
    """One call of a kernel on an image; only hidden states may have a dtype of their own."""
    from vllm_litelvlm.pruning.kernels import (
        axes,
        determinant,
        diversity,
        facility,
        farthest,
        merging,
        sharpest,
        suppression,
        thinning,
    )

    square, line = torch.empty(1, patches, patches), torch.empty(1, patches)
    order, rows = torch.arange(patches)[None], torch.empty(1, 78, patches)
    hidden, keys = torch.empty(1, 1 + patches, 1024, dtype=dtype), torch.empty(1, 1 + patches, 64)
    sizes = torch.empty(1, 1 + patches)
    groups = patches // 36  # as many as a budget of a ninth has
    wide, small = (torch.empty(1, groups, n, dtype=torch.float64) for n in (1024, groups))
    turns, counts = order.int(), torch.empty(1, 2, groups, dtype=torch.int32)
    return {
        "farthest": lambda: farthest.choose_in_one_launch(line, line > 0, 24, 64, 2.0**12),
        "determinant": lambda: determinant.choose_in_one_launch(square, line, 64, 1e-5),
        "diversity": lambda: diversity.choose_in_one_launch(square, line, order[:, 0], 64),
        "facility": lambda: facility.choose_in_one_launch(square, 64, line),
        "sharpest": lambda: sharpest.mix_in_one_launch(rows, order[:, :77] > 0, 100.0, 0.2),
        "thinning": lambda: thinning.thin_out_in_one_launch(square, order, 64, 8),
        "orthonormal": lambda: axes.orthonormal_in_one_launch(wide),
        "axes": lambda: axes.axes_in_one_launch(small, 1e-12),
        "suppression": lambda: suppression.line_up_in_one_launch(
            square, line[:, 0], order, order, groups, 0.1
        ),
        "shares": lambda: suppression.share_out_in_one_launch(order, turns, counts, 64, 1),
        "merging": lambda: merging.merge_in_one_launch(hidden, keys, sizes, sizes.long(), 22),
    }[name]


def _triton_type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        names |= {torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8"}
        return "*" + names[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("patches", [576, 2880])
@every_kernel
def test_kernel_compiles_for_a_gpu_and_fits_its_registers(
    name: str, patches: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes Python that the compiler refuses; no GPU is needed to compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for dtype in (torch.bfloat16, torch.float32) if name == "merging" else (torch.float32,):
        kernel, given, fixed = _started(_call(name, patches, dtype), monkeypatch)
        options = {"num_warps": fixed.pop("num_warps"), "enable_fp_fusion": False}
        values = dict(zip(kernel.arg_names, given, strict=False))
        types = {argument: _triton_type(value) for argument, value in values.items()}
        source = ASTSource(kernel, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed)
        compiled = triton.compile(source, GPUTarget("cuda", capability, 32), options)
        assert compiled.metadata.shared <= 64 * 1024
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        assert _stack_bytes(binary) == 0  # registers that spill lie there


def _stack_bytes(binary: Path) -> int:
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    told = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    [found] = re.findall(r"STACK:(\d+)", told.stdout)
    return int(found)
