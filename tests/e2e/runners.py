"""vLLM's two model runners, both on a CPU."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import vllm

_INTERPRETER = Path(__file__).with_name("interpreter")


@dataclass(frozen=True)
class Runner:
    """A model runner, and the environment in which vLLM takes it."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def python_path(folder: Path) -> str:
    """A ``PYTHONPATH`` with a folder before those that are there."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


#: The default where Triton does not work, as on a CPU.
V1 = Runner("V1")
#: The default on a GPU. Its kernels run in Triton's interpreter; see interpreter/.
V2 = Runner(
    "V2",
    {
        "PYTHONPATH": python_path(_INTERPRETER),
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
    },
)

#: For tests of what does not depend on the model runner, or that others hold for V2 already: it is
#: slow in the interpreter.
on_v1_alone = pytest.mark.parametrize("runner", [V1], ids=str, indirect=True, scope="session")

#: For tests of what was never seen to depend on the model runner: in the interpreter when there is
#: time.
slow_on_v2 = pytest.mark.parametrize(
    "runner",
    [V1, pytest.param(V2, marks=pytest.mark.slow)],
    ids=str,
    indirect=True,
    scope="session",
)

#: The environment of two worker processes.
TWO_WORKERS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}

#: vLLM 0.33 takes an engine's rank for a memory node's number on a CPU, with the plugin or without.
needs_memory_nodes = pytest.mark.skipif(
    vllm.__version__ >= "0.33" and len([*Path("/sys/devices/system/node").glob("node*")]) < 2,
    reason="vLLM 0.33 needs a memory node for each engine on a CPU",
)
#: Of what an engine is spread by.
SPREADS = ["tensor", pytest.param("data", marks=needs_memory_nodes)]
