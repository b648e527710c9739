"""Faults of the server's options and the model are sentences at start, before any process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm import EngineArgs, ModelRegistry

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import CompatibilityError, LiteLVLMError
from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.positions import ROWS

pytestmark = pytest.mark.usefixtures("installed")


def build(checkpoint: Checkpoint, options: Any = None, **more: Any) -> Any:
    """vLLM's configuration, as it is built before any engine process starts."""
    given = {"clip_model": str(checkpoint.clip)} if options is None else options
    arguments: dict[str, Any] = {
        "model": str(checkpoint.llava),
        "dtype": "float32",
        "max_model_len": 1024,
        "additional_config": {"litelvlm": given},
    }
    return EngineArgs(**{**arguments, **more}).create_engine_config()


def changed(checkpoint: Checkpoint, folder: Path, **config: Any) -> Checkpoint:
    """A copy of the checkpoint with other values in LLaVA's config.json."""
    llava = Path(shutil.copytree(checkpoint.llava, folder / "llava"))
    file = llava / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return Checkpoint(llava=llava, clip=checkpoint.clip)


def test_valid_options_reach_the_model_configuration(checkpoint: Checkpoint) -> None:
    options = {"clip_model": str(checkpoint.clip), "budget": 128, "max_texts": 3, "share": 0.25}
    found = guidance_config(build(checkpoint, options).model_config.hf_config)
    assert found.own["clip_model"] == str(checkpoint.clip)
    assert found.own["text_tokens"] == 77
    assert found.server.max_texts == 3
    assert found.server.defaults.budget == 128
    assert found.server.defaults.parameters == {"share": 0.25}


def test_a_model_may_name_its_own_clip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    named = changed(checkpoint, tmp_path, litelvlm={"clip_model": "its-clip"})
    with pytest.raises(Exception, match="No CLIP configuration at 'its-clip'"):
        build(named, {})
    beside = shutil.copytree(checkpoint.clip, named.llava / "its-clip")
    found = guidance_config(build(named, {}).model_config.hf_config)
    assert found.own["clip_model"] == str(beside)
    told = guidance_config(build(named).model_config.hf_config)
    assert told.own["clip_model"] == str(checkpoint.clip)


