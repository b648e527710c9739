"""Draws the pictures that the server's page offers, into a folder of the package.

``python -m vllm_litelvlm.demo.page_examples``; what it writes is shipped.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vllm_litelvlm
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset, SceneSample

FOLDER = Path(vllm_litelvlm.__file__).parent / "plugin/endpoints/page/examples"
#: Scenes of the validation split, with objects of many kinds.
_SCENES = (4, 8, 6)
_QUESTIONS, _EXPRESSIONS = 8, 2
_QUALITY = 80


def draw_examples(folder: Path) -> list[Path]:
    """Write ``examples.json`` and a JPEG for each of its entries; returns the pictures' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = SceneDataset("val", 1, questions=_QUESTIONS)
    entries, files = [], []
    for number, scene in enumerate(_SCENES, 1):
        samples = dataset.about(scene)
        file = folder / f"scene-{number}.jpg"
        samples[0].image.save(file, quality=_QUALITY, optimize=True)
        entries.append({"file": file.name, "title": f"Scene {number}", **_told(samples)})
        files.append(file)
    text = json.dumps(entries, indent=1) + "\n"
    (folder / "examples.json").write_text(text, encoding="utf-8")
    return files


def _told(samples: Sequence[SceneSample]) -> dict[str, Any]:
    """What is in a scene, what refers to single objects of it, and a question about one."""
    objects = samples[0].scene.objects
    said = [f"{one.size} {one.colour} {one.texture} {one.shape}" for one in objects]
    single = [one for one in samples if len(one.question.targets) == len(one.texts) == 1]
    referred = {one.question.targets: one.texts[0] for one in reversed(single)}
    asked = next(one for one in single if one.kind in ("colour", "texture", "shape"))
    return {
        "description": f"A drawn scene: {', '.join(said)}.",
        "expressions": [*reversed(referred.values())][:_EXPRESSIONS],
        "question": asked.prompt,
    }


def main() -> int:
    """Write and say what was written."""
    for file in draw_examples(FOLDER):
        print(f"{file} ({file.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
