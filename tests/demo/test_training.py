import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel, LlavaForConditionalGeneration

from vllm_litelvlm.demo.training.answering import greedy
from vllm_litelvlm.demo.training.batches import patchwork
from vllm_litelvlm.demo.training.captions import caption, expression, truths
from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.dense import dense_targets
from vllm_litelvlm.demo.training.evaluate import Evaluation
from vllm_litelvlm.demo.training.feed import feed
from vllm_litelvlm.demo.training.helpers import Team
from vllm_litelvlm.demo.training.language import Tokenizers
from vllm_litelvlm.demo.training.layers import attend, attend_causally, causal_mask
from vllm_litelvlm.demo.training.llava import Llava
from vllm_litelvlm.demo.training.losses import contrastive_loss
from vllm_litelvlm.demo.training.optimiser import MasterAdamW
from vllm_litelvlm.demo.training.pace import learning_rate
from vllm_litelvlm.demo.training.schedule import SCHEDULE, Stage, gpu_schedule, stage_number
from vllm_litelvlm.demo.training.settings import TRAINED, TrainingOptions
from vllm_litelvlm.demo.training.state import Position
from vllm_litelvlm.demo.training.tensors import LlavaBatch
from vllm_litelvlm.demo.training.trainer import Trainer
from vllm_litelvlm.errors import OptionsError, WeightsError
from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES
from vllm_litelvlm.evaluation.scenes.scene import BACKGROUND, Scene

TINY = replace(
    TRAINED,
    vision_width=32,
    vision_layers=3,
    vision_heads=1,
    text_width=32,
    text_layers=2,
    projection=16,
    llm_width=64,
    llm_layers=2,
    llm_heads=2,
    llm_kv_heads=2,
    llm_mlp=64,
)
STAGES = (
    Stage("crops", "clip", 5, (1, 1), 8, 1, 1e-2, steps=4),
    Stage("answers", "llava", 5, (1, 1), 4, 1, 1e-2, questions=5, steps=4),
)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = Tokenizers.make(samples=200)
    made.clip.save_pretrained(folder / "clip")
    made.llama.save_pretrained(folder / "llama")
    (folder / "complete").touch()
    return folder


