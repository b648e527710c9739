"""From a hub name or folder to an encoder."""

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from vllm_litelvlm.errors import CompatibilityError, OptionsError, WeightsError
from vllm_litelvlm.evaluation.analysis.clip_encoder import ClipEncoder
from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.qwen_encoder import QwenEncoder
from vllm_litelvlm.evaluation.analysis.siglip_encoder import SiglipEncoder

_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
#: The model_type of a configuration to what reads it.
_ENCODERS: dict[str, type[Encoder]] = {
    "clip": ClipEncoder,
    "siglip": SiglipEncoder,
    **dict.fromkeys(_QWEN, QwenEncoder),
}


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
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in _ENCODERS:
            raise CompatibilityError(
                f"The checkpoint at {name!r} is a {config.model_type!r} model; allowed: CLIP and "
                "MetaCLIP ('clip'), SigLIP and SigLIP-2 of fixed resolution ('siglip'), and "
                f"Qwen-VLs ({', '.join(map(repr, _QWEN))})."
            )
        encoder = _ENCODERS[config.model_type]
        model = encoder.load_model(name, config).to(device)
        image_processor = AutoImageProcessor.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"No checkpoint can be read at {name!r} ({error}). Name a CLIP, MetaCLIP, SigLIP or "
            "Qwen-VL with its image processor and tokenizer: a hub name or a folder."
        ) from error
    return encoder(name, model, image_processor, tokenizer)
