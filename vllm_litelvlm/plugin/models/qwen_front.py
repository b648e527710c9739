"""Qwen-VLs in the front end: their family, and their processors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from cachetools import LRUCache
from torch import Tensor
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLMultiModalProcessor
from vllm.model_executor.models.qwen3_vl import Qwen3VLMultiModalProcessor
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.multimodal.processing.processor import PromptUpdateDetails, PromptUpdateInfo

from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.plugin.family import Family, refuse_drafts_and_stages
from vllm_litelvlm.plugin.grid import Placing, Span
from vllm_litelvlm.plugin.pixels import Picture
from vllm_litelvlm.plugin.plan import Plan, WorkOrder
from vllm_litelvlm.plugin.processor import ABSENT, PruningProcessor
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.embeddings import LONGEST_TEXT, EmbeddingGuidance, token_rows

#: How many pictures' grids are remembered.
_GRIDS = 16_384
#: More than a frame's time in seconds may have beside the first.
_DIGITS = 4
#: Above 0, which is what vLLM asks about; and what it would leave of a video by it is all.
_NOTHING_PRUNED = 1e-17


class QwenFamily(Family):
    """Qwen-VLs: text is compared with the visual tokens in the language model's own embeddings."""

    media: ClassVar[str] = "images, videos"
    guidance: ClassVar[str] = "the language model's own input embeddings"
    defaults: ClassVar[PruningOptions] = PruningOptions(positions="original")

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def traits(self, config: Any) -> Traits:
        """Without a CLIP's signals; pictures are seen whole."""
        return Traits(
            self.name,
            signals=EmbeddingGuidance.available,
            layered=False,
            crops=False,
            parameters={
                "fovea": {"guidance": "similarity"},
                "mmtok": {"text_temperature": 0.01},
                "eadp": {"power": 2.0},
            },
        )

    def image_token(self, config: Any) -> int:
        """``<|image_pad|>``."""
        return int(config.image_token_id)

    def check(self, vllm_config: VllmConfig) -> None:
        """Signals come from the tower's last attention, which has to be there and be whole."""
        model_config = vllm_config.model_config
        multimodal, vision = model_config.multimodal_config, model_config.hf_config.vision_config
        assert multimodal is not None
        full = getattr(vision, "fullatt_block_indexes", None)
        if full is not None and vision.depth - 1 not in full:
            raise CompatibilityError(
                f"litelvlm needs a vision tower whose last block (number {vision.depth - 1}) "
                f"attends to the whole image; this model's fullatt_block_indexes are {full}. "
                "Serve it without --plugin litelvlm."
            )
        if multimodal.mm_encoder_tp_mode == "data":
            raise CompatibilityError(
                "litelvlm does not see what --mm-encoder-tp-mode data spreads over ranks; leave it "
                "out, or serve without --plugin litelvlm."
            )
        if vllm_config.compilation_config.compile_mm_encoder:
            raise CompatibilityError(
                "litelvlm does not see into a compiled vision tower; leave compile_mm_encoder out "
                "of --compilation-config, or serve without --plugin litelvlm."
            )
        if multimodal.video_pruning_rate not in (None, 0, _NOTHING_PRUNED):
            raise CompatibilityError(
                f"--video-pruning-rate is {multimodal.video_pruning_rate}, by which vLLM prunes "
                "videos itself, blind to the text; leave it out, or serve without --plugin "
                "litelvlm."
            )

    def install_positions(self, vllm_config: VllmConfig) -> None:
        """Rows of positions these models have; vLLM's switch for the rest is named for videos."""
        refuse_drafts_and_stages(vllm_config)
        assert vllm_config.model_config.multimodal_config is not None
        vllm_config.model_config.multimodal_config.video_pruning_rate = _NOTHING_PRUNED


