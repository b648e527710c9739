"""Both models with their optimisers: what a step of training is taken on."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vllm_litelvlm.demo.checkpoint import clip_config
from vllm_litelvlm.demo.grounding import GroundingGeometry, seg_tokenizer
from vllm_litelvlm.demo.training.batches import BatchMaker
from vllm_litelvlm.demo.training.clip import Clip
from vllm_litelvlm.demo.training.dense import DenseHeads
from vllm_litelvlm.demo.training.export import exported_in, read_exported
from vllm_litelvlm.demo.training.keeper import Keeper
from vllm_litelvlm.demo.training.language import Tokenizers
from vllm_litelvlm.demo.training.llava import Llava
from vllm_litelvlm.demo.training.losses import clip_losses, llava_losses
from vllm_litelvlm.demo.training.mask_batches import MaskBatchMaker
from vllm_litelvlm.demo.training.mask_losses import pointing_losses, sam_losses
from vllm_litelvlm.demo.training.optimiser import MasterAdamW, Together
from vllm_litelvlm.demo.training.pointing import Pointer
from vllm_litelvlm.demo.training.schedule import Stage
from vllm_litelvlm.demo.training.settings import TrainingOptions
from vllm_litelvlm.demo.training.state import Position, load_state, save_state
from vllm_litelvlm.demo.training.tensors import (
    AnyBatch,
    ClipBatch,
    LlavaBatch,
    Pictures,
    Segments,
    on_device,
)

#: The parts that learn in a stage, by its model.
_LEARNING = {
    "clip": ("clip",),
    "llava": ("llava",),
    "sam": ("sam",),
    "pointing": ("llava", "projection"),
}


class Models:
    """The models of the options, as they stand on disk or at their beginning."""

    def __init__(self, options: TrainingOptions) -> None:
        self.options = options
        self.device = torch.device(options.device)
        start = None if options.state_file.is_file() else options.start
        tokenizers = options.tokenizers or options.output / "tokenizers"
        if start is not None:
            Tokenizers.of(exported_in(start)).save(tokenizers)
        self.tokenizers = Tokenizers.load_or_make(tokenizers)
        geometry = options.geometry
        if isinstance(geometry, GroundingGeometry):
            seg_tokenizer(self.tokenizers.llama)
        torch.manual_seed(options.seed)
        self.clip = Clip(geometry, len(self.tokenizers.clip)).to(self.device)
        self.heads = DenseHeads(geometry.vision_width).to(self.device)
        self.llava = Llava(geometry, len(self.tokenizers.llama)).to(self.device)
        self.optimisers = {
            "clip": MasterAdamW([self.clip, self.heads], options.dtype),
            "llava": MasterAdamW([self.llava], options.dtype),
        }
        self.pointer: Pointer | None = None
        if isinstance(geometry, GroundingGeometry):
            self.pointer = Pointer(geometry).to(self.device)
            self.optimisers |= {
                "projection": MasterAdamW([self.pointer.text_hidden_fcs], options.dtype),
                "sam": MasterAdamW(self.pointer.trained, options.dtype),
            }
        self.position = Position()
        self.load()
        if start is not None:
            read_exported(exported_in(start), self.clip, self.llava, self.pointer)
            for optimiser in self.optimisers.values():
                optimiser.adopt()
            self.position.whitened = True
        #: Chooses the tokens that conversations about whole scenes see; None where they see all.
        self.keeper: Keeper | None = None
        if options.pruning is not None:
            config = clip_config(geometry, self.tokenizers.clip).vision_config
            self.keeper = Keeper.of(self.clip, config, options.pruning)

    def load(self) -> None:
        """Go to where the state on disk stands, if there is one."""
        self.position = load_state(
            self.options.state_file, self.options.identity, self.optimisers, self.device
        )

    def save(self) -> None:
        """Write the state."""
        save_state(self.options.state_file, self.position, self.options.identity, self.optimisers)

    def batches(self, stage: Stage, share: int = 0) -> Callable[[int], Any]:
        """What makes the batch of a step, or the part of one of the processes."""
        maker = self.maker(stage, share)
        return maker if stage.model in ("clip", "llava") else MaskBatchMaker(maker)

    def maker(self, stage: Stage, share: int = 0) -> BatchMaker:
        """What makes the stage's questions, or the part of one of the processes."""
        geometry = self.options.geometry
        return BatchMaker(
            stage,
            self.options.stages.index(stage),
            self.options.seed,
            geometry.patch_size,
            geometry.image_size // geometry.patch_size,
            self.tokenizers,
            share=(share, self.options.processes),
        )

    def gradient(self, stage: Stage, batch: AnyBatch) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a batch, and their gradient in one row."""
        losses = self._losses(stage, on_device(batch, self.device))
        losses["loss"].backward()
        told = {name: value.detach() for name, value in losses.items()}
        return told, self.optimiser(stage).take_gradient()

    def optimiser(self, stage: Stage) -> Together:
        """What a stage trains."""
        return Together([self.optimisers[name] for name in _LEARNING[stage.model]])

    def _losses(self, stage: Stage, batch: AnyBatch) -> dict[str, Tensor]:
        if isinstance(batch, ClipBatch):
            return clip_losses(self.clip, self.heads, batch, stage.losses)
        if isinstance(batch, LlavaBatch):
            return llava_losses(self.llava, self.hidden(batch.pictures)[:, 1:], batch)
        assert self.pointer is not None, "the geometry has a SAM"
        if isinstance(batch, Segments):
            return sam_losses(self.pointer, batch)
        keeper = self.keeper if stage.canvas == self.clip.vision.grid else None
        hidden = self.hidden(batch.words.pictures)
        return pointing_losses(self.llava, self.pointer, hidden, batch, keeper)

    @torch.no_grad()
    def hidden(self, pictures: Pictures) -> Tensor:
        """Hidden state -2 of pictures, of which the LLaVA sees all but [CLS], the first."""
        return self.clip.vision.features(pictures.patches, pictures.places)

    def whiten(self, batches: Iterable[LlavaBatch]) -> None:
        """Give the projector its start, by the features of some batches."""
        rows = [
            self.hidden(on_device(batch, self.device).pictures)[:, 1:].flatten(0, 1).float()
            for batch in batches
        ]
        self.llava.whiten(torch.cat(rows))
        self.optimisers["llava"].adopt()
        self.position.whitened = True
