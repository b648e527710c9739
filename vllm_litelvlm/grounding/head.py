"""The projection from a language model's states to prompts of SAM."""

from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.grounding.layout import PROJECTION


class TextProjection(nn.ModuleList):
    """GLaMM's L-P projection (arXiv 2311.03356, section 3.1): Linear, ReLU, Linear.

    As the attribute ``text_hidden_fcs`` of a model its parameters have the names of the layout:
    ``text_hidden_fcs.0.0.weight`` and so on.

    Args:
        width: of the language model.
        prompt_width: of SAM's prompts.
    """

    def __init__(self, width: int, prompt_width: int = 256) -> None:
        super().__init__(
            [nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width))]
        )

    def forward(self, states: Tensor) -> Tensor:
        """SAM prompts, float32 [expressions, prompt width].

        Args:
            states: behind the language model's last norm, at the positions that predict [SEG],
                one before the token itself, float [expressions, width].
        """
        dtype = next(self.parameters()).dtype
        prompts: Tensor = self[0](states.to(dtype))
        return prompts.float()


def read_projection(model: str, revision: str | None = None) -> TextProjection:
    """The projection of a checkpoint, in the dtype it is stored in, on the CPU.

    Args:
        model: hub name or folder.
        revision: of a hub repository.

    Raises WeightsError naming a tensor that is missing or has another shape.
    """
    try:
        found = dict(_stored(model, revision))
    except (OSError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
        raise WeightsError(
            f"The weights of {model!r} cannot be read ({error}). Give a hub name, or a folder "
            "whose weights are safetensors."
        ) from error
    first, last = f"{PROJECTION}.0.0.weight", f"{PROJECTION}.0.2.weight"
    width = found[first].shape[-1] if first in found else 1
    prompt_width = found[last].shape[0] if last in found else 1
    with torch.device("meta"):
        projection = TextProjection(width, prompt_width)
    for own, parameter in projection.named_parameters():
        name = f"{PROJECTION}.{own}"
        if name not in found:
            raise WeightsError(
                f"Tensor {name!r} is not in the safetensors of {model!r}. Masks need the "
                f"projection {PROJECTION!r}: give a model that was trained to answer with masks."
            )
        if found[name].shape != parameter.shape:
            raise WeightsError(
                f"Tensor {name!r} of {model!r} has shape {list(found[name].shape)}; expected "
                f"{list(parameter.shape)}."
            )
    stripped = {name.removeprefix(f"{PROJECTION}."): tensor for name, tensor in found.items()}
    projection.load_state_dict(stripped, assign=True)
    return projection.eval().requires_grad_(False)


def _stored(model: str, revision: str | None) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the projection in a checkpoint's safetensors."""
    folder = Path(model)
    if not folder.is_dir():
        downloaded = snapshot_download(model, revision=revision, allow_patterns="*.safetensors")
        folder = Path(downloaded)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                if name.startswith(f"{PROJECTION}.0."):
                    yield name, tensors.get_tensor(name)
