"""Training to answer with masks, beside transformers and the parts that serve it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.demo.test_training import STAGES, TINY
from tests.e2e.masks_reference import MasksReference
from vllm_litelvlm.demo.grounding import GroundingGeometry
from vllm_litelvlm.demo.training.command import main
from vllm_litelvlm.demo.training.export import exported_in
from vllm_litelvlm.demo.training.language import Tokenizers
from vllm_litelvlm.demo.training.mask_batches import MaskBatchMaker, masks_of
from vllm_litelvlm.demo.training.mask_losses import mask_losses
from vllm_litelvlm.demo.training.mask_validation import meant
from vllm_litelvlm.demo.training.pointing import box_prompts
from vllm_litelvlm.demo.training.schedule import Stage
from vllm_litelvlm.demo.training.settings import Pruning, TrainingOptions
from vllm_litelvlm.demo.training.trainer import Trainer
from vllm_litelvlm.errors import OptionsError, WeightsError
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset, scene_seed
from vllm_litelvlm.evaluation.scenes.scene import Scene
from vllm_litelvlm.grounding.conversation import asking_ids, rounds
from vllm_litelvlm.grounding.head import read_projection
from vllm_litelvlm.grounding.layout import SEG_TOKEN, seg_token_index
from vllm_litelvlm.grounding.sam import Sam

TINY_MASKS = GroundingGeometry(
    **vars(TINY),
    sam_image_size=336,
    sam_patch_size=28,
    sam_width=32,
    sam_layers=2,
    sam_window=4,
    sam_prompt_width=64,
    sam_decoder_mlp=32,
)
MASK_STAGES = (
    Stage("sam", "sam", 24, (3, 8), 2, 1, 3e-3, steps=3),
    Stage("pointing", "pointing", 24, (3, 8), 2, 1, 3e-3, questions=2, groups=1, steps=2),
)
EXPRESSIONS = ["the red star", "blue ring on the left", "the largest of the two moons"]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that answers in words alone."""
    output = tmp_path_factory.mktemp("words")
    Tokenizers.make(samples=200).save(output / "tokenizers")
    stages = tuple(replace(stage, steps=1) for stage in STAGES)
    options = TrainingOptions(output, TINY, stages, dtype=torch.float32, thoroughness=0.05)
    return Trainer(options).run().llava


def trainer_in(
    output: Path,
    start: Path,
    stages: tuple[Stage, ...] = MASK_STAGES,
    pruning: Pruning | None = None,
) -> Trainer:
    options = TrainingOptions(
        output,
        TINY_MASKS,
        stages,
        dtype=torch.float32,
        start=start,
        report_every=0.0,
        thoroughness=0.05,
        pruning=pruning,
    )
    return Trainer(options)


