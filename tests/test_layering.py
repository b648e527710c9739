"""The package's arrows point one way; the imports in its source are read and held to them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_litelvlm

PACKAGE = Path(vllm_litelvlm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: The files of this folder import Triton, but for its __init__; nothing loads them without a GPU.
KERNELS = PACKAGE / "pruning/kernels"

# Every layer and what it may import besides itself. "package" is vllm_litelvlm/__init__.py.
BELOW = {
    "errors": set(),
    "activation": {"errors"},
    "options": {"errors", "activation"},
    "pruning": {"errors", "activation", "options", "package"},
    "vision": {"errors", "activation", "options", "pruning"},
    "grounding": {"errors"},
    "convert": {"errors", "grounding"},
    "evaluation": {"errors", "activation", "options", "pruning", "vision", "grounding"},
    "plugin": {"errors", "activation", "options", "pruning", "vision", "grounding", "package"},
    "demo": {
        "errors",
        "activation",
        "options",
        "pruning",
        "vision",
        "grounding",
        "evaluation",
        "package",
    },
    "cli": {
        "errors",
        "options",
        "pruning",
        "grounding",
        "convert",
        "evaluation",
        "plugin",
        "demo",
        "package",
    },
    "package": {"activation"},
}


def layer_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "package" if first == "__init__" else first


def imported_modules(tree: ast.AST, names: bool = True) -> Iterator[str]:
    """Every module that is imported anywhere, in functions and type-checking blocks too.

    With ``names``, ``from a import b`` gives ``a.b``, since ``b`` may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if names else str(node.module)


def layers_imported(source: str) -> set[str]:
    layers = set()
    for module in imported_modules(ast.parse(source)):
        top, _, rest = module.partition(".")
        if top == "vllm_litelvlm":
            first = rest.partition(".")[0]
            layers.add(first if first in BELOW else "package")
    return layers


def libraries_imported(source: str) -> set[str]:
    return {name.partition(".")[0] for name in imported_modules(ast.parse(source), names=False)}


def in_file(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


each_file = pytest.mark.parametrize("file", FILES, ids=in_file)


def test_reader_of_imports_sees_nested_and_renamed_ones() -> None:
    source = (
        "import vllm.config as c\n"
        "def f():\n    from vllm_litelvlm import plugin, __version__\n"
        "class A:\n    import vllm_litelvlm.vision.clip\n"
    )
    assert layers_imported(source) == {"plugin", "package", "vision"}
    assert libraries_imported(source) == {"vllm", "vllm_litelvlm"}


def test_every_file_belongs_to_a_layer() -> None:
    assert {layer_of(file) for file in FILES} == set(BELOW)


@each_file
def test_file_imports_only_layers_to_its_left(file: Path) -> None:
    layer = layer_of(file)
    allowed = BELOW[layer] | {layer}
    if layer == "package":
        allowed = allowed | {"plugin"}  # inside register() only; see the test below
    assert layers_imported(file.read_text()) <= allowed


@each_file
def test_vllm_is_imported_by_the_plugin_folder_and_the_backend_on_its_engine_only(
    file: Path,
) -> None:
    if layer_of(file) != "plugin" and in_file(file) != "evaluation/engine_backend.py":
        assert "vllm" not in libraries_imported(file.read_text())


@pytest.mark.parametrize("layer", ["errors", "activation", "options", "pruning", "package"])
def test_lower_layer_imports_few_libraries(layer: str) -> None:
    allowed = {
        "errors": set(),
        "activation": {"yaml"},
        "options": {"pydantic"},
        "pruning": {"torch", "numpy", "pydantic"},
        "package": set(),
    }[layer] | set(sys.stdlib_module_names)
    files = [file for file in FILES if layer_of(file) == layer]
    assert files
    for file in files:
        is_kernel = file.parent == KERNELS and file.name != "__init__.py"
        here = allowed | ({"triton"} if is_kernel else set())
        assert libraries_imported(file.read_text()) - {"vllm_litelvlm"} <= here, in_file(file)


def test_vision_imports_torch_transformers_their_formats_and_clips_text_repair_only() -> None:
    allowed = {"torch", "transformers", "huggingface_hub", "safetensors", "ftfy", "vllm_litelvlm"}
    allowed |= {"compressed_tensors", "PIL", "numpy"}
    allowed |= set(sys.stdlib_module_names)
    for file in FILES:
        if layer_of(file) == "vision":
            assert libraries_imported(file.read_text()) <= allowed, in_file(file)


def _modules_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["vllm_litelvlm", "vllm_litelvlm.cli", "vllm_litelvlm.options"])
def test_light_module_loads_neither_torch_nor_vllm_nor_transformers(module: str) -> None:
    loaded = _modules_after(f"import {module}")
    assert "vllm_litelvlm" in loaded
    assert not loaded & {"torch", "vllm", "transformers"}


def test_register_loads_nothing_where_the_plugin_was_not_asked_for() -> None:
    statement = (
        "import os\nos.environ.pop('VLLM_PLUGINS', None)\nos.environ.pop('VLLM_LITELVLM', None)\n"
        "import vllm_litelvlm\nvllm_litelvlm.register()"
    )
    assert not _modules_after(statement) & {"torch", "vllm", "transformers"}


def test_methods_load_without_transformers_and_vllm() -> None:
    statement = (
        "from vllm_litelvlm.pruning.registry import method_names, pruner_class\n"
        "for name in method_names(): pruner_class(name)"
    )
    loaded = _modules_after(statement)
    assert "torch" in loaded
    assert not loaded & {"vllm", "transformers", "triton"}
