"""A GLaMM as its authors publish it: what is in it, and whether that is all of it.

The layout is known from their source (github.com/mbzuai-oryx/groundingLMM).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import SamModel

from vllm_litelvlm.convert import language
from vllm_litelvlm.convert.checks import Shape, check_tensors
from vllm_litelvlm.convert.reading import Held, read_headers
from vllm_litelvlm.convert.sam_geometry import sam_config
from vllm_litelvlm.convert.sam_names import sam_names
from vllm_litelvlm.convert.vision_tower import VisionTower, find_vision_tower
from vllm_litelvlm.convert.vocabulary import Vocabulary, read_vocabulary
from vllm_litelvlm.errors import CompatibilityError

SAM = "model.grounding_encoder."
#: Of transformers; tied to the other name of the same.
SAM_TIED = "prompt_encoder.shared_embedding.positional_embedding"


@dataclass(frozen=True)
class Glamm:
    """A GLaMM that was found to be whole, its weights not read yet."""

    folder: Path
    fields: Mapping[str, Any]
    vocabulary: Vocabulary
    tower: VisionTower
    text_config: Any
    sam_config: Any
    #: What is converted, by GLaMM's names.
    held: dict[str, Held]
    #: Those names to the ones in the LLaVA.
    llava_names: dict[str, str]
    #: Those names to the ones in the SAM.
    sam_names: dict[str, str]
    #: Tensors of the box inputs, which are left out.
    regions: int

    @property
    def rows(self) -> int:
        """Of the embedding, with one for ``<image>``."""
        return max(int(self.text_config.vocab_size), self.vocabulary.image_id + 1)

    def sentences(self) -> list[str]:
        """What becomes of it, for the person who converts it."""
        vision, vocabulary = self.sam_config.vision_config, self.vocabulary
        own = self.text_config.vocab_size
        room = "a row that was free" if self.rows == own else f"a row more than its {own}"
        told = [
            f"{len(self.llava_names) + len(self.tower.held)} tensors of the LLaVA, its vision "
            f"tower from {self.tower.folder}",
            f"{len(self.sam_names)} tensors of the SAM in sam/: {vision.num_hidden_layers} layers "
            f"of width {vision.hidden_size} with {vision.num_attention_heads} heads, images of "
            f"{vision.image_size} pixels",
            f"<image> is token {vocabulary.image_id}, in the embedding {room}",
            f"[SEG] is token {vocabulary.seg_id}",
        ]
        if self.regions:
            told.append(
                f"left out: {self.regions} tensors {language.REGIONS}*, of boxes in a prompt"
            )
        return told


def read_glamm(folder: Path, vision_tower: str) -> Glamm:
    """Look at everything but the weights.

    Args:
        folder: of the GLaMM.
        vision_tower: hub name or folder of its CLIP.

    Raises CompatibilityError where it is not a GLaMM, WeightsError where it is not whole, and
    OptionsError where there is no such CLIP.
    """
    fields = language.read_config(folder)
    text_config = language.llama_config(fields)
    vocabulary = read_vocabulary(folder)
    if text_config.vocab_size < vocabulary.size:
        raise CompatibilityError(
            f"{folder} has a tokenizer of {vocabulary.size} entries and a vocab_size of "
            f"{text_config.vocab_size} in its config.json: they are not one model's."
        )
    for kind in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # GLaMM itself goes by the tokenizer's, whatever its config.json says.
        setattr(text_config, kind, getattr(vocabulary.tokenizer, kind))
    held = read_headers(folder)
    regions = [name for name in held if name.startswith(language.REGIONS)]
    for name in [*regions, *filter(language.ROTARY.fullmatch, held)]:
        del held[name]
    sam, names, sam_shapes = _sam(held)
    tower = find_vision_tower(vision_tower)
    shapes = language.language_shapes(text_config) | language.projection_shapes(
        vision=tower.config.hidden_size,
        hidden=text_config.hidden_size,
        mask=sam.prompt_encoder_config.hidden_size,
    )
    check_tensors(str(folder), held, shapes | sam_shapes, "a GLaMM of its config.json")
    return Glamm(
        folder=folder,
        fields=fields,
        vocabulary=vocabulary,
        tower=tower,
        text_config=text_config,
        sam_config=sam,
        held=held,
        llava_names=language.language_names(text_config) | language.projection_names(),
        sam_names=names,
        regions=len(regions),
    )


def _sam(held: Mapping[str, Held]) -> tuple[Any, dict[str, str], dict[str, Shape]]:
    """The SAM in a GLaMM: its configuration, and by GLaMM's names transformers' and the shapes."""
    config = sam_config(
        {name.removeprefix(SAM): one.shape for name, one in held.items() if name.startswith(SAM)}
    )
    names = sam_names(
        layers=config.vision_config.num_hidden_layers,
        decoder_layers=config.mask_decoder_config.num_hidden_layers,
        masks=config.mask_decoder_config.num_multimask_outputs + 1,
        iou_layers=config.mask_decoder_config.iou_head_depth,
    )
    with torch.device("meta"):
        state = SamModel(config).state_dict()
    assert {*names.values()} == state.keys() - {SAM_TIED}
    return (
        config,
        {f"{SAM}{theirs}": ours for theirs, ours in names.items()},
        {f"{SAM}{theirs}": tuple(state[ours].shape) for theirs, ours in names.items()},
    )
