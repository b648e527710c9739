"""Text-guided visual-token pruning for vLLM (LiteLVLM, ICML 2026).

Importing this package has no effects and imports neither torch nor vLLM. vLLM calls
:func:`register` through its ``vllm.general_plugins`` entry point in every one of its processes;
it does nothing unless the plugin was asked for (see :mod:`vllm_litelvlm.activation`).
"""

import sys

from vllm_litelvlm.activation import activate, is_active, is_in_config_file

__version__ = "0.1.0"
__all__ = ["__version__", "activate", "is_active", "register"]


def register() -> None:
    """Install the plugin into the running vLLM process if it was asked for. Idempotent."""
    if is_in_config_file(sys.argv):
        from vllm_litelvlm.plugin import config_file

        config_file.install()
    if is_active():
        from vllm_litelvlm.plugin.register import install

        install()
