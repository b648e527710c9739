"""What has to be known of a model family before a model of it is built."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from vllm.config import ModelConfig, VllmConfig

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.options import PruningOptions, ServerOptions
from vllm_litelvlm.pruning.traits import Traits


class Family(ABC):
    """Models whose images are processed, encoded and placed in the same way.

    A model class names its family as ``litelvlm_family``; the front end has it from there
    (:mod:`vllm_litelvlm.plugin.served`). ``config`` is a model's configuration (``hf_config``).
    """

    #: For sentences and tables.
    name: ClassVar[str]
    #: What it can see, for tables.
    media: ClassVar[str] = "images"
    #: What its texts are compared by, for tables.
    guidance: ClassVar[str]
    #: What requests have where neither they nor the server say otherwise.
    defaults: ClassVar[PruningOptions] = PruningOptions()

    @abstractmethod
    def traits(self, config: Any) -> Traits:
        """What a model offers to methods."""

    def kinds(self) -> Sequence[Traits]:
        """What models of each kind offer, but for the sizes of their images."""
        return [self.traits(None)]

    @abstractmethod
    def image_token(self, config: Any) -> int:
        """The id of the token that stands for an image in a prompt."""

    @abstractmethod
    def check(self, vllm_config: VllmConfig) -> None:
        """Raise CompatibilityError for a model, or a way to serve it, that cannot be pruned."""

    def prepare(self, server: ServerOptions, model_config: ModelConfig) -> dict[str, Any]:
        """What processor and model need beside the server's options, as plain JSON.

        Called once, before any process starts. Raises a LiteLVLMError for what is missing.
        """
        return {}

    @abstractmethod
    def install_positions(self, vllm_config: VllmConfig) -> None:
        """Have vLLM ask the model for positions, and hand it the pruned tokens to place them by."""


def refuse_drafts_and_stages(vllm_config: VllmConfig) -> None:
    """Raise CompatibilityError for what original positions do not reach."""
    speculative = vllm_config.speculative_config
    if speculative is not None and (speculative.use_eagle() or speculative.uses_draft_model()):
        raise CompatibilityError(
            "litelvlm's positions 'original' do not reach draft models; leave "
            "--speculative-config or the option out."
        )
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise CompatibilityError(
            "litelvlm's positions 'original' reach the first stage of a pipeline alone; leave "
            "--pipeline-parallel-size or the option out."
        )
