"""The offline classes: chunked prefill, prefix caching, LoRA, AsyncLLM, other checkpoints."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.e2e.adapter import write_adapter
from tests.e2e.reference import Reference
from tests.e2e.runners import V1, V2, on_v1_alone
from tests.e2e.workplace import PROMPT, QUESTION, Workplace, job
from vllm_litelvlm.demo.checkpoint import Checkpoint


@pytest.mark.parametrize(
    ("runner", "positions"),
    [(V1, "compact"), (V1, "original"), (V2, "original")],
    ids=str,
    indirect=["runner"],
    scope="session",
)
def test_chunked_prefill_prefix_caching_and_lora_work_with_pruning(
    workplace: Workplace,
    checkpoint: Checkpoint,
    photographs: Sequence[Image.Image],
    tmp_path: Path,
    positions: str,
) -> None:
    adapter = write_adapter(tmp_path / "adapter", checkpoint.llava)
    budgets = [150, 64, 192, 100]
    batch = [job(image, budget) for image, budget in zip(workplace.images, budgets, strict=True)]
    long_prompt = PROMPT.replace(QUESTION, QUESTION + " Tell me all about it." * 12)
    repeated = [job(workplace.images[0], 192, long_prompt)]
    answers = workplace.run(
        [batch, repeated, repeated, [{**batch[0], "lora": str(adapter)}], [batch[0]]],
        engine={
            "max_num_batched_tokens": 200,
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "enable_lora": True,
            "max_lora_rank": 8,
        },
        options={"max_budget": 192, "positions": positions},
    )
    original = positions == "original"
    reference = Reference(checkpoint.llava, checkpoint.clip)
    for answer, photograph, budget in zip(answers[0], photographs, budgets, strict=True):
        kept = reference.choose(photograph, [QUESTION], budget).kept
        expected = reference.generate(
            PROMPT, [photograph], [kept], 8, add_special_tokens=True, original=original
        )
        assert answer["token_ids"] == expected
    # Four prompts of 110 to 240 tokens in steps of 200: some image was cut by a chunk.
    assert sum(answer["prompt_tokens"] for answer in answers[0]) > 3 * 200
    assert answers[1][0]["cached_tokens"] == 0
    assert answers[2][0]["cached_tokens"] >= 128
    assert answers[2][0]["token_ids"] == answers[1][0]["token_ids"]
    assert answers[3][0]["token_ids"] != answers[4][0]["token_ids"]
    assert answers[4][0]["token_ids"] == answers[0][0]["token_ids"]


@on_v1_alone
def test_bad_option_raises_from_the_offline_class_and_it_goes_on(workplace: Workplace) -> None:
    image = workplace.images[0]
    refused, without, wrong, alone, with_right, served = workplace.run(
        [
            # The first of them was processed, and never reached the engine.
            [job(image, 64), job(image, 577)],
            [{"prompt": "Hi", "images": []}],
            [{"prompt": "Hi", "images": [], "options": {"budget": -5}}],
            [job(image, 64)],
            [{"prompt": "Hi", "images": [], "options": {"budget": 64.0, "texts": None}}],
            [job(image, 64)],
        ]
    )
    assert refused["error"] == wrong["error"] == "VLLMValidationError"
    assert "at most 576" in refused["message"]
    assert "'budget' is -5" in wrong["message"]
    assert with_right[0]["token_ids"] == without[0]["token_ids"]
    assert served[0]["token_ids"] == alone[0]["token_ids"]


@on_v1_alone
def test_async_engine_serves_a_checkpoint_saved_by_transformers_5(
    workplace: Workplace, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    both = [
        job(image, 64, options={"budget": 64, "positions": positions})
        for image in workplace.images
        for positions in ("compact", "original")
    ]
    placing = {"positions": "original"}
    published = workplace.run([both], options=placing)
    resaved = _without_vision_model_level(checkpoint.llava, tmp_path / "resaved")
    answers = workplace.run(
        [both], asynchronous=True, engine={"model": str(resaved)}, options=placing
    )
    for one, other in zip(answers[0], published[0], strict=True):  # batched otherwise
        assert one == {**other, "logprobs": pytest.approx(other["logprobs"], abs=1e-4)}
    for compact, original in zip(answers[0][::2], answers[0][1::2], strict=True):
        assert compact["logprobs"] != original["logprobs"]


def _without_vision_model_level(llava: Path, folder: Path) -> Path:
    """The same checkpoint under the tensor names that transformers 5 writes."""
    folder.mkdir()
    for file in llava.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(llava / "model.safetensors")
    renamed = {
        name.replace("vision_tower.vision_model.", "vision_tower."): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
