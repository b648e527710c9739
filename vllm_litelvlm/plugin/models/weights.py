"""Guidance in step with the weights of the model that it guides, whatever changes those."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from vllm.config import VllmConfig

from vllm_litelvlm.plugin.config import GuidanceConfig
from vllm_litelvlm.plugin.models.tower import attention_input, check_attention_input
from vllm_litelvlm.vision.quantised import dequantised
from vllm_litelvlm.vision.tower_guidance import TowerGuidance
from vllm_litelvlm.vision.tower_kinds import kind_of
from vllm_litelvlm.vision.weights import ClipWeights, TowerTap


class FollowedWeights:
    """Fills a guidance, and keeps it as a fresh start on the model's weights would have it.

    What the tower itself has, guidance takes from there, in whatever form vLLM keeps it; the rest
    it takes from what is loaded, and from the CLIP. Guidance is no part of the model's module tree,
    so vLLM does not load it, nor take it apart for a reload.

    Args:
        guidance: of the model.
        tower: vLLM's CLIPVisionModel or SiglipVisionModel.
        given: from the start of the server.
        vllm_config: whose ``model_config.model`` a reload changes.
    """

    def __init__(
        self, guidance: TowerGuidance, tower: Any, given: GuidanceConfig, vllm_config: VllmConfig
    ) -> None:
        self._guidance, self._tower, self._given = guidance, tower, given
        self._model_config = vllm_config.model_config
        self._first_model = self._model_config.model
        self._is_dummy = vllm_config.load_config.load_format == "dummy"
        self._clip = ClipWeights(guidance.scorer, guidance.text_tower, feature_layer=False)
        self._follows = False

    def load(
        self,
        weights: Iterable[tuple[str, Tensor]],
        stock: Callable[[Iterable[tuple[str, Tensor]]], Iterable[str]],
    ) -> set[str]:
        """Load some of the model's weights, or all, by vLLM's own ``load_weights``.

        A load of the whole tower is a fresh start. Raises WeightsError for what cannot be read.
        """
        if self._follows_layer:
            check_attention_input(self._last_layer)
        tap = TowerTap(self._clip.names)
        loaded = set(stock(tap(weights)))
        if tap.saw_tower:
            self.forget()
        if tap.saw_tower or not self._clip.complete:
            quantization = getattr(self._model_config.hf_config, "quantization_config", None)
            found = dequantised(tap.found, quantization)
            self._clip.load(found, self._clip_model(), whole=self._is_whole(loaded))
        return loaded

    def forget(self) -> None:
        """Do without what was computed from the tower: it may have changed."""
        self._guidance.forget()
        self._follows = False

    def up_to_date(self) -> TowerGuidance:
        """The guidance, ready for use. Collective under tensor parallelism."""
        if not self._follows:
            if not self._clip.complete and not self._is_dummy:
                # Loaders that copy a model's state have called no load_weights.
                self._clip.load({}, self._clip_model(), whole=False)
            if self._follows_layer:
                self._guidance.scorer.follow(attention_input(self._last_layer))
            self._follows = True
        return self._guidance

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All that guidance computes with, by names of its own."""
        for name in ("scorer", "text_tower"):
            module: nn.Module = getattr(self._guidance, name)
            for own, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"litelvlm.{name}.{own}", tensor

    @property
    def _follows_layer(self) -> bool:
        """Whether guidance computes with weights of the feature layer, which the tower has."""
        return bool(self._guidance.scorer.from_feature_input)

    @property
    def _last_layer(self) -> Any:
        """The feature layer, the last that vLLM's tower has."""
        return self._tower.vision_model.encoder.layers[-1]

    def _is_whole(self, loaded: set[str]) -> bool:
        """Whether a load brought all that the tower computes with."""
        return {
            f"vision_tower.{name}"
            for name, _ in self._tower.named_parameters()
            if name.endswith((".weight", ".bias", "_embedding", ".weight_packed"))
        } <= loaded

    def _clip_model(self) -> str:
        """The CLIP of the model that is served now: another checkpoint may have one of its own."""
        model = self._model_config.model
        if model == self._first_model:
            return str(self._given.own["clip_model"])
        try:
            fields, _ = PretrainedConfig.get_config_dict(model)
        except OSError:
            fields = {}
        if not fields:  # weights alone
            return str(self._given.own["clip_model"])
        config = type(self._model_config.hf_config).from_dict(fields)
        return kind_of(config).find(self._given.server.clip_model, config, model)
