"""LLaVA that points: its token [SEG] stands for a mask, as in GLaMM (arXiv 2311.03356).

A generating engine answers in words and gives prompts of SAM; a pooling one gives those alone.
"""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.layers.pooler.special import DispatchPooler
from vllm.model_executor.models.interfaces_base import VllmModelForPooling
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder, LlavaProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.grounding.device import check_device
from vllm_litelvlm.grounding.head import TextProjection
from vllm_litelvlm.grounding.layout import POOLING_TASK, read_sam_config, seg_token_index
from vllm_litelvlm.options import ServerOptions
from vllm_litelvlm.plugin.models.llava import LiteLVLMLlava, LlavaFamily, build_processor
from vllm_litelvlm.plugin.models.seg_pooler import SegPooler
from vllm_litelvlm.plugin.pointing import point
from vllm_litelvlm.pruning.traits import Traits

_PROMPT_WIDTH = "prompt_width"


class LlavaSegFamily(LlavaFamily):
    """As LLaVA, with a token that stands for masks."""

    name: ClassVar[str] = "LLaVA with [SEG]"

    def kinds(self) -> list[Traits]:
        """As the published ones are, with a CLIP's tower."""
        return [replace(super().kinds()[0], family=self.name)]

    def check(self, vllm_config: VllmConfig) -> None:
        """Its configuration has to name the token, and states have to be whole to point."""
        super().check(vllm_config)
        seg_token_index(vllm_config.model_config.hf_config)
        if vllm_config.parallel_config.prefill_context_parallel_size > 1:
            raise CompatibilityError(
                "litelvlm's masks are made from states that --prefill-context-parallel-size "
                "spreads over GPUs; leave it out (tensor and data parallel engines work)."
            )

    def prepare(self, server: ServerOptions, model_config: ModelConfig) -> dict[str, Any]:
        """As LLaVA's, and how wide the prompts are that its SAM takes."""
        check_device(server.sam_device)
        sam = read_sam_config(model_config.model, model_config.revision)
        width = sam.prompt_encoder_config.hidden_size
        return {**super().prepare(server, model_config), _PROMPT_WIDTH: width}


@MULTIMODAL_REGISTRY.register_processor(
    build_processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class LiteLVLMLlavaSeg(LiteLVLMLlava, VllmModelForPooling):
    """vLLM's LLaVA with pruning, and with the projection from [SEG] to prompts of SAM."""

    is_pooling_model: ClassVar = True
    litelvlm_family = LlavaSegFamily()

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        prompt_width = self._settings.own[_PROMPT_WIDTH]
        self.text_hidden_fcs = TextProjection(self.config.text_config.hidden_size, prompt_width)
        if vllm_config.model_config.runner_type == "pooling":
            pooler = SegPooler(self.text_hidden_fcs, seg_token_index(self.config))
            self.pooler = DispatchPooler({POOLING_TASK: pooler})
        else:
            point(v2=vllm_config.use_v2_model_runner)

    def litelvlm_prompts(self, states: Tensor) -> Tensor:
        """Prompts of SAM, float32 [rows, prompt width], from states [rows, width]."""
        prompts: Tensor = self.text_hidden_fcs(states)
        return prompts