@pytest.fixture(scope="module")
def trained(without: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """After a few steps, exported, and then with the weights that were exported."""
    output = tmp_path_factory.mktemp("masks")
    written = trainer_in(output, without).run()
    return trainer_in(tmp_path_factory.mktemp("again"), written.llava)


def test_every_stage_is_trained_and_told(trained: Trainer) -> None:
    start = trained.options.start
    assert start is not None
    lines = [json.loads(line) for line in (start.parent / "log.jsonl").read_text().splitlines()]
    told = {line["stage"]: line["losses"].keys() for line in lines if "losses" in line}
    assert told == {
        "sam": {"loss", "cover", "dice", "score"},
        "pointing": {"loss", "words", "rounds", "prompts"},
    }
    judged = {line["stage"]: line["validation"] for line in lines if "validation" in line}
    assert all("masks.ciou" in figures for figures in judged.values())
    assert "answers" in judged["pointing"]


def test_stages_of_several_runs_build_on_each_other(without: Path, tmp_path: Path) -> None:
    whole = trainer_in(tmp_path / "whole", without)
    whole.run()
    for stage in MASK_STAGES:
        trainer_in(tmp_path / "parts", without).run(only=stage.name)
    parts = trainer_in(tmp_path / "parts", without)
    for name, optimiser in whole.models.optimisers.items():
        pairs = zip(optimiser.masters, parts.models.optimisers[name].masters, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), name


def test_what_is_learned_are_the_servers_prompts(trained: Trainer) -> None:
    folder = trained.options.start
    assert folder is not None
    processor = AutoProcessor.from_pretrained(folder)
    config = LlavaForConditionalGeneration.config_class.from_pretrained(folder)
    tokenizers = trained.models.tokenizers
    for count in (1, 2, 3):
        asked = EXPRESSIONS[:count]
        text = processor.apply_chat_template(rounds({"type": "image"}, asked))
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        served = asking_ids(ids, asked, config)
        learned = tokenizers.pointing(asked)
        behind = served[served.index(config.image_token_index) + 1 :]
        assert learned.tokens[: learned.points[-1]] == behind
        seg = seg_token_index(config)
        assert [learned.tokens[place] for place in learned.points] == [seg] * count
        said = processor.tokenizer.decode([learned.tokens[place] for place in learned.answers])
        once = f"Sure, it is {SEG_TOKEN}."
        assert said.removesuffix(processor.tokenizer.eos_token).split() == once.split() * count


def test_batches_point_at_what_they_mean(trained: Trainer) -> None:
    stage = MASK_STAGES[-1]
    maker = MaskBatchMaker(trained.models.maker(stage))
    batch, again = maker.masks(3), maker.masks(3)
    assert torch.equal(batch.rounds[-1].tokens, again.rounds[-1].tokens)
    tokenizer = trained.models.tokenizers.llama
    seg = tokenizer.convert_tokens_to_ids(SEG_TOKEN)
    scenes = [about[0].scene for about in maker.maker.samples(3)]
    for image, scene in enumerate(scenes):
        pointed = 0
        for group in batch.rounds:
            flat = group.tokens[image].flatten()
            assert flat[group.pointing[image] + 1].eq(seg).all()
            pointed += len(group.pointing[image])
        assert pointed == batch.segments.targets.shape[1] == 12
        for target, box, mask in zip(
            batch.segments.targets[image],
            batch.segments.boxes[image],
            masks_of(batch.segments)[image],
            strict=True,
        ):
            meant_object = scene.objects[int(target)]
            assert (box * 336).tolist() == pytest.approx(meant_object.box, abs=1e-3)
            assert mask.numpy().tolist() == scene.mask(meant_object.index).tolist()
    for group in batch.rounds:
        followed = group.tokens.flatten().roll(-1)[group.learned]
        ends = group.targets == tokenizer.eos_token_id
        assert int(ends.sum()) == len(scenes) * group.tokens.shape[1]
        assert torch.equal(followed[~ends], group.targets[~ends])


@torch.no_grad()
def test_prompts_and_masks_are_those_of_the_exported_model(trained: Trainer) -> None:
    folder = trained.options.start
    assert folder is not None
    models = trained.models
    assert models.pointer is not None
    maker = MaskBatchMaker(models.maker(MASK_STAGES[-1]))
    batch = maker.masks(0)
    [(prompts, _)] = meant(models.clip, models.llava, models.pointer, [batch])
    logits, scores = models.pointer.masks(
        models.pointer.features(batch.segments.pixels[:1]), prompts[:1]
    )

    # The first conversation of two rounds about the first picture, by transformers.
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    image = maker.maker.samples(0)[0][0].scene.image
    seg = seg_token_index(llava.config)
    group = batch.rounds[1]
    said = group.tokens[0, 0, : int(group.learned[group.learned < group.tokens.shape[2]][-1]) + 1]
    places = torch.full((576,), llava.config.image_token_index)
    ids = torch.cat([batch.words.prefix, places, said])[None]
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    states = llava.model(input_ids=ids, pixel_values=pixels).last_hidden_state[0]
    points = (ids[0] == seg).nonzero()[:, 0]
    projection = read_projection(str(folder)).float()
    expected = projection(states[points - 1])
    torch.testing.assert_close(prompts[0, 3:5], expected, rtol=0, atol=1e-3)

    sam = Sam.load(str(folder))
    served, guessed = sam.decode(sam.encode(image), prompts[0])
    torch.testing.assert_close(logits[0], served, rtol=0, atol=1e-3)
    torch.testing.assert_close(scores[0], guessed, rtol=0, atol=1e-3)


@torch.no_grad()
def test_pruned_conversations_are_those_of_transformers_given_the_same_tokens(
    trained: Trainer, tmp_path: Path
) -> None:
    folder = trained.options.start
    assert folder is not None
    models = trainer_in(tmp_path, folder, pruning=Pruning("litelvlm", 64)).models
    assert models.pointer is not None
    maker = MaskBatchMaker(models.maker(MASK_STAGES[-1]))
    batch = maker.masks(0)
    [(prompts, _)] = meant(models.clip, models.llava, models.pointer, [batch], models.keeper)

    reference = MasksReference(folder, exported_in(folder).clip)
    image = maker.maker.samples(0)[0][0].scene.image
    for group, place, first in ((batch.rounds[0], 1, 1), (batch.rounds[1], 0, 3)):
        texts = [
            models.tokenizers.clip.decode(ids[: end + 1], skip_special_tokens=True)
            for ids, end in zip(group.guides[0, place], group.ends[0, place], strict=True)
        ]
        row = group.learned // group.tokens.shape[2]
        said = group.learned[row == place] % group.tokens.shape[2]
        tokens = group.tokens[0, place, : int(said[-1]) + 1].tolist()
        image_token = reference.llava.config.image_token_index
        ids = [*batch.words.prefix.tolist(), image_token, *tokens]
        kept = reference.choose(image, texts, 64).kept
        expected = reference.pointed([image], ids, [kept], True)
        found = prompts[0, first : first + len(texts)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_language_model_is_trained_on_what_is_kept(trained: Trainer, tmp_path: Path) -> None:
    assert trained.options.start is not None
    output, unpruned = tmp_path / "pruned", tmp_path / "whole"
    for folder, pruning in ((output, Pruning("fovea", 32)), (unpruned, None)):
        trainer_in(folder, trained.options.start, pruning=pruning).run(only="pointing")
    losses = [
        json.loads((folder / "log.jsonl").read_text().splitlines()[0])["losses"]
        for folder in (output, unpruned)
    ]
    assert losses[0]["words"] == pytest.approx(losses[1]["words"], abs=1e-5)
    assert losses[0]["prompts"] != pytest.approx(losses[1]["prompts"], abs=1e-5)
    with pytest.raises(OptionsError, match=r"with other settings .*fovea"):
        trainer_in(output, trained.options.start)


@pytest.mark.parametrize(
    ("method", "budget", "sentence"),
    [
        ("tome", 64, "which goes by tower .* Trained models do not have that"),
        ("fovea", 0, "'budget' is 0"),
        ("foveal", 64, "'method' is \"foveal\""),
    ],
)
def test_what_there_is_not_to_prune_by_is_refused(
    trained: Trainer, tmp_path: Path, method: str, budget: int, sentence: str
) -> None:
    assert trained.options.start is not None
    with pytest.raises(OptionsError, match=sentence):
        trainer_in(tmp_path, trained.options.start, pruning=Pruning(method, budget))


def test_pruning_is_of_conversations_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path), "--method", "fovea"]) == 1
    assert "--method fovea is for conversations; add --masks." in capsys.readouterr().err


