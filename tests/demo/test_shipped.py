"""The model that ships, through the demo: it answers, and needs no other file and no option."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from vllm_litelvlm.demo.run import SHIPPED, run_demo


def test_model_is_small_and_says_what_it_is() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*.safetensors")) < 20e6
    assert (SHIPPED / "README.md").read_text().startswith("---\nlicense:")
    stages = [json.loads(line)["stage"] for line in (SHIPPED / "training.jsonl").open()]
    assert list(dict.fromkeys(stages))[-1] == "answers"


def test_demo_serves_it_and_most_answers_are_right(tmp_path: Path) -> None:
    told = StringIO()
    rows = run_demo(tmp_path, [576, 64], console=Console(file=told, width=140))
    whole = [row for row in rows if row.budget == 576]
    assert len(whole) >= 12
    assert sum(row.right for row in whole) > 0.6 * len(whole)
    printed = told.getvalue()
    assert "✓" in printed
    for method in ("litelvlm", "fovea"):
        pruned = [row for row in rows if row.method == method]
        for one, other in zip(whole, pruned, strict=True):
            assert one.prompt_tokens - other.prompt_tokens == 512
            assert one.picture.is_file()
            assert other.picture.is_file()
        right = f"{sum(row.right for row in pruned)} of {len(pruned)} right"
        assert f" 64 tokens, {method:<8}: {right}" in printed
    assert (tmp_path / "pictures" / "scene-0.png").is_file()
