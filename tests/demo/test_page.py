"""What the page's command takes pictures of, and the pictures that the page offers."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vllm_litelvlm.demo.browser import CHROMIUM, BrowserError, find_chromium
from vllm_litelvlm.demo.page import Shot
from vllm_litelvlm.demo.page_command import add_arguments, shots_of
from vllm_litelvlm.demo.page_examples import FOLDER, draw_examples


def shots(*given: str) -> list[Shot]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return shots_of(parser.parse_args(given))


def test_each_width_and_scheme_is_a_screenshot_of_its_own() -> None:
    assert shots() == []
    assert shots("--screenshot", "a/b.png", "--budget", "64") == [
        Shot(Path("a/b.png"), 1280, "light", budget=64)
    ]
    several = shots("--screenshot", "b.png", "--width", "390", "1280", "--scheme", "light", "dark")
    assert [shot.file.name for shot in several] == [
        "b-390-light.png",
        "b-390-dark.png",
        "b-1280-light.png",
        "b-1280-dark.png",
    ]
    assert [(shot.width, shot.scheme) for shot in several][1] == (390, "dark")


def test_browser_that_is_not_there_is_a_sentence_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(CHROMIUM, raising=False)
    with pytest.raises(BrowserError, match=r"none of chromium, .*apt-get install chromium"):
        find_chromium()
    monkeypatch.setenv(CHROMIUM, str(tmp_path / "none"))
    with pytest.raises(BrowserError, match="none' on PATH"):
        find_chromium()


def test_shipped_examples_are_those_that_their_command_draws(tmp_path: Path) -> None:
    files = draw_examples(tmp_path)
    shipped = {file.name for file in FOLDER.iterdir()}
    assert shipped == {"examples.json", *(file.name for file in files)}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 80_000
    told, again = ((folder / "examples.json").read_text() for folder in (FOLDER, tmp_path))
    assert told == again
    for entry in json.loads(told):
        assert len(entry["expressions"]) == 2
        assert entry["question"]
        one, other = (
            np.asarray(Image.open(folder / entry["file"]), dtype=float)
            for folder in (FOLDER, tmp_path)
        )
        assert np.abs(one - other).mean() < 1  # another Pillow may encode a little otherwise
