"""Where SAM computes."""

import pytest
import torch
from transformers import SamConfig, SamModel, SamVisionConfig

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.grounding import device
from vllm_litelvlm.grounding.device import check_device, choose_device, needed_bytes

GIB = 2**30
HUGE = SamConfig(
    vision_config=SamVisionConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, mlp_dim=5120
    )
)


def test_device_that_this_machine_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(OptionsError, match=r"'sam_device' is 'cuda:7'; allowed .*: cpu"):
        check_device("cuda:7")
    with pytest.raises(OptionsError, match="'sam_device' is 'gpu'"):
        check_device("gpu")
    check_device("cpu")
    check_device(None)


def test_device_that_is_asked_for_is_taken() -> None:
    assert choose_device("cpu", HUGE, GIB) == torch.device("cpu")
    assert choose_device("cuda:1", HUGE, GIB) == torch.device("cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_cpu_is_taken_where_there_is_no_gpu() -> None:
    assert choose_device(None, HUGE, GIB) == torch.device("cpu")


def test_gpu_is_taken_where_it_has_room(caplog: pytest.LogCaptureFixture) -> None:
    assert device._with_room(8 * GIB, 7 * GIB) == torch.device("cuda:0")
    assert not caplog.records
    assert device._with_room(6 * GIB, 7 * GIB) == torch.device("cpu")
    assert "needs about 7.0 GiB, and the GPU has 6.0 left" in caplog.text


def test_gpu_is_shared_by_the_servers_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    free = needed_bytes(HUGE) + 2 * GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free, 80 * GIB))
    assert choose_device(None, HUGE, GIB) == torch.device("cuda:0")
    assert choose_device(None, HUGE, GIB, processes=2) == torch.device("cpu")


def test_gpu_that_cannot_be_used_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(number: int) -> None:
        raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refused)
    assert choose_device(None, HUGE, GIB) == torch.device("cpu")
    assert "cannot be used (CUDA-capable device(s)" in caplog.text


def test_need_of_the_published_sam_is_more_than_its_weights() -> None:
    with torch.device("meta"):
        weights = 4 * sum(one.numel() for one in SamModel(HUGE).parameters())
    assert 2.3 * GIB < weights < 2.5 * GIB
    # Scores of one global layer are 16 x 4096 x 4096 numbers, 1 GiB.
    assert weights + 7 * GIB == needed_bytes(HUGE)
