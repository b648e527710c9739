"""The ``litelvlm`` command."""

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_litelvlm.cli import main
from vllm_litelvlm.pruning.registry import method_names, pruner_class


def test_methods_lists_every_method_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name in method_names():
        assert name in printed
        for option in pruner_class(name).model_fields:
            assert option in printed
    assert "budget" in printed


def test_error_of_the_package_is_a_sentence_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"vision_config": {"image_size": 336, "patch_size": 14}}')
    assert main(["demo", "--model", str(model), "--output", str(tmp_path / "out")]) == 1
    assert "vllm serve ended with" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_vllm() -> None:
    program = (
        "import sys\n"
        "from vllm_litelvlm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vllm serve MODEL --plugin litelvlm" in " ".join(done.stdout.split())
