#!/usr/bin/env bash
# torch 2.13.0, its build for CPUs (where pip does not find it: let it see the index of PyTorch's CPU wheels).
#
# PyTorch's fake tensors have shapes and a device, but no numbers, so a program for a GPU can be walked
# through on a machine that has none: products, sorts and gathers of tensors "on cuda:0" work, and .item()
# says that it needs numbers. But what Python spells shortest does not work: t[0], t[:2], ~t and
# t.contiguous() raise that PyTorch is not linked with CUDA, as their bindings switch to the device before
# anything looks at what the tensor is. torch.select, torch.bitwise_not and t.clone(memory_format=...)
# give the same and work.
#
# Fails if one of the short spellings works, or one of the long ones does not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy torch==2.13.0+cpu

"$folder/venv/bin/python" - <<'PY'
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

with FakeTensorMode():
    t = torch.empty(4, 4, device="cuda:0")
    works = {
        "t @ t": lambda: t @ t,
        "t.sort()": lambda: t.sort().values,
        "torch.select(t, 0, 0)": lambda: torch.select(t, 0, 0),
        "torch.bitwise_not(t > 0)": lambda: torch.bitwise_not(t > 0),
        "t.T.clone(...)": lambda: t.T.clone(memory_format=torch.contiguous_format),
    }
    fails = {
        "t[0]": lambda: t[0],
        "t[:2]": lambda: t[:2],
        "~(t > 0)": lambda: ~(t > 0),
        "t.T.contiguous()": lambda: t.T.contiguous(),
    }
    for name, call in works.items():
        print(f"{name}: {call().device}")
    try:
        t.sum().item()
    except DataDependentOutputException as error:
        print(f"t.sum().item(): {type(error).__name__}")
    for name, call in fails.items():
        try:
            call()
        except RuntimeError as error:
            print(f"{name}: {error}")
            assert "not linked" in str(error), error
        else:
            raise SystemExit(f"{name} works now")
PY
