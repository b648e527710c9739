"""A LLaVA with a SigLIP tower at start: what is prepared, and what is refused in a sentence."""

from pathlib import Path
from typing import Any

import pytest

from tests.plugin.test_config import build, changed
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.siglip import build_siglip
from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.served import family_of

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return build_siglip(tmp_path_factory.mktemp("siglip"))


def test_siglip_and_its_text_length_reach_the_model_configuration(siglip: Checkpoint) -> None:
    config = build(siglip).model_config
    found = guidance_config(config.hf_config)
    assert found.own == {"clip_model": str(siglip.clip), "text_tokens": 64}
    traits = family_of(config).traits(config.hf_config)
    assert (traits.family, traits.tokens, traits.has_cls) == ("SigLIP-LLaVA", 196, False)


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"vision_feature_select_strategy": "default"}, {}, "strategy 'full' with a SigLIP"),
        ({"vision_feature_layer": [-1, -2]}, {}, r"one vision_feature_layer"),
        ({"vision_feature_layer": -2}, {}, "vision_feature_layer -2 is layer 2"),
        ({}, {"method": "tome"}, "SigLIP-LLaVA models do not have that. They can run: litelvlm"),
        ({}, {"budget": 197}, "'budget' is 197; allowed: at most 196"),
    ],
    ids=["default", "two layers", "another layer", "inside the tower", "budget"],
)
def test_what_cannot_be_pruned_is_refused(
    siglip: Checkpoint,
    tmp_path: Path,
    changes: dict[str, Any],
    options: dict[str, Any],
    sentence: str,
) -> None:
    model = changed(siglip, tmp_path, **changes) if changes else siglip
    with pytest.raises(Exception, match=sentence):
        build(model, {"clip_model": str(siglip.clip), **options})


def test_siglip_has_to_be_named_or_beside_the_model(
    siglip: Checkpoint, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="geometry does not tell which"):
        build(siglip, {})
    with pytest.raises(Exception, match="No SigLIP configuration at"):
        build(siglip, {"clip_model": str(checkpoint.clip)})
    with pytest.raises(Exception, match="No CLIP configuration at"):
        build(checkpoint, {"clip_model": str(siglip.clip)})
    named = changed(siglip, tmp_path, litelvlm={"clip_model": str(siglip.clip)})
    found = guidance_config(build(named, {}).model_config.hf_config)
    assert found.own["clip_model"] == str(siglip.clip)
