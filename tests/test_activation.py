"""Whether the plugin was asked for: command line, environment, activate()."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_litelvlm
from vllm_litelvlm.activation import activate, is_active
from vllm_litelvlm.errors import ActivationError, LiteLVLMError

COMMAND = ["vllm", "serve", "model", "--port", "8000"]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asked for; what a test or the code sets is undone after it."""
    for name in ("VLLM_PLUGINS", "VLLM_LITELVLM"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", list(COMMAND))


def test_plugin_is_off_until_it_is_asked_for() -> None:
    assert not is_active()
    assert sys.argv == COMMAND
    assert "VLLM_LITELVLM" not in os.environ


@pytest.mark.parametrize("flag", [["--plugin", "litelvlm"], ["--plugin=litelvlm"]])
@pytest.mark.parametrize("position", [1, 3, 5])
def test_flag_activates_and_is_taken_off_the_command_line(flag: list[str], position: int) -> None:
    sys.argv[position:position] = flag
    assert is_active()
    assert sys.argv == COMMAND
    assert os.environ["VLLM_LITELVLM"] == "1"  # for the child processes


def test_flag_is_taken_off_the_very_list_that_vllm_reads() -> None:
    argv = sys.argv
    argv += ["--plugin", "litelvlm"]
    is_active()
    assert sys.argv is argv
    assert argv == COMMAND


def test_every_repetition_of_the_flag_is_taken_off() -> None:
    sys.argv += ["--plugin", "litelvlm", "--plugin=litelvlm", "--plugin", "litelvlm"]
    assert is_active()
    assert sys.argv == COMMAND


def test_plugin_stays_active_in_later_calls() -> None:
    sys.argv += ["--plugin", "litelvlm"]
    assert [is_active(), is_active()] == [True, True]


@pytest.mark.parametrize(
    "others",
    [
        ["--plugin", "another"],
        ["--plugin=another"],
        ["--plugin", "litelvlm-extra"],
        ["--plugin=litelvlm,another"],
        ["--plugins", "litelvlm"],
        ["litelvlm"],
        ["--model", "litelvlm"],
        ["--plugin"],
        ["--plugin="],
    ],
)
def test_other_arguments_neither_activate_nor_change(others: list[str]) -> None:
    sys.argv += others
    assert not is_active()
    assert sys.argv == COMMAND + others


def test_flags_of_other_plugins_stay_beside_ours() -> None:
    sys.argv += ["--plugin", "another", "--plugin", "litelvlm", "--plugin=third"]
    assert is_active()
    assert sys.argv == [*COMMAND, "--plugin", "another", "--plugin=third"]


@pytest.mark.parametrize("argv", [[], ["vllm"]])
def test_short_command_line_is_no_error(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", list(argv))
    assert not is_active()
    assert sys.argv == argv


@pytest.mark.parametrize(
    ("named", "active"),
    [
        ("litelvlm", True),
        ("another,litelvlm", True),
        ("litelvlm,another", True),
        ("", False),
        ("another", False),
        ("litelvlm2", False),
    ],
)
def test_vllm_plugins_activates_where_it_names_the_plugin(
    monkeypatch: pytest.MonkeyPatch, named: str, active: bool
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", named)
    assert is_active() is active
    assert os.environ.get("VLLM_LITELVLM") == ("1" if active else None)


@pytest.mark.parametrize(("switch", "active"), [("1", True), ("", False)])
def test_switch_alone_decides(monkeypatch: pytest.MonkeyPatch, switch: str, active: bool) -> None:
    monkeypatch.setenv("VLLM_LITELVLM", switch)
    assert is_active() is active


def test_switch_of_zero_wins_and_the_flag_is_still_taken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_LITELVLM", "0")
    monkeypatch.setenv("VLLM_PLUGINS", "litelvlm")
    sys.argv += ["--plugin", "litelvlm"]
    assert not is_active()
    assert sys.argv == COMMAND  # vLLM's parser does not know the flag
    assert os.environ["VLLM_LITELVLM"] == "0"


@pytest.mark.parametrize("switch", ["2", "true", "yes", "-1", "01", " 1"])
def test_other_switch_is_refused_by_naming_it(monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setenv("VLLM_LITELVLM", switch)
    with pytest.raises(ActivationError) as raised:
        is_active()
    assert str(raised.value) == f"VLLM_LITELVLM is {switch!r}; allowed: 1 (on), 0 (off) or unset."


def test_activate_is_seen_by_is_active_and_by_child_processes() -> None:
    vllm_litelvlm.activate()
    assert os.environ["VLLM_LITELVLM"] == "1"
    assert vllm_litelvlm.is_active()


def test_activate_is_refused_where_the_plugin_is_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_LITELVLM", "0")
    with pytest.raises(ActivationError, match="VLLM_LITELVLM=0 switches the plugin off; unset it"):
        activate()
    assert os.environ["VLLM_LITELVLM"] == "0"


@pytest.mark.parametrize(
    ("named", "fix"),
    [("", "VLLM_PLUGINS=litelvlm"), ("a,b", "VLLM_PLUGINS=a,b,litelvlm")],
)
def test_activate_is_refused_where_vllm_would_not_load_the_plugin(
    monkeypatch: pytest.MonkeyPatch, named: str, fix: str
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", named)
    with pytest.raises(ActivationError) as raised:
        activate()
    assert repr(named) in str(raised.value)
    assert str(raised.value).endswith(fix)
    assert "VLLM_LITELVLM" not in os.environ


def test_activate_works_where_vllm_plugins_names_the_plugin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "another,litelvlm")
    activate()
    assert is_active()


def test_activation_error_is_one_of_ours_and_a_runtime_error() -> None:
    assert issubclass(ActivationError, LiteLVLMError)
    assert issubclass(ActivationError, RuntimeError)


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("plugin: litelvlm", True),
        ("port: 8000\nplugin: [another, litelvlm]", True),
        ("plugin: another", False),
        ("plugins: litelvlm", False),
        ("plugin:", False),
        ("- plugin", False),
        ("plugin: [", False),
        ("", False),
    ],
)
def test_config_file_activates_as_the_flag_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, asked: bool
) -> None:
    (tmp_path / "config.yaml").write_text(told)
    sys.argv += ["--config", str(tmp_path / "config.yaml")]
    argv = list(sys.argv)
    assert is_active() is asked
    assert sys.argv == argv
    monkeypatch.setenv("VLLM_LITELVLM", "0")
    assert not is_active()


@pytest.mark.parametrize("last", [[], ["/nowhere.yaml"]])
def test_config_file_that_is_not_there_is_left_to_vllm(last: list[str]) -> None:
    sys.argv += ["--config", *last]
    assert not is_active()


def test_vllm_reads_its_config_file_without_our_name(tmp_path: Path) -> None:
    program = """
import sys, vllm_litelvlm
from vllm_litelvlm import activation
file = sys.argv.pop()
sys.argv = ["vllm", "serve", "--config", file]
vllm_litelvlm.register()
from vllm.utils.argparse_utils import FlexibleArgumentParser
print(activation.is_active(), FlexibleArgumentParser().load_config_file(file))
"""
    file = tmp_path / "config.yaml"
    for told, read in [
        ("plugin: litelvlm\nport: 1", "['--port', '1']"),
        ("plugin: [litelvlm, b]\nport: 1", "['--plugin', 'b', '--port', '1']"),
    ]:
        file.write_text(told)
        for switch in ("", "0"):
            done = subprocess.run(
                [sys.executable, "-c", program, str(file)],
                env={**os.environ, "VLLM_LITELVLM": switch},
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.splitlines()[-1] == f"{switch != '0'} {read}"
