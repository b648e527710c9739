"""Where guidance's weights come from: the LLaVA checkpoint first, then a CLIP checkpoint.

A SigLIP is read as a CLIP is.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel

from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.vision.scorer import Named, Scorer

logger = logging.getLogger(__name__)


class TowerTap:
    """Notes tensors of the vision tower while weights of a LLaVA stream past.

    Args:
        wanted: their names in a CLIP checkpoint.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self._modules = {name.rpartition(".")[0] for name in wanted}
        #: Every tensor of a wanted tensor's module, copied to the CPU, by the CLIP's names: of a
        #: quantised module there are more than weight and bias.
        self.found: dict[str, Tensor] = {}
        #: Whether anything of the vision tower came by.
        self.saw_tower = False

    def __call__(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass the weights on, under the names that vLLM knows.

        transformers 5 saves the tower without the ``vision_model`` level; it is put back.
        """
        for name, tensor in weights:
            prefix, tower, rest = name.partition("vision_tower.")
            if tower and prefix in ("", "model."):
                self.saw_tower = True
                rest = rest if rest.startswith("vision_model.") else f"vision_model.{rest}"
                if rest.rpartition(".")[0] in self._modules:
                    self.found[rest] = tensor.detach().to("cpu", copy=True)
                name = f"{prefix}{tower}{rest}"
            yield name, tensor


class ClipWeights:
    """The tensors of scorer and text tower, by the names of a CLIP checkpoint.

    Args:
        scorer: its feature layer may be left to somebody who has that layer.
        text_tower: filled from the CLIP alone.
        feature_layer: whether the scorer's tensors of the feature layer are among them.
    """

    def __init__(self, scorer: Scorer[Any], text_tower: Named, feature_layer: bool = True) -> None:
        self._kind = scorer.kind
        self._parameters = {
            name: parameter
            for module in (scorer, text_tower)
            for own, parameter in module.named_parameters()
            if feature_layer or not own.startswith("feature_")
            for name in (module.clip_names()[own],)
        }
        self._filled: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's."""
        return frozenset(self._parameters)

    @property
    def complete(self) -> bool:
        """Whether every tensor was given."""
        return self._filled == self.names

    def load(self, found: Mapping[str, Tensor], clip: str, whole: bool = True) -> None:
        """Take ``found``, and from the CLIP what nobody gave.

        Args:
            found: name to tensor, of the model's checkpoint; any floating-point dtype.
            clip: hub name or folder, read only where something is missing.
            whole: whether what is not found is the CLIP's; else it stays what it was, if anything.

        Raises WeightsError naming the first tensor that is missing or has another shape, and where
        it was looked for; nothing has changed then.
        """
        given = {name: tensor for name, tensor in found.items() if name in self._parameters}
        missing = self.names - given.keys() - (frozenset() if whole else self._filled)
        model_place, clip_place = "the model's checkpoint", f"the {self._kind} at {clip!r}"
        try:
            theirs = _read_clip_tensors(clip) if missing else {}
        except (OSError, ValueError, SafetensorError) as error:
            raise WeightsError(
                f"The weights of {clip_place} cannot be read ({error}). Set the server option "
                f"'clip_model' to a complete {self._kind} checkpoint's hub name or folder."
            ) from error
        if lost := missing - theirs.keys():
            raise WeightsError(
                f"Tensor {min(lost)!r} is neither in {model_place} nor in {clip_place}. Set the "
                f"server option 'clip_model' to a complete {self._kind} checkpoint."
            )
        taken = {name: theirs[name] for name in missing}
        for where, tensors in ((model_place, given), (clip_place, taken)):
            for name, tensor in tensors.items():
                self._check_shape(name, tensor, where)
        for name, tensor in (given | taken).items():
            self._parameters[name].data.copy_(tensor)
        self._filled |= given.keys() | missing
        if missing:
            logger.info(
                "litelvlm guidance: %d vision tensors from the model's checkpoint, the rest from "
                "%s",
                len(given),
                clip,
            )

    def _check_shape(self, name: str, tensor: Tensor, where: str) -> None:
        expected = self._parameters[name].shape
        if tensor.shape != expected:
            raise WeightsError(
                f"Tensor {name!r} of {where} has shape {list(tensor.shape)}; expected "
                f"{list(expected)}."
            )


def _read_clip_tensors(clip: str) -> dict[str, Tensor]:
    """Every tensor that the CLIP checkpoint really holds, on the CPU; misfits only as a shape."""
    with torch.device("cpu"):
        model, report = AutoModel.from_pretrained(
            clip, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in report["missing_keys"]
    }
    for name, shape, *_ in report["mismatched_keys"]:
        tensors[name] = torch.empty(tuple(shape), device="meta")
    return tensors
