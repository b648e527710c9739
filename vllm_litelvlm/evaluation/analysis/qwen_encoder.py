"""Qwen-VLs, by the signals that the engine has for them.

They have no text tower: texts meet visual tokens in the language model's input embeddings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.utils import logging

from vllm_litelvlm.errors import CompatibilityError, WeightsError
from vllm_litelvlm.evaluation.analysis.budgets import Budget
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.preprocessing import AnySizePreprocessor, Pixels
from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Signal, Signals
from vllm_litelvlm.vision.attention import FROM_ATTENTION, LastAttention
from vllm_litelvlm.vision.embeddings import (
    LONGEST_TEXT,
    EmbeddingGuidance,
    TokenGrid,
    token_rows,
)

_SIGNALS = {
    Score.EOS: Signal.SIMILARITY,
    Score.EOS_COSINE: Signal.COSINE,
    Score.CONTEXT: Signal.CONTEXT,
    Score.CLS_ATTENTION: Signal.CLS_ATTENTION,
}
_NEEDS = frozenset(_SIGNALS.values())


class QwenEncoder(Encoder):
    """The vision tower of a Qwen-VL, and its language model's input embeddings.

    Raises CompatibilityError for a tower whose last block does not attend to the whole image.
    """

    kind = "Qwen-VL"
    labels: ClassVar[Mapping[Score, str]] = {
        Score.EOS: "mean text embedding",
        Score.EOS_COSINE: "mean text embedding, cosine",
        Score.CONTEXT: "context score (Eq. 5) by the token that receives most",
        Score.CLS_ATTENTION: "attention received from all tokens, last block",
    }
    context = Score.CONTEXT
    notes = (
        "Here patches are the visual tokens that the language model gets, each merged from a cell "
        "of the tower's patches; scores of the last block are means over a cell. An image has as "
        "many as its size makes.",
        "Qwen-VL has no [CLS]: the token that receives most attention in the tower's last block "
        "stands for it. It has no text tower and no [EOS] either: the mean of a text's input "
        f"embeddings in the language model, of its first {LONGEST_TEXT} tokens, stands for that. "
        "It is compared with visual tokens as they come from the merger, among the input "
        "embeddings; what Qwen3-VL adds to deeper layers (deepstack) is not compared.",
    )
    budgets: ClassVar[Sequence[Budget]] = (1 / 9, 2 / 9, 1 / 3)

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, image_processor, tokenizer)
        self._guidance = EmbeddingGuidance(model.get_input_embeddings())
        full = getattr(model.config.vision_config, "fullatt_block_indexes", None)
        last = len(model.visual.blocks) - 1
        if full is not None and last not in full:
            raise CompatibilityError(
                f"The last block (number {last}) of the vision tower at {name!r} attends to "
                f"windows; its fullatt_block_indexes are {list(full)}. What tokens get from the "
                "whole image is not known there, and the engine refuses it, too."
            )

    @classmethod
    def load_model(cls, name: str, config: Any) -> Any:
        """Without the language model's layers, most of a checkpoint, which nothing asks."""
        text = config.text_config
        text.num_hidden_layers = 0
        if getattr(text, "layer_types", None):
            text.layer_types = []
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # or it lists every layer as unexpected
        try:
            model, told = AutoModel.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True
            )
        finally:
            logging.set_verbosity(verbosity)
        if missing := sorted(told["missing_keys"]):
            raise WeightsError(f"The checkpoint at {name!r} lacks {', '.join(missing)}.")
        return model

    def _preprocessor(self, image_processor: Any) -> AnySizePreprocessor:
        vision = self.model.config.vision_config
        return AnySizePreprocessor(
            image_processor, patch=int(vision.patch_size), merge=int(vision.spatial_merge_size)
        )

    @torch.no_grad()
    def scores(
        self, pixels: Sequence[Pixels], owners: Sequence[int], texts: Sequence[str]
    ) -> dict[Score, list[Tensor]]:
        """See :meth:`Encoder.scores`; images are looked at one by one."""
        found = {score: [torch.empty(0)] * len(owners) for score in self.labels}
        for image, one in enumerate(pixels):
            pairs = [pair for pair, owner in enumerate(owners) if owner == image]
            signals = self._signals(one, [texts[pair] for pair in pairs])
            for score, signal in _SIGNALS.items():
                own = signals[signal][0].cpu()
                rows = own if signal in TEXT_SIGNALS else own.expand(len(pairs), -1)
                for pair, row in zip(pairs, rows, strict=True):
                    found[score][pair] = row
        return found

    def _signals(self, pixels: Pixels, texts: Sequence[str]) -> Signals:
        """Of one image with its texts."""
        features, attention = self._see(pixels)
        grid = TokenGrid(
            features[None],
            pixels.columns,
            features.shape[-1],
            attention.signals(_NEEDS & FROM_ATTENTION),
        )
        return self._guidance.signals(grid, [token_rows(self.tokenizer, texts)], _NEEDS)

    def _see(self, pixels: Pixels) -> tuple[Tensor, LastAttention]:
        """The tokens of an image, [tokens, width], and what the last block's attention read."""
        visual, merge = self.model.visual, self.model.visual.spatial_merge_size
        attention = visual.blocks[-1].attn
        heard: dict[str, Any] = {}

        def note(_: Any, given: Sequence[Any], named: Mapping[str, Any]) -> None:
            heard["hidden"] = given[0] if given else named["hidden_states"]
            heard["rotary"] = named["position_embeddings"]

        grid = torch.tensor([[1, pixels.rows * merge, pixels.columns * merge]], device=self.device)
        handle = attention.register_forward_pre_hook(note, with_kwargs=True)
        try:
            output = visual(pixels.values.to(self.device), grid_thw=grid, return_dict=True)
        finally:
            handle.remove()
        heads = attention.num_heads
        query, key, value = attention.qkv(heard["hidden"]).unflatten(-1, (3, heads, -1)).unbind(1)
        rotated = apply_rotary_pos_emb_vision(query, key, *heard["rotary"])
        order = self._order(grid)
        query, key, value, rotated_query, rotated_key = (
            one.unflatten(0, (-1, merge**2))[order][None] for one in (query, key, value, *rotated)
        )
        attended = LastAttention(query, key, value, rotated_query, rotated_key, heads)
        return output.pooler_output, attended

    def _order(self, grid: Tensor) -> Tensor | slice:
        """Where the tower has each token of an image, in raster order."""
        visual = self.model.visual
        if not hasattr(visual, "window_size"):
            return slice(None)
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(
            grid,
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        order: Tensor = index.argsort()
        return order
