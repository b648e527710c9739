"""From a hub name or folder to an encoder."""

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from vllm_litelvlm.errors import CompatibilityError, OptionsError, WeightsError
from vllm_litelvlm.evaluation.analysis.clip_encoder import ClipEncoder
from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.siglip_encoder import SiglipEncoder

#: The model_type of a configuration to what reads it.
_ENCODERS: dict[str, type[Encoder]] = {"clip": ClipEncoder, "siglip": SiglipEncoder}


def load_encoder(name: str, device: str) -> Encoder:
    """A checkpoint in float32 on ``device``.

    Raises CompatibilityError for another architecture, WeightsError for what cannot be read, and
    OptionsError for a device that there is not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionsError(f"--device {device}: {str(error).splitlines()[0]}") from None
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind not in _ENCODERS:
            raise CompatibilityError(
                f"The checkpoint at {name!r} is a {kind!r} model; allowed: CLIP and MetaCLIP "
                "('clip'), SigLIP and SigLIP-2 of fixed resolution ('siglip')."
            )
        model = AutoModel.from_pretrained(name, dtype=torch.float32).to(device)
        image_processor = AutoImageProcessor.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"No checkpoint can be read at {name!r} ({error}). Name a CLIP, MetaCLIP or SigLIP "
            "with its image processor and tokenizer: a hub name or a folder."
        ) from error
    return _ENCODERS[kind](name, model, image_processor, tokenizer)
