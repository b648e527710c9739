"""The package's errors: one base and its few leaves.

None is a ValueError: pydantic, in whose validation vLLM builds its configuration, would bury it
in an error of its own, together with the whole configuration.
"""


class LiteLVLMError(Exception):
    """Base of every error that this package raises on purpose."""


class OptionsError(LiteLVLMError):
    """An option has a value that is not allowed. The message names the value and the fix."""


class ActivationError(LiteLVLMError, RuntimeError):
    """The plugin was asked for in a way that cannot work."""


class WeightsError(LiteLVLMError):
    """A tensor that guidance needs is missing or misshapen; the message names it."""


class CompatibilityError(LiteLVLMError, RuntimeError):
    """vLLM, or the model it serves, is not one that the plugin can work with."""
