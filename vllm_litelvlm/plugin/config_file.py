"""``plugin: litelvlm`` in the file of vLLM's ``--config``, which knows no such option."""

import functools
from collections.abc import Callable
from typing import Any

from vllm_litelvlm.activation import PLUGIN_NAME
from vllm_litelvlm.plugin.wrap import wrap

_FLAG = "--plugin"


def install() -> None:
    """Have vLLM read its file without our name. Idempotent."""
    parser = "vllm.utils.argparse_utils"
    wrap(parser, "FlexibleArgumentParser.load_config_file", _without_us)


def _without_us(stock: Callable[[Any, str], list[str]]) -> Callable[[Any, str], list[str]]:
    @functools.wraps(stock)
    def load_config_file(parser: Any, file_path: str) -> list[str]:
        arguments = stock(parser, file_path)
        if _FLAG not in arguments:
            return arguments
        first = arguments.index(_FLAG)
        end = first + 1
        while end < len(arguments) and not arguments[end].startswith("--"):
            end += 1
        others = [name for name in arguments[first + 1 : end] if name != PLUGIN_NAME]
        return arguments[:first] + ([_FLAG, *others] if others else []) + arguments[end:]

    return load_config_file