@dataclass(frozen=True)
class Grid:
    """Visual tokens of a picture: so many frames of rows and columns."""

    frames: int
    rows: int
    columns: int

    @classmethod
    def of(cls, patches: Sequence[int], merge: int) -> "Grid":
        """Of frames, rows and columns of patches, of which ``merge`` a side are a token."""
        frames, rows, columns = patches
        return cls(frames, rows // merge, columns // merge)

    @property
    def tokens(self) -> int:
        """Of all frames."""
        return self.frames * self.rows * self.columns


def span_of(
    order: Plan | WorkOrder, grid: Grid, start: int = 0, times: tuple[int, ...] = (0,)
) -> Span:
    """A picture's tokens in a prompt from token ``start`` on; ``times``: of its frames."""
    if isinstance(order.pruner, KeepAll):
        placing = Placing.WHOLE
    else:
        placing = Placing.ORIGINAL if order.original else Placing.COMPACT
    tokens = grid.rows * grid.columns
    behind = order.pruner.places(tokens).stop - tokens
    return Span(start, order.count, grid.rows, grid.columns, placing, times, behind)


class QwenProcessor(PruningProcessor):
    """What the processors of Qwen-VLs have in common."""

    def shape(self, picture: Picture) -> tuple[int, int]:
        """As the picture was preprocessed."""
        grid = self._grid(picture)
        return grid.frames, grid.rows * grid.columns

    def positions_of(self, plan: Plan, picture: Picture) -> int:
        """Those of a grid are the longer of its sides."""
        grid = self._grid(picture)
        return span_of(plan, grid, times=(0,) * grid.frames).positions

    def check_places(
        self, prompt: Sequence[int], plans: Sequence[Plan], pictures: Sequence[Picture]
    ) -> None:
        """Refuse a prompt that ends in a picture, too: where it goes on is not known in time."""
        super().check_places(prompt, plans, pictures)
        visual = [target[-1:] for target in self.targets().values()]
        if any(plan.original for plan in plans) and list(prompt[-1:]) in visual:
            raise OptionsError(
                "litelvlm option 'positions' is \"original\", by which a prompt that ends in an "
                "image cannot be continued. Write something behind the image, or ask for "
                '"compact".'
            )

    def tokenize_texts(self, texts: Sequence[str]) -> Tensor:
        """The beginning of each by the language model's own tokenizer, without special tokens."""
        return token_rows(self.info.get_tokenizer(), texts)

    def longest_texts(self, count: int) -> tuple[str, ...]:
        """Of at least as many tokens as count."""
        return tuple(f"{number:04d}{' b' * LONGEST_TEXT}" for number in range(count))

    def targets(self) -> dict[str, list[int]]:
        """One token of its own for either."""
        config = self.info.get_hf_config()
        return {"image": [config.image_token_id], "video": [config.video_token_id]}

    def placeholders(
        self, modality: str, plan: Plan, item: MultiModalKwargsItem
    ) -> PromptUpdateInfo:
        """As many of its placeholder as there are tokens in all frames."""
        [token] = self.targets()[modality]
        frames = int(item[f"{modality}_grid_thw"].data[0])
        return [token] * (frames * plan.count)

    @cached_property
    def _grids(self) -> LRUCache[bytes, Grid]:
        """Of pictures that were preprocessed, by their keys."""
        return LRUCache(_GRIDS)

    def _grid(self, picture: Picture) -> Grid:
        """Of a picture that is there, or was sent before under the same name."""
        key = picture.named if picture.is_missing else picture.key
        if key is None or (picture.is_missing and key not in self._grids):
            raise VLLMValidationError(ABSENT, parameter="uuid")
        if key not in self._grids:
            made = self.made(picture)
            assert isinstance(made, Mapping)
            merge = self.info.get_hf_config().vision_config.spatial_merge_size
            self._grids[key] = Grid.of(made[f"{picture.modality}_grid_thw"][0].tolist(), merge)
        return self._grids[key]


class Qwen25VLProcessor(QwenProcessor, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's, in which a video is one run of tokens."""


class Qwen3VLProcessor(QwenProcessor, Qwen3VLMultiModalProcessor):
    """Qwen3-VL's, in which every frame of a video comes behind its time in words."""

    def targets(self) -> dict[str, list[int]]:
        """What transformers expands."""
        config, processor = self.info.get_hf_config(), self.info.get_hf_processor()
        video = [config.video_token_id]
        if not self._expands_only_video_token(processor):
            video = [config.vision_start_token_id, *video, config.vision_end_token_id]
        return {"image": [config.image_token_id], "video": video}

    def placeholders(
        self, modality: str, plan: Plan, item: MultiModalKwargsItem
    ) -> PromptUpdateInfo:
        """Stock's, with fewer tokens a frame."""
        if modality == "image":
            return super().placeholders(modality, plan, item)
        return self._frames(plan.count, item["timestamps"].data)

    def positions_of(self, plan: Plan, picture: Picture) -> int:
        """Those of every frame, and of the words before it."""
        grid = self._grid(picture)
        if picture.modality == "image":
            return super().positions_of(plan, picture)
        frame = span_of(plan, Grid(1, grid.rows, grid.columns)).positions
        words = len(self._frames(1, [0.0]).full) - 1 + _DIGITS
        return grid.frames * (frame + words)

    def _frames(self, tokens: int, times: Sequence[float]) -> PromptUpdateDetails:
        """A video of so many tokens a frame; ``times`` in seconds."""
        config = self.info.get_hf_config()
        return self.get_video_repl(
            tokens_per_frame=[tokens] * len(times),
            timestamps=times,
            tokenizer=self.info.get_tokenizer(),
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=config.video_token_id,
            select_token_id=True,
        )
