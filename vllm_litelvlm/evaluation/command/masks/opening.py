"""Opens what answers with masks, once there is something to ask."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Self

from PIL import Image
from rich.console import Console

from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, CHANCE, Condition, grid
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.opening import (
    Serve,
    client_errors_told,
    engine_of,
    running_server,
)
from vllm_litelvlm.evaluation.masks.backend import MaskAnswer, MaskBackend, MaskQuestion

#: Of ``vllm serve``: a conversation is one prefill, and nothing is asked for words.
_RUNNER = "--runner=pooling"


@contextmanager
def open_masks(settings: MaskSettings, serve: Serve, console: Console) -> Iterator[MaskBackend]:
    """The backend that the settings name; raises what ``open_backend`` does for answers."""
    if settings.backend == "engine":
        llm = engine_of(settings, console, _RUNNER)
        from vllm_litelvlm.evaluation.masks.engine_backend import EngineMasks

        try:
            yield EngineMasks(llm)
        finally:
            # Its threads would otherwise end with the interpreter, which some do not survive.
            llm.llm_engine.engine_core.shutdown()
        return
    with running_server(settings, serve, console, _RUNNER) as url, client_errors_told(url):
        from vllm_litelvlm.evaluation.masks.server_backend import ServerMasks

        yield ServerMasks(url, settings.concurrent)


class Opened:
    """A backend that is opened when it is first asked, and closed with the ``with`` block.

    Args:
        opens: opens it.
        all_tokens: the visual tokens of a picture that is not pruned, where an earlier run found
            out.
    """

    def __init__(
        self,
        opens: Callable[[], AbstractContextManager[MaskBackend]],
        all_tokens: int | None = None,
    ) -> None:
        self._opens = opens
        self._all_tokens = all_tokens
        self._backend: MaskBackend | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)  # type: ignore[arg-type]

    def answer(self, questions: Sequence[MaskQuestion]) -> Iterator[MaskAnswer]:
        """As the backend does; each question has an answer, or an error is raised."""
        if self._backend is None:
            self._backend = self._stack.enter_context(self._opens())
        yield from self._backend.answer(questions)

    @property
    def all_tokens(self) -> int:
        """The visual tokens of a picture that is not pruned: what prompts with one have more."""
        if self._all_tokens is None:
            ways = ({"method": ALL_TOKENS}, {"method": CHANCE, "budget": 1})
            blank = Image.new("RGB", (64, 64))
            asked = [MaskQuestion([blank], ["it"], options) for options in ways]
            whole, one = [answer.prompt_tokens for answer in self.answer(asked)]
            self._all_tokens = round(whole - one) + 1
        return self._all_tokens

    def conditions(self, settings: MaskSettings) -> list[Condition]:
        """Every condition; raises OptionsError for a budget above all tokens."""
        return grid(settings.methods, settings.budgets, self.all_tokens)
