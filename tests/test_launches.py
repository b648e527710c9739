"""How often a GPU is set to work, and that nobody waits for it, on tensors without numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.host.fake_gpu import HostWaitsError, counted, fake_gpu
from benchmarks.host.launches import (
    BUDGETS,
    IMAGES,
    Count,
    Form,
    forms,
    markdown,
    measure,
    names,
)
from vllm_litelvlm.pruning.base import Signals, to_device
from vllm_litelvlm.pruning.order import Layer
from vllm_litelvlm.pruning.registry import build_pruner, method_names

pytest.importorskip("triton")

#: At most so many for a batch whose images ask for the same: guidance and selection.
MOST = 40


@pytest.fixture(scope="module")
def counts() -> list[Count]:
    return measure()


def test_every_method_and_layer_is_counted(counts: list[Count]) -> None:
    assert {count.form.method for count in counts} == set(method_names())
    layered = {count.form.method for count in counts if count.form.layer is Layer.FOCUS}
    assert layered == {name for name in method_names() if build_pruner(name, {}).layered}
    inside = {count.form.method for count in counts if count.form.window}
    assert inside == set(method_names()) - {"tome"}
    assert {(count.images, count.budget) for count in counts} == {
        (images, budget) for images in IMAGES for budget in BUDGETS
    }


def test_no_method_launches_more_than_it_may(counts: list[Count]) -> None:
    assert not [count for count in counts if count.together > MOST]


def test_launches_do_not_grow_with_the_budget(counts: list[Count]) -> None:
    found = {(c.form, c.images, c.budget): c.together for c in counts}
    for form in forms():
        for images in IMAGES:
            assert len({found[form, images, budget] for budget in BUDGETS}) == 1, form.name


@pytest.mark.parametrize("form", [form for form in forms() if not form.window], ids=str)
@pytest.mark.parametrize("texts", [[2, 2], [1, 3, 2]], ids=str)
def test_several_texts_make_nobody_wait_and_launch_few_more(form: Form, texts: list[int]) -> None:
    guidance, selection = names(form, texts, 64)
    assert len(guidance) + len(selection) <= MOST


@pytest.mark.parametrize("method", ["litelvlm", "fovea", "cdpruner"])
def test_images_without_a_text_make_nobody_wait(method: str) -> None:
    for texts in ([0, 0], [1, 0]):
        guidance, selection = names(Form(method), texts, 64)
        assert len(guidance) + len(selection) <= MOST


@pytest.mark.parametrize(
    "waits",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor.to("cpu"),
        lambda tensor: tensor.nonzero(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: tensor.masked_select(tensor > 0),
        lambda tensor: tensor[[1, 0]],
        lambda tensor: tensor.unique(),
        lambda tensor: bool(tensor.any()),
        lambda tensor: tensor.repeat_interleave(tensor[0].long(), dim=1),
    ],
)
def test_code_that_waits_for_the_gpu_is_refused(waits: Callable[[Tensor], object]) -> None:
    with fake_gpu():
        tensor = torch.empty(2, 3, device="cuda:0")
        with pytest.raises(HostWaitsError), counted():
            waits(tensor)


def test_what_computes_is_counted_and_views_are_not() -> None:
    with fake_gpu():
        tensor = torch.empty(2, 3, 4, device="cuda:0")
        with counted() as launches:
            view = tensor[:, 1:, None].transpose(1, 2).expand(-1, 5, -1, -1)
            torch.empty_like(view)
            assert launches.names == []
            index = to_device([1, 0], tensor.device)
            assert len(launches.names) == 1  # the copy
            assert view[index].shape == view.shape
            (tensor @ tensor.transpose(1, 2)).softmax(dim=-1).contiguous()
        assert launches.names == ["_to_copy", "index", "bmm", "_softmax"]


def test_indexing_without_numbers_has_the_shapes_of_real_indexing() -> None:
    real, places = torch.empty(4, 5, 6), torch.tensor([2, 0])
    keys = [
        0,
        (slice(None), 1),
        (slice(1, None), None, slice(None, None, 2)),
        (slice(None), places),
    ]
    keys += [places, (places, slice(2))]
    expected = [real[key].shape for key in keys]
    with fake_gpu():
        fake, on_gpu = torch.empty(4, 5, 6, device="cuda:0"), torch.empty(2, device="cuda:0").long()
        for key, shape in zip(keys, expected, strict=True):
            parts = key if isinstance(key, tuple) else (key,)
            with counted():
                found = fake[tuple(on_gpu if isinstance(part, Tensor) else part for part in parts)]
            assert found.shape == shape


def test_table_has_a_row_a_form(counts: list[Count]) -> None:
    lines = markdown(counts).splitlines()
    assert len(lines) == 2 + len(forms())
    fovea = next(line for line in lines if line.startswith("| fovea, focus |"))
    one = [c for c in counts if c.form == Form("fovea", Layer.FOCUS)]
    assert fovea.count("|") == 2 + len(one)
    assert f"{one[0].guidance} + {one[0].selection}" in fovea


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", method_names())
def test_selection_on_a_gpu_does_not_wait_for_it(method: str) -> None:
    from benchmarks.selection_inputs import GEOMETRIES, Inputs, Size

    pruner, size = build_pruner(method, {}), Size(576, 2, 576 if method == "keep-all" else 64)
    inputs = Inputs(GEOMETRIES["tiny"], torch.float16, torch.device("cuda"), seed=0)
    signals: Signals = inputs.signals(pruner.needs, size)
    pruner.select(signals, size.budget)  # what is compiled or made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        selection = pruner.select(signals, size.budget)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert selection.indices.shape == (2, size.budget)
