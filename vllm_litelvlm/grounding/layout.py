"""The layout of a checkpoint with masks, written once: a folder or a hub repository.

It is a LLaVA of ``llava-hf`` with four additions, GLaMM's (arXiv 2311.03356) in names that
transformers knows:

- in ``config.json``, ``architectures`` is ``["LlavaSegForConditionalGeneration"]`` and
  ``seg_token_index`` the id of the token ``[SEG]``; ``model_type`` stays ``llava``;
- in the tokenizer, the token ``[SEG]``;
- among the safetensors, ``text_hidden_fcs.0.0.{weight,bias}`` (Linear, width of the language model
  to the same) and ``text_hidden_fcs.0.2.{weight,bias}`` (Linear, to a SAM prompt's width, 256 in
  every published SAM): GLaMM's names without ``model.``;
- a subfolder ``sam`` in the layout of transformers' ``SamModel``: ``config.json``,
  ``model.safetensors``, ``preprocessor_config.json``. ``mask_decoder_config.layer_norm_eps`` has to
  be 1e-5, as in the original SAM and so in GLaMM; transformers writes 1e-6 unless told.
"""

import logging
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import SamConfig

from vllm_litelvlm.errors import CompatibilityError, WeightsError

logger = logging.getLogger(__name__)

ARCHITECTURE = "LlavaSegForConditionalGeneration"
#: Its state, one position earlier, is what a mask is made from.
SEG_TOKEN = "[SEG]"
#: The entry of ``config.json`` with that token's id.
SEG_TOKEN_KEY = "seg_token_index"
#: What the names of the projection's tensors begin with.
PROJECTION = "text_hidden_fcs"
SAM_FOLDER = "sam"
#: vLLM's name of what the engine does: both model runners serve it, and it opens no endpoint of
#: vLLM's beside ``/pooling``.
POOLING_TASK: Literal["token_classify"] = "token_classify"
#: Epsilon of the original mask decoder's LayerNorms.
_DECODER_EPSILON = 1e-5
_FIX = (
    f"Give the model a subfolder {SAM_FOLDER!r} as transformers' SamModel and SamImageProcessor "
    "save themselves: config.json, model.safetensors, preprocessor_config.json."
)


def seg_token_index(config: Any) -> int:
    """The id of [SEG] of a model's configuration.

    Raises CompatibilityError where there is none.
    """
    found = getattr(config, SEG_TOKEN_KEY, None)
    if not isinstance(found, int) or found < 0:
        raise CompatibilityError(
            f"The model's config.json has {SEG_TOKEN_KEY} {found!r}; masks need the id of its "
            f"token {SEG_TOKEN!r} there, an integer from 0. Add it, or serve a model that was "
            "trained to answer with masks."
        )
    return found


def read_sam_config(model: str, revision: str | None = None) -> SamConfig:
    """The configuration of a model's SAM, whose parts fit each other.

    Args:
        model: hub name or folder of the whole model.
        revision: of a hub repository.

    Raises WeightsError where there is none, or it is not of a SAM that can be run.
    """
    where = f"in the subfolder {SAM_FOLDER!r} of {model!r}"
    try:
        # Of a folder without the subfolder this is empty, and SamConfig.from_pretrained a default.
        fields, _ = SamConfig.get_config_dict(model, subfolder=SAM_FOLDER, revision=revision)
        if not fields:
            raise ValueError("there is no config.json")
        if fields.get("model_type") != "sam":
            raise ValueError(f"its model_type is {fields.get('model_type')!r}, not 'sam'")
        config = SamConfig.from_dict(fields)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise WeightsError(f"No SAM configuration {where} ({error}). {_FIX}") from error
    if differing := _misfits(config):
        raise WeightsError(
            f"The SAM {where} cannot be run: {differing}. Take its config.json from the checkpoint "
            "that its weights are from."
        )
    epsilon = config.mask_decoder_config.layer_norm_eps
    if epsilon != _DECODER_EPSILON:
        logger.warning(
            "The SAM %s has mask_decoder_config.layer_norm_eps %g, the original SAM and GLaMM "
            "%g: if its weights were converted from them, write %g into its config.json.",
            where,
            epsilon,
            _DECODER_EPSILON,
            _DECODER_EPSILON,
        )
    return config


def unreadable(model: str, what: str, reason: object) -> WeightsError:
    """An error about a file of a model's SAM."""
    return WeightsError(
        f"The {what} in the subfolder {SAM_FOLDER!r} of {model!r} cannot be used ({reason}). {_FIX}"
    )


def _misfits(config: SamConfig) -> str:
    """Which parts of a SAM do not fit each other; nothing where all do."""
    vision, prompts = config.vision_config, config.prompt_encoder_config
    width = prompts.hidden_size
    pairs = {
        "mask_decoder_config.hidden_size": (config.mask_decoder_config.hidden_size, width),
        "vision_config.output_channels": (vision.output_channels, width),
        "twice vision_config.num_pos_feats": (2 * vision.num_pos_feats, width),
        "vision_config.image_size": (vision.image_size, prompts.image_size),
        "vision_config.patch_size": (vision.patch_size, prompts.patch_size),
        "vision_config.num_channels": (vision.num_channels, 3),
    }
    wrong = (
        f"{name} is {found} and has to be {wanted}"
        for name, (found, wanted) in pairs.items()
        if found != wanted
    )
    return "; ".join(wrong)
