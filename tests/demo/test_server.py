"""The environment that a server is started in."""

from pathlib import Path

import pytest

from vllm_litelvlm.demo.server import _environment


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_server_stays_offline_when_every_checkpoint_is_a_folder(tmp_path: Path) -> None:
    assert _environment([tmp_path, str(tmp_path)], None)["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("clip", [None, "openai/clip-vit-large-patch14-336"])
def test_server_may_reach_the_hub_for_a_clip_that_is_no_folder(
    tmp_path: Path, clip: str | None
) -> None:
    assert "HF_HUB_OFFLINE" not in _environment([tmp_path, clip], None)


def test_given_variables_win_over_the_defaults(tmp_path: Path) -> None:
    given = {"HF_HUB_OFFLINE": "0"}
    assert _environment([tmp_path], given)["HF_HUB_OFFLINE"] == "0"
