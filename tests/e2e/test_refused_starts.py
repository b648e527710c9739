"""What cannot be served as asked ends ``vllm serve`` with one sentence."""

from pathlib import Path

import pytest

from tests.e2e.conftest import ARGUMENTS
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import ServerError, serve


@pytest.mark.parametrize(
    ("options", "arguments", "sentence"),
    [
        ({"bugdet": 64}, [], "vllm: error: litelvlm option 'bugdet' is unknown; allowed: budget"),
        (
            {},
            ["--model-impl", "transformers"],
            "vllm: error: litelvlm was asked for, but this model would be served by another class",
        ),
        (
            {},
            ["--disable-chunked-mm-input", "--max-num-batched-tokens=512"],
            "Raise that, or set the litelvlm option 'max_budget' to 512 or less.",
        ),
        (
            {"variants": {"fast": {"budget": 600}}},
            [],
            "vllm: error: Variant 'fast': litelvlm option 'budget' is 600; allowed: at most 576",
        ),
    ],
    ids=["mistyped", "another class", "no step has room", "variant"],
)
def test_start_is_refused_in_a_sentence(
    checkpoint: Checkpoint,
    tmp_path: Path,
    options: dict[str, object],
    arguments: list[str],
    sentence: str,
) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(ServerError, match="vllm serve ended with 1"):
        serve(
            checkpoint.llava,
            clip_model=checkpoint.clip,
            options=options,
            arguments=[*ARGUMENTS, *arguments],
            log=log,
        ).__enter__()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("vllm: error: ")
    assert sentence in last
