"""Whether the plugin was asked for, and how that reaches every process of an engine.

vLLM loads *every* installed general plugin when ``VLLM_PLUGINS`` is unset, so being loaded is not
being asked for. The plugin is active when one of these holds:

* ``--plugin litelvlm`` stands on vLLM's own command line, or ``plugin: litelvlm`` in the file of
  its ``--config``,
* ``VLLM_PLUGINS`` names ``litelvlm``,
* ``VLLM_LITELVLM=1``, which is what :func:`activate` and the command-line flag set for the child
  processes (the prefix ``VLLM_`` carries it to Ray workers too).

``VLLM_LITELVLM=0`` switches it off even when it is named.
"""

import os
import sys
from pathlib import Path

from vllm_litelvlm.errors import ActivationError

PLUGIN_NAME = "litelvlm"
SWITCH = "VLLM_LITELVLM"
_FLAG = "--plugin"
_CONFIG = "--config"


def activate() -> None:
    """Ask for the plugin in this process and the engine processes that it starts.

    For the offline ``vllm.LLM`` class; call it before the first engine is built. Raises
    ActivationError when ``VLLM_LITELVLM=0`` forbids it, or when ``VLLM_PLUGINS`` is set without
    naming the plugin (vLLM would then not load it).
    """
    if os.environ.get(SWITCH) == "0":
        raise ActivationError(f"{SWITCH}=0 switches the plugin off; unset it to activate.")
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None and PLUGIN_NAME not in named.split(","):
        raise ActivationError(
            f"VLLM_PLUGINS is {named!r}, so vLLM would not load {PLUGIN_NAME!r}; "
            f"add it: VLLM_PLUGINS={','.join(filter(None, [named, PLUGIN_NAME]))}"
        )
    os.environ[SWITCH] = "1"


def is_active() -> bool:
    """Tell whether the plugin was asked for, taking ``--plugin litelvlm`` off ``sys.argv``.

    vLLM has no ``--plugin`` flag; it loads plugins before it reads ``sys.argv``, so the flag is
    removed here, in time. Raises ActivationError for a ``VLLM_LITELVLM`` that is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        raise ActivationError(f"{SWITCH} is {switch!r}; allowed: 1 (on), 0 (off) or unset.")
    asked_on_command_line = is_vllm_command(sys.argv) and (
        _take_flag(sys.argv) or is_in_config_file(sys.argv)
    )
    if switch == "0":
        return False
    named = os.environ.get("VLLM_PLUGINS", "").split(",")
    if not (asked_on_command_line or switch == "1" or PLUGIN_NAME in named):
        return False
    os.environ[SWITCH] = "1"
    return True


def is_vllm_command(argv: list[str]) -> bool:
    """``vllm ...`` or ``python -m vllm.entrypoints...``: a user's own program keeps its flags."""
    program = Path(argv[0]) if argv else Path()
    return program.name == "vllm" or "vllm/entrypoints" in program.as_posix()


def is_in_config_file(argv: list[str]) -> bool:
    """Whether the file of vLLM's ``--config`` says ``plugin: litelvlm``, alone or in a list.

    A file that cannot be read says nothing; vLLM will say so itself.
    """
    if not is_vllm_command(argv) or _CONFIG not in argv[:-1]:
        return False
    import yaml

    try:
        told = yaml.safe_load(Path(argv[argv.index(_CONFIG) + 1]).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    named = told.get(_FLAG.lstrip("-")) if isinstance(told, dict) else None
    return PLUGIN_NAME in (named if isinstance(named, list) else [named])


def _take_flag(argv: list[str]) -> bool:
    """Remove ``--plugin litelvlm`` and ``--plugin=litelvlm`` in place; other plugins stay."""
    found = False
    position = 1
    while position < len(argv):
        if argv[position] == f"{_FLAG}={PLUGIN_NAME}":
            del argv[position]
            found = True
        elif argv[position : position + 2] == [_FLAG, PLUGIN_NAME]:
            del argv[position : position + 2]
            found = True
        else:
            position += 1
    return found
