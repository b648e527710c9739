"""What a server can do, for the page to offer."""

from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels

from vllm_litelvlm import __version__
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import PruningOptions, ServerOptions
from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.endpoints.page.document import examples
from vllm_litelvlm.plugin.served import family_of
from vllm_litelvlm.plugin.variants import take_apart
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.registry import offered_methods, pruner_class, pruner_for
from vllm_litelvlm.pruning.traits import Traits


def about(models: OpenAIServingModels, *, masks: bool, words: bool) -> dict[str, Any]:
    """Models and methods by name, what they answer with, defaults and bounds.

    ``tokens`` of an image are null where its size decides; budgets are fractions then.

    Args:
        models: the model, its variants and its adapters.
        masks: whether the server answers with masks.
        words: whether it answers in words.
    """
    config = models.model_config
    names = [*(one.name for one in models.base_model_paths), *models.lora_requests]
    server = guidance_config(config.hf_config).server
    traits = family_of(config).traits(config.hf_config)
    most = None if traits.tokens is None else server.highest_budget(traits.tokens)
    return {
        "version": __version__,
        "family": family_of(config).name,
        "models": [
            {"name": name, "defaults": _defaults(server.of(variant).defaults, traits.tokens)}
            for name, variant in ((name, take_apart(models, name)[1]) for name in names)
        ],
        "answers": {"masks": masks, "words": words},
        "request_options": server.request_options,
        "methods": [
            {"name": name, "reads_text": found.reads_text, "from": found.paper}
            for name, found in ((name, pruner_class(name)) for name in _methods(server, traits))
        ],
        "positions": ["compact", "original"] if server.original_positions else ["compact"],
        "tokens": traits.tokens,
        "budget": {"least": server.min_budget, "most": most},
        "examples": examples(),
    }


def _methods(server: ServerOptions, traits: Traits) -> list[str]:
    """Those that prune, and that a request may name."""
    allowed = server.methods or offered_methods(traits)
    if not server.request_options:
        allowed = []
    return [name for name in allowed if name != KeepAll.name and _runs(name, traits)]


def _runs(method: str, traits: Traits) -> bool:
    try:
        pruner_for(PruningOptions(method=method), traits)
    except OptionsError:
        return False
    return True


def _defaults(options: PruningOptions, tokens: int | None) -> dict[str, Any]:
    """As a request would say them, with a budget in tokens where that is known."""
    said = options.model_dump(include={"budget", "method", "positions", "focus", "frame"})
    if tokens is not None:
        said["budget"] = options.budget_tokens(tokens)
    return said
