"""Options that are not allowed, as vLLM answers them: HTTP 400 and a sentence."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vllm.exceptions import VLLMValidationError

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import COMMON_OPTIONS, OPTIONS_KEY, as_json

#: The field of a request whose key OPTIONS_KEY holds options.
FIELD = "mm_processor_kwargs"


def refusal(sentence: str) -> VLLMValidationError:
    """What to raise where a request's options are at fault."""
    return VLLMValidationError(sentence, parameter=f"{FIELD}.{OPTIONS_KEY}")


def refuse_bare(given: Mapping[str, object]) -> None:
    """Raise VLLMValidationError for options that stand in the field without the key."""
    bare = {name: value for name, value in given.items() if name in COMMON_OPTIONS}
    if bare and OPTIONS_KEY not in given:
        raise refusal(f"litelvlm options stand directly in {FIELD}; write {spelled(bare)}.")


def spelled(options: object) -> str:
    """How a request says these options."""
    return as_json({FIELD: {OPTIONS_KEY: options}}, 200)


@contextmanager
def refusals() -> Iterator[None]:
    """Raise VLLMValidationError for an OptionsError."""
    try:
        yield
    except OptionsError as error:
        raise refusal(str(error)) from None