def test_rows_of_positions_are_asked_for_only_by_a_server_that_places_tokens(
    checkpoint: Checkpoint,
) -> None:
    def pruned_by_vllm(config: Any) -> bool:
        return bool(config.model_config.multimodal_config.is_multimodal_pruning_enabled())

    plain = build(checkpoint)
    placing = build(checkpoint, {"clip_model": str(checkpoint.clip), "positions": "original"})
    assert not plain.model_config.uses_mrope
    assert not pruned_by_vllm(plain)
    assert placing.model_config.uses_mrope
    assert placing.model_config.mrope_num_dims == ROWS
    assert pruned_by_vllm(placing)
    # The language model's own rotary embedding stays the ordinary one.
    assert "mrope_section" not in (placing.model_config.hf_text_config.rope_parameters or {})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": 0}, "'budget' is 0"),
        ({"budget": 577}, "'budget' is 577; allowed: at most 576"),
        ({"max_texts": 0}, "'max_texts' is 0"),
        ({"min_budget": 64, "max_budget": 32}, "'max_budget' is 32"),
        ({"budget": 500, "max_budget": 192}, "comes to 500 tokens; this server allows 1 to 192"),
        ({"request_options": "no"}, "'request_options' is \"no\"; allowed: true or false"),
        ({"bugdet": 64}, "'bugdet' is unknown"),
        ({"clip": "/nowhere"}, "'clip' is unknown; allowed: budget, clip_model, context"),
        ({"method": "random", "share": 0.1}, "'share' is unknown"),
        ({"positions": "own"}, '\'positions\' is "own"; allowed: "compact" or "original"'),
        ({"methods": []}, "'methods' is []; allowed: a non-empty list of method names"),
        ({"methods": ["litelvlm", "magic"]}, "'method' is \"magic\"; allowed: litelvlm, fovea"),
        ({"methods": ["fastv"]}, '"fastv", which prunes inside the language model'),
        ({"methods": ["random"]}, "'method' is \"litelvlm\"; this server allows random"),
        ({"method": "sparsevlm"}, '"sparsevlm", which prunes inside the language model'),
        (
            {"variants": {"a": {"method": "magic"}}},
            "Variant 'a': litelvlm option 'method' is \"mag",
        ),
        (
            {"variants": {"a": {"budget": 600}}},
            "Variant 'a': litelvlm option 'budget' is 600; allow",
        ),
        (
            {"max_budget": 192, "variants": {"a": {"method": "keep-all"}}},
            "Variant 'a': litelvlm option 'budget' comes to 576 tokens; this server allows",
        ),
        ("128", 'are "128"; allowed: an object'),
        ({"clip_model": "/nowhere"}, "No CLIP configuration at '/nowhere'"),
        ({"budget": 64}, "Name the CLIP checkpoint that it was taken from"),
    ],
)
def test_bad_server_option_is_an_error_at_start(
    checkpoint: Checkpoint, options: Any, sentence: str
) -> None:
    with pytest.raises(LiteLVLMError, match=r"litelvlm|CLIP") as raised:
        build(checkpoint, options)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_vllm_serve_ends_with_the_sentence_alone(checkpoint: Checkpoint) -> None:
    vllm = Path(sys.executable).with_name("vllm")
    options = json.dumps({"litelvlm": {"bugdet": 64}})
    command = [vllm, "serve", checkpoint.llava, "--plugin", "litelvlm", "--additional-config"]
    ended = subprocess.run([*command, options], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    *_, last = ended.stderr.strip().splitlines()
    assert last.startswith("vllm: error: litelvlm option 'bugdet' is unknown; allowed: budget")


@pytest.mark.parametrize("seam", ["--model-impl", "another plugin"])
def test_class_that_would_not_prune_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, seam: str
) -> None:
    more = {}
    if seam == "--model-impl":
        more["model_impl"] = "transformers"
    else:
        architecture = "LlavaForConditionalGeneration"
        models = dict(ModelRegistry.models)
        monkeypatch.setattr(ModelRegistry, "models", models)
        stock = "vllm.model_executor.models.llava:LlavaForConditionalGeneration"
        ModelRegistry.register_model(architecture, stock)
    with pytest.raises(CompatibilityError, match="another class"):
        build(checkpoint, **more)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "metaclip_2_vision_model",
            "litelvlm needs a CLIP or SigLIP vision tower; this model's is",
        ),
        ("siglip_vision_model", "vision_feature_select_strategy 'full' with a SigLIP vision tower"),
    ],
)
def test_vision_tower_of_another_kind_and_the_first_patch_for_a_cls_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, kind: str, sentence: str
) -> None:
    tower = {
        "model_type": kind,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": 336,
        "patch_size": 14,
    }
    with pytest.raises(Exception, match=sentence):
        build(changed(checkpoint, tmp_path, vision_config=tower))


@pytest.mark.parametrize(
    "fault", [{"vision_feature_layer": -1}, {"vision_feature_select_strategy": "full"}]
)
def test_other_features_than_those_of_llava_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, fault: dict[str, Any]
) -> None:
    with pytest.raises(Exception, match="litelvlm needs vision_feature_layer -2"):
        build(changed(checkpoint, tmp_path, **fault))


def test_lora_on_the_tower_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(Exception, match="leave --enable-tower-connector-lora out"):
        build(checkpoint, enable_lora=True, enable_tower_connector_lora=True)


def test_rust_front_end_is_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(Exception, match="VLLM_USE_RUST_FRONTEND"):
        build(checkpoint)


def test_server_options_in_the_wrong_place_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(Exception, match="--additional-config"):
        build(checkpoint, mm_processor_kwargs={"litelvlm": {"budget": 64}})


def test_shared_tensors_of_other_processes_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CompatibilityError, match="ipc_cache shares a model's tensors"):
        build(checkpoint, load_format="ipc_cache")


def test_image_that_no_step_has_room_for_is_told_with_the_option_that_helps(
    checkpoint: Checkpoint,
) -> None:
    narrow = {"max_num_batched_tokens": 256, "max_num_seqs": 4, "disable_chunked_mm_input": True}
    told = "may keep 576 tokens.*--max-num-batched-tokens is 256.*'max_budget' to 256 or less"
    with pytest.raises(CompatibilityError, match=told):
        build(checkpoint, **narrow)
    bounded = {"clip_model": str(checkpoint.clip), "max_budget": 256}
    assert build(checkpoint, bounded, **narrow).scheduler_config.max_num_batched_tokens == 256
