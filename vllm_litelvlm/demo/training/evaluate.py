"""How good the exported models are, asked through transformers' own classes."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.training.answering import Judged, answer_figures
from vllm_litelvlm.demo.training.ranks import rank_figures, refer_to_each, scorer_of
from vllm_litelvlm.evaluation.llava import HfLlava
from vllm_litelvlm.evaluation.scenes.answers import is_right
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset, scene_seed
from vllm_litelvlm.evaluation.scenes.scene import Scene

#: The most tokens of an answer: a box has eight and the end token.
_LONGEST = 10
#: How many images the vision tower takes at once.
_BATCH = 16


@dataclass(frozen=True)
class Evaluation:
    """Figures of a checkpoint on unseen scenes and wordings.

    ``samples`` questions are asked, 8 about a scene, and as many scenes ranked as are asked about.
    """

    checkpoint: Checkpoint
    samples: int = 480
    device: str = "cpu"

    def figures(self) -> dict[str, float]:
        """Right answers by kind, beside guesses, and where referents' patches rank."""
        return self.answers() | self.ranks()

    @torch.no_grad()
    def answers(self) -> dict[str, float]:
        """See :func:`~vllm_litelvlm.demo.training.answering.answer_figures`."""
        llava = HfLlava(str(self.checkpoint.llava), torch.float32, torch.device(self.device))
        judged = []
        scene, features = None, None
        for sample in SceneDataset("test", self.samples):
            if sample.scene is not scene:
                scene = sample.scene
                features, _ = llava.images(sample.image).run([0], with_input=False)
            assert features is not None
            prompt = llava.prompt(sample.prompt, features[0, 1:])
            said = llava.decode(llava.generate(prompt, _LONGEST))
            judged.append(Judged(sample, is_right(sample, said)))
        return answer_figures(judged)

    @torch.no_grad()
    def ranks(self) -> dict[str, float]:
        """See :func:`~vllm_litelvlm.demo.training.ranks.rank_figures`."""
        folder = self.checkpoint.clip
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().to(self.device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
        scenes = [Scene.make(scene_seed("test", number)) for number in range(self.samples // 8)]
        referred = refer_to_each(scenes)
        hidden = []
        for start in range(0, len(referred), _BATCH):
            images = [one.scene.image for one in referred[start : start + _BATCH]]
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(self.device)
            hidden.append(clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2])
        texts = [one.expression.text for one in referred]
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        projected = clip.text_projection(clip.text_model(**tokens).pooler_output)
        patch = clip.config.vision_config.patch_size
        scorer = scorer_of(clip.config.vision_config, clip.state_dict())
        return rank_figures(scorer, torch.cat(hidden), projected.float(), referred, patch)


def show(figures: dict[str, float]) -> None:
    """Print the figures as two tables."""
    console = Console()
    answers = Table("question", "right", "random object", "commonest answer", title="Answers")
    for name, value in figures.items():
        if "." not in name:
            guesses = (figures.get(f"{name}.{guess}") for guess in ("object", "commonest"))
            cells = ("" if guess is None else f"{guess:.2f}" for guess in guesses)
            answers.add_row(name, f"{value:.2f}", *cells)
    ranks = Table("signal", "referent", "other objects", title="Mean rank of patches, 0 to 1")
    for name, value in figures.items():
        if name.startswith("rank.") and not name.endswith(".others"):
            others = figures.get(f"{name}.others", float("nan"))
            ranks.add_row(name.removeprefix("rank."), f"{value:.2f}", f"{others:.2f}")
    console.print(answers, ranks)