def test_a_perfect_mask_costs_nothing_and_none_a_lot() -> None:
    scene = Scene.make(scene_seed("val", 0))
    masks = torch.from_numpy(scene.mask(0))[None, None]
    right = mask_losses(40.0 * masks.float() - 20, torch.ones(1, 1), masks)
    none = mask_losses(torch.full((1, 1, 96, 96), -20.0), torch.zeros(1, 1), masks)
    assert right["dice"] < 0.03
    assert none["dice"] > 0.99
    assert right["cover"] < 0.2 < none["cover"]
    assert none["score"] == 0


def test_boxes_are_told_apart_by_their_prompts() -> None:
    one = torch.tensor([0.1, 0.2, 0.3, 0.5])
    prompts = box_prompts(torch.stack([one, one + 0.01, one + 0.3]), 64)
    assert prompts.shape == (3, 64)
    near, far = (prompts[1:] - prompts[0]).norm(dim=1)
    assert 0 < near < far


def test_a_blurred_box_is_told_by_the_mean_of_the_boxes_that_it_may_be() -> None:
    box, blur = torch.tensor([0.1, 0.2, 0.3, 0.5]), 0.03
    torch.manual_seed(0)
    drawn = box + blur * torch.randn(20000, 4)
    mean = box_prompts(drawn, 64).mean(dim=0)
    torch.testing.assert_close(box_prompts(box, 64, blur), mean, rtol=0, atol=0.02)
    assert (box_prompts(box, 64) - mean).abs().max() > 0.2


def test_model_of_another_kind_is_refused_to_begin_with(without: Path, tmp_path: Path) -> None:
    (without / "sam").mkdir()
    try:
        with pytest.raises(WeightsError, match="embed_tokens"):
            trainer_in(tmp_path, without)
    finally:
        (without / "sam").rmdir()


def test_validation_has_scenes_and_wordings_of_its_own() -> None:
    assert next(iter(SceneDataset("val", 1))).scene.seed == scene_seed("val", 0)