@pytest.fixture(scope="module")
def trained(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Both models after a few steps, exported; afterwards in float32."""
    trainer = trainer_in(tmp_path_factory.mktemp("trained"), language)
    trainer.run()
    trainer.models.clip.float()
    trainer.models.llava.float()
    return trainer


def trainer_in(output: Path, language: Path, stages: tuple[Stage, ...] = STAGES) -> Trainer:
    options = TrainingOptions(
        output, TINY, stages, tokenizers=language, report_every=0.0, thoroughness=0.05
    )
    return Trainer(options)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [
        one.detach().clone()
        for name in ("clip", "llava")
        for one in trainer.models.optimisers[name].masters
    ]


def samples(count: int) -> list[Sample]:
    return list(SceneDataset("test", count))


def rendered(processor: object, prompt: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text: str = processor.apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return text


def whole_image(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(patchwork(scene.pixels, 14))[None], torch.arange(576)[None]


def test_training_that_was_interrupted_ends_with_the_same_weights(
    language: Path, tmp_path: Path
) -> None:
    whole = trainer_in(tmp_path / "whole", language)
    whole.run()
    for stop_at in (2, 6):
        first = trainer_in(tmp_path / f"cut{stop_at}", language)
        with pytest.MonkeyPatch.context() as patched:
            stop_after(first, stop_at, patched)
            first.run()
        assert first.position.stage == (stop_at > 4)
        resumed = trainer_in(tmp_path / f"cut{stop_at}", language)
        resumed.run()
        assert resumed.position == replace(
            resumed.position, stage=len(STAGES), step=0, whitened=True
        )
        for one, other in zip(weights(whole), weights(resumed), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def stop_after(trainer: Trainer, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step, done = Team.step, 0

    def counted(self: Team, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        trainer.stop = done == steps
        return step(self, *arguments)

    monkeypatch.setattr(Team, "step", counted)


def test_state_of_other_settings_is_refused(language: Path, tmp_path: Path) -> None:
    trainer_in(tmp_path, language).models.save()
    options = TrainingOptions(tmp_path, TINY, STAGES, seed=1, tokenizers=language)
    with pytest.raises(OptionsError, match="other settings"):
        Trainer(options)


def test_loss_falls_and_the_log_tells_guesses(language: Path, tmp_path: Path) -> None:
    stages = tuple(replace(stage, steps=25) for stage in STAGES)
    trainer_in(tmp_path, language, stages).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for stage in stages:
        losses = [
            line["losses"]["loss"]
            for line in lines
            if line["stage"] == stage.name and "losses" in line
        ]
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    clip, llava = (line["validation"] for line in lines if "validation" in line)
    assert {"dense.shape", "top1.captions", "rank.similarity", "rank.value"} <= clip.keys()
    assert {"answers", "answers.object", "colour.object", "colour.commonest"} <= llava.keys()


def test_one_stage_alone_is_trained_from_its_beginning(language: Path, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, language)
    before = [master.detach().clone() for master in trainer.models.optimisers["clip"].masters]
    trainer.run(only="answers")
    assert trainer.position.stage == 2
    after = trainer.models.optimisers["clip"].masters
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    with pytest.raises(OptionsError, match="want one of crops, answers"):
        trainer.run(only="else")


def test_exported_clip_equals_the_trained_one(trained: Trainer) -> None:
    folder = trained.exporter.written.clip
    clip, report = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(folder)
    asked = samples(4)
    texts = [sample.texts[0] for sample in asked]
    inputs = processor(text=texts, images=asked[0].image, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = clip.eval()(**inputs).logits_per_image
        features = trained.models.clip.vision.features(*whole_image(asked[0].scene))
        ours = trained.models.clip.logits(
            trained.models.clip.vision.embed(features),
            trained.models.clip.text(*trained.models.maker(STAGES[0]).read(texts)),
        )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("start", [False, True])
def test_packed_questions_give_the_exported_models_logits_of_each_alone(
    trained: Trainer, start: bool
) -> None:
    folder = trained.exporter.written.llava
    llava, report = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(folder)
    asked = samples(4)
    pairs = trained.models.tokenizers.questions([one.prompt for one in asked], ["yes"] * 4)
    lengths = [len(question) for question, _ in pairs]
    tokens = torch.zeros((1, 4, max(lengths)), dtype=torch.long)
    for place, (question, _) in enumerate(pairs):
        tokens[0, place, : len(question)] = torch.tensor(question)
    with torch.no_grad():
        features = trained.models.clip.vision.features(*whole_image(asked[0].scene))[:, 1:]
        prefix = torch.tensor(trained.models.tokenizers.prefix(start))
        hidden = trained.models.llava.answer(trained.models.llava.read(features, prefix), tokens)
        packed = trained.models.llava.lm_head(hidden)[0]
        for place, sample in enumerate(asked):
            inputs = processor(
                text=rendered(processor, sample.prompt),
                images=sample.image,
                return_tensors="pt",
                add_special_tokens=start,
            )
            alone = llava.eval()(**inputs).logits[0, -lengths[place] :]
            torch.testing.assert_close(packed[place, : lengths[place]], alone, rtol=0, atol=1e-3)


def test_greedy_answers_do_not_depend_on_the_other_questions(trained: Trainer) -> None:
    prompts = [
        question
        for question, _ in trained.models.tokenizers.questions(["A?", "What is it?"], ["", ""])
    ]
    features = torch.randn(1, 9, TINY.vision_width)
    memory = trained.models.llava.read(
        features, torch.tensor(trained.models.tokenizers.prefix(False))
    )
    together = greedy(trained.models.llava, memory, [prompts])[0]
    apart = [greedy(trained.models.llava, memory, [[prompt]])[0][0] for prompt in prompts]
    assert together == apart


def test_training_prompts_are_the_processors_token_ids(trained: Trainer) -> None:
    processor = AutoProcessor.from_pretrained(trained.exporter.written.llava)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    for sample in samples(20):
        [(question, answer)] = trained.models.tokenizers.questions([sample.prompt], ["07 12 40 56"])
        expected = processor(
            text=rendered(processor, sample.prompt),
            images=sample.image,
            add_special_tokens=False,
        )["input_ids"][0]
        ours = trained.models.tokenizers.prefix(start=False) + [image] * 576 + question
        assert ours == list(expected)
        assert len(answer) == 9
        assert trained.models.tokenizers.decode(answer) == "07 12 40 56"


def test_any_text_survives_both_tokenizers(language: Path) -> None:
    tokenizers = Tokenizers.load_or_make(language)
    text = "Grüße, 世界! (x = 3) 🙂"
    ids = tokenizers.llama(text, add_special_tokens=False)["input_ids"]
    assert tokenizers.llama.decode(ids).strip() == text
    assert tokenizers.clip.unk_token_id not in tokenizers.texts([text])[0][1:-1]


def test_targets_are_the_answers_alone(language: Path, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, language)
    maker = trainer.models.maker(STAGES[1])
    batch = maker.llava(0)
    assert isinstance(batch, LlavaBatch)
    said = []
    for group in batch.groups:
        length = group.tokens.shape[2]
        for number, tokens in enumerate(group.tokens.flatten(0, 1)):
            own = group.learned // length == number
            places, learned = group.learned[own] % length, group.targets[own]
            begin = int(places[0])
            assert places.tolist() == list(range(begin, begin + len(places)))
            assert trainer.models.tokenizers.llama.decode(tokens[: begin + 1]).endswith(
                "ASSISTANT:"
            )
            assert tokens[begin + 1 : begin + len(places)].equal(learned[:-1])
            assert learned[-1] == trainer.models.tokenizers.llama.eos_token_id
            said.append(trainer.models.tokenizers.decode(learned.tolist()))
    places = zip(maker.samples(0), maker.offsets(0), strict=True)
    assert sorted(said) == sorted(
        maker.answer(sample, offset) for about, offset in places for sample in about
    )


def test_causal_attention_in_stretches_equals_the_whole() -> None:
    query, key, value = torch.randn(3, 2, 300, 8, dtype=torch.float64)
    expected = attend(query, key, value, causal_mask(300, query))
    torch.testing.assert_close(attend_causally(query, key, value), expected)


@torch.no_grad()
def test_whitening_gives_uncorrelated_inputs() -> None:
    llava = Llava(TINY, 10)
    features = torch.randn(4000, 32) @ torch.randn(32, 32) + 3
    llava.whiten(features)
    out = llava.linear_1(features)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(64), rtol=0, atol=0.02)
    assert float(out.var(dim=0).mean()) == pytest.approx(0.5, abs=0.05)


def test_masters_move_by_less_than_the_working_weights_can_show() -> None:
    layer = torch.nn.Linear(4, 4)
    optimiser = MasterAdamW([layer], torch.bfloat16)
    shown = layer.weight.detach().clone()
    for _ in range(3):
        layer(torch.ones(4, dtype=torch.bfloat16)).sum().backward()
        optimiser.step(optimiser.take_gradient(), 1e-6)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, optimiser.masters[0].to(torch.bfloat16))
    assert not torch.equal(optimiser.masters[0], shown.float())


def test_contrast_ignores_pairs_that_are_true_by_chance() -> None:
    logits = torch.tensor([[5.0, 5.0, 5.0, -5.0], [5.0, 5.0, -5.0, 5.0]])
    chance = torch.tensor([[True, True, True, False], [True, True, False, True]])
    own = torch.tensor([[True, False, True, False], [False, True, False, True]])
    assert contrastive_loss(logits, chance) < 1e-3 < contrastive_loss(logits, own)


def test_texts_are_true_of_their_own_scenes() -> None:
    random = np.random.default_rng(0)
    scenes = [Scene.make(seed).objects for seed in range(12)]
    texts = [expression(scene, random, ("attribute", "relation")) for scene in scenes]
    texts += [caption(scene, random) for scene in scenes]
    table = truths(texts, scenes)
    assert table[np.arange(24) % 12, np.arange(24)].all()
    slow = [[text.is_true_of(scene) for text in texts] for scene in scenes]
    assert (table == np.array(slow)).all()


def test_dense_targets_name_the_object_of_each_patch() -> None:
    scene = Scene.make(3)
    attributes, sides, weights = dense_targets(scene, 14)
    owners = scene.patch_labels(14).reshape(-1)
    for patch, owner in enumerate(owners):
        if owner == BACKGROUND:
            assert (attributes[patch] == -1).all()
            assert weights[patch] == 0
            continue
        one = scene.objects[owner]
        named = [
            ATTRIBUTES[name][code] for name, code in zip(ATTRIBUTES, attributes[patch], strict=True)
        ]
        assert named == [one.attribute(name) for name in ATTRIBUTES]
        middle = (patch % 24 * 14 + 7, patch // 24 * 14 + 7)
        assert 50 * sides[patch][2] == pytest.approx(one.box[2] - middle[0], abs=1e-3)
        assert 50 * sides[patch][1] == pytest.approx(middle[1] - one.box[1], abs=1e-3)
    assert float(weights.sum()) == pytest.approx(len(set(owners[owners >= 0])))


def test_schedule_is_consistent() -> None:
    assert len({stage.name for stage in SCHEDULE}) == len(SCHEDULE)
    models = [stage.model for stage in SCHEDULE]
    assert models == sorted(models)
    assert SCHEDULE[-1].canvas == 24
    assert 4.5 * 60 <= sum(stage.minutes for stage in SCHEDULE) <= 5.5 * 60
    for stage in SCHEDULE:
        assert stage.scenes(14).side == 14 * stage.canvas
        assert stage.batch % stage.reuse == 0
        assert stage.batch <= 256
        assert (stage.questions > 0) == (stage.model == "llava")
    assert stage_number(SCHEDULE, SCHEDULE[2].name) == 2
    assert [stage.name for stage in gpu_schedule()] == [stage.name for stage in SCHEDULE]


def test_learning_rate_rises_shortly_and_falls_to_its_share() -> None:
    stage = replace(SCHEDULE[0], rate=1.0, fall=0.1, steps=1000)
    rates = [learning_rate(stage, Position(step=step)) for step in (0, 49, 500, 1000)]
    assert rates[0] < 0.05
    assert rates[1] > 0.97
    assert rates[2] == pytest.approx(0.55)
    assert rates[3] == pytest.approx(0.1)


def test_evaluation_through_transformers_gives_every_figure(trained: Trainer) -> None:
    figures = Evaluation(trained.exporter.written, samples=8).figures()
    assert {"answers", "answers.object", "rank.similarity", "rank.value"} <= figures.keys()
    assert all(0 <= value <= 1 for value in figures.values())


def test_two_processes_take_steps_by_their_mean_gradient(language: Path, tmp_path: Path) -> None:
    stage = replace(STAGES[0], steps=2)
    together = trainer_in(tmp_path / "together", language, (stage,))
    together.options = replace(together.options, processes=2)
    together.models.options = together.options
    together.run()

    alone = trainer_in(tmp_path / "alone", language, (stage,)).models
    alone.options = together.options
    optimiser = alone.optimisers["clip"]
    for step in range(2):
        parts = [alone.gradient(stage, alone.maker(stage, share).clip(step)) for share in (0, 1)]
        mean = (parts[0][1] + parts[1][1]) / 2
        optimiser.step(mean, learning_rate(stage, Position(step=step)))
    for one, other in zip(
        together.models.optimisers["clip"].masters, optimiser.masters, strict=True
    ):
        assert torch.equal(one, other)


def test_training_may_start_from_an_exported_model(trained: Trainer, tmp_path: Path) -> None:
    exported = trained.exporter.folder
    options = replace(trained.options, output=tmp_path, tokenizers=None, start=exported)
    again = Trainer(options)
    assert again.position.whitened
    again.export()
    for folder in ("", "clip"):
        one, other = (
            load_file(at / folder / "model.safetensors") for at in (exported, tmp_path / "model")
        )
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)
    masters = again.models.optimisers["llava"].masters
    working = list(again.models.llava.parameters())
    assert all(a.to(b.dtype).equal(b) for a, b in zip(masters, working, strict=True))
    other_sizes = replace(options, output=tmp_path / "wide", geometry=TRAINED)
    with pytest.raises(WeightsError, match="of shape"):
        Trainer(other_sizes)


def test_batches_of_a_step_are_always_the_same(language: Path, tmp_path: Path) -> None:
    maker = trainer_in(tmp_path, language).models.maker(STAGES[0])
    again = trainer_in(tmp_path, language).models.maker(STAGES[0])
    for step in (3, 0):
        one, other = maker.clip(step), again.clip(step)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.pictures.patches, other.pictures.patches)
        assert torch.equal(one.pictures.places, other.pictures.places)


def test_workers_make_the_same_batches_in_the_same_order(language: Path, tmp_path: Path) -> None:
    for stage in STAGES:
        maker = trainer_in(tmp_path, language).models.maker(stage)
        for step, batch in zip(range(3, 8), feed(maker, 3, workers=2), strict=False):
            expected = maker(step)
            assert batch.pictures.patches.equal(expected.pictures.patches)
            assert batch.pictures.places.equal(expected.pictures.places)


def test_batches_come_again_among_new_ones(language: Path, tmp_path: Path) -> None:
    maker = trainer_in(tmp_path, language).models.maker(STAGES[0])
    made = [maker(step).pictures.patches for step in range(4)]
    fed = [one.pictures.patches for _, one in zip(range(7), feed(maker, 0, 1, 2), strict=False)]
    order = [next(step for step, one in enumerate(made) if one.equal(that)) for that in fed]
    assert order[:1] + order[1::2] == [0, 1, 2, 3]
    assert all(again < new for again, new in zip(order[2::2], order[1::2], strict=True))


def test_the_clip_of_every_stage_is_kept(trained: Trainer) -> None:
    kept = CLIPModel.from_pretrained(trained.options.output / "stages" / "crops" / "clip")
    final = CLIPModel.from_pretrained(trained.exporter.written.clip)
    assert kept.visual_projection.weight.equal(final.visual_projection.weight)


def test_whole_models_stay_under_twenty_megabytes(language: Path) -> None:
    tokenizers = Tokenizers.load_or_make(language)
    clip = Clip(TRAINED, len(tokenizers.clip))
    llava = Llava(TRAINED, len(tokenizers.llama))
    count = sum(
        weight.numel() for module in (clip, clip.vision, llava) for weight in module.parameters()
    )
    assert 2 * count < 19.5e6
    assert TRAINED.llm_width // TRAINED.llm_heads % 32 == 0
