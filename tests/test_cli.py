"""The ``litelvlm`` command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_litelvlm.cli import main
from vllm_litelvlm.plugin.served import MODELS
from vllm_litelvlm.pruning.registry import method_names, pruner_class


def test_methods_lists_every_method_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name in method_names():
        assert name in printed
        for option in pruner_class(name).model_fields:
            assert option in printed
    assert "budget" in printed


def test_families_lists_every_architecture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["families"]) == 0
    blocks = re.split(r"\n\s*\n", capsys.readouterr().out)
    assert len(blocks) > len(MODELS)
    for architecture in MODELS:
        [*ours] = (block for block in blocks if architecture in block)
        assert ours
        for block in ours:
            assert ("prumerge, prumerge+, tome" in block) is ("Qwen" in block)
            assert ("videos" in block) is ("Qwen" in block)


def test_model_that_is_no_folder_is_a_sentence_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--model", str(tmp_path / "none"), "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("litelvlm: ")
    assert "--model takes the folder of a LLaVA-1.5 checkpoint" in printed


@pytest.mark.parametrize("budget", ["0", "577"])
def test_budget_that_no_image_has_is_refused_before_anything_is_built(
    budget: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert main(["demo", "--budgets", budget, "--output", str(output)]) == 1
    assert f"option 'budget' is {budget}; allowed" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("command", ["", "demo", "page", "evaluate", "analyze", "train"])
def test_help_needs_neither_torch_nor_vllm(command: str) -> None:
    arguments = [*filter(None, [command]), "--help"]
    program = (
        "import sys\n"
        "from vllm_litelvlm.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = f"litelvlm {command} [" if command else "vllm serve MODEL --plugin litelvlm"
    assert expected in " ".join(done.stdout.split())


def test_evaluation_of_methods_that_do_not_exist_is_a_sentence_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--model", str(tmp_path), "--methods", "none", "--output", str(tmp_path)]
    assert main(given) == 1
    assert capsys.readouterr().err.startswith("litelvlm: ")
