"""The server's options: validated once at start, then carried to every process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm import envs
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.options import (
    COMMON_OPTIONS,
    OPTIONS_KEY,
    SERVER_OPTIONS,
    PruningOptions,
    ServerOptions,
    parse_request_options,
    parse_server_options,
)
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.served import family_of
from vllm_litelvlm.pruning.registry import build_pruner, pruner_class, pruner_for, settle_focus
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.checkpoint import CONFIG_KEY

#: What vLLM takes on a CPU.
_CPU_BLOCK = 128


@dataclass(frozen=True)
class GuidanceConfig:
    """What the processor and the model need to know.

    ``own`` is what the model's family prepared, ``block`` how many tokens a block of the prefix
    cache has, 0 without one.
    """

    server: ServerOptions
    own: Mapping[str, Any]
    block: int


class LiteLVLMConfigHook(VerifyAndUpdateConfig):
    """vLLM calls this for every model of ours, before any engine process starts."""

    @classmethod
    def behind(cls, stock: type[VerifyAndUpdateConfig] | None) -> type[VerifyAndUpdateConfig]:
        """This, behind the hook that vLLM has for an architecture itself: it asks one alone."""
        if stock is None or issubclass(stock, cls):
            return stock or cls
        return type(cls.__name__, (cls, stock), {})

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Validate ``--additional-config`` and what the plugin cannot work with.

        Raises a LiteLVLMError with a sentence that says the fix.
        """
        super().verify_and_update_config(vllm_config)
        model_config = vllm_config.model_config
        config = model_config.hf_config
        family = family_of(model_config)
        family.check(vllm_config)
        _check_engine(vllm_config)
        additional = vllm_config.additional_config
        given = additional.get(OPTIONS_KEY) if isinstance(additional, dict) else None
        server = parse_server_options(given, family.defaults)
        traits = family.traits(config)
        _check_defaults(server, traits)
        if traits.tokens is not None:
            _check_step(vllm_config.scheduler_config, server.highest_budget(traits.tokens))
        own = family.prepare(server, model_config)
        if server.original_positions:
            family.install_positions(vllm_config)
        # Plain JSON: vLLM hashes and pickles it.
        setattr(
            config,
            CONFIG_KEY,
            {
                "server": server.model_dump(),
                "own": own,
                "block": _prefix_block(vllm_config.cache_config),
            },
        )


def guidance_config(config: Any) -> GuidanceConfig:
    """Read back what the hook left on a model's configuration.

    Raises CompatibilityError where it left nothing.
    """
    carried = getattr(config, CONFIG_KEY, None)
    if not isinstance(carried, dict):
        raise CompatibilityError(
            "litelvlm was installed after vLLM had built its configuration; activate it before "
            "the engine is created."
        )
    return GuidanceConfig(
        server=ServerOptions.model_validate(carried["server"]),
        own=carried["own"],
        block=carried["block"],
    )


def settle_options(
    asked: object, server: ServerOptions, traits: Traits
) -> tuple[PruningOptions, int]:
    """A request's options, and the tokens of the focus that an image has by them, all of it shown.

    Raises OptionsError for what is not allowed.
    """
    options = parse_request_options(asked, server)
    return options, _settle(options, server, traits)


def _settle(options: PruningOptions, server: ServerOptions, traits: Traits) -> int:
    if traits.tokens is None:
        pruner_for(options, traits)
        server.check_request(options, options.budget if isinstance(options.budget, int) else None)
        return 0
    plan = Plan.decide(options, traits.tokens, traits=traits)
    focus = settle_focus(options, plan.pruner, plan.budget)
    server.check_request(options, plan.budget)
    return focus


def served_variants(model_config: ModelConfig) -> dict[str, str | None]:
    """A model's variants, each with the whole name that it may have; none where it is not ours."""
    carried = getattr(model_config.hf_config, CONFIG_KEY, None)
    if not isinstance(carried, dict) or "server" not in carried:
        return {}
    variants = carried["server"]["variants"]
    return {name: options["served_model_name"] for name, options in variants.items()}


def position_limit(model_config: ModelConfig) -> int:
    """How many positions the language model's rotary embedding has at least."""
    text = model_config.hf_config.text_config
    return max(int(model_config.max_model_len), int(text.max_position_embeddings))


def _check_engine(vllm_config: VllmConfig) -> None:
    if envs.VLLM_USE_RUST_FRONTEND:
        raise CompatibilityError(
            "VLLM_USE_RUST_FRONTEND=1 replaces the front end in which litelvlm plans the pruning; "
            "unset it, or serve without --plugin litelvlm."
        )
    if vllm_config.load_config.load_format == "ipc_cache":
        raise CompatibilityError(
            "--load-format ipc_cache shares a model's tensors between processes, and litelvlm's "
            "are not among them; choose another format, or serve without --plugin litelvlm."
        )
    lora = vllm_config.lora_config
    if lora is not None and lora.enable_tower_connector_lora:
        raise CompatibilityError(
            "litelvlm scores with the vision tower's own weights, so LoRA adapters on the tower "
            "and the projector cannot be used; leave --enable-tower-connector-lora out (adapters "
            "on the language model work)."
        )
    multimodal = vllm_config.model_config.multimodal_config
    if multimodal is not None and OPTIONS_KEY in (multimodal.mm_processor_kwargs or {}):
        raise OptionsError(
            "litelvlm options for the whole server go in "
            "--additional-config '{\"litelvlm\": {...}}', not in --mm-processor-kwargs."
        )


def _check_step(scheduler: SchedulerConfig, highest: int) -> None:
    """vLLM refuses an image that no step has room for without saying what an image comes to."""
    room = scheduler.max_num_batched_tokens
    if scheduler.disable_chunked_mm_input and highest > room:
        raise CompatibilityError(
            f"An image may keep {highest} tokens, which --disable-chunked-mm-input wants in one "
            f"step; --max-num-batched-tokens is {room}. Raise that, or set the litelvlm option "
            f"'max_budget' to {room} or less."
        )


def _prefix_block(cache: CacheConfig) -> int:
    """Tokens of a block of the prefix cache, or 0 where there is none.

    Before any process starts that is vLLM's default unless the user says otherwise; should a
    backend want another size in the end, bases merely end inside a block.
    """
    if not cache.enable_prefix_caching:
        return 0
    if cache.user_specified_block_size:
        return int(cache.block_size)
    return _CPU_BLOCK if current_platform.is_cpu() else int(cache.DEFAULT_BLOCK_SIZE)


def _check_defaults(server: ServerOptions, traits: Traits) -> None:
    """A default that every request would be refused for is an error at start, a variant too."""
    for method in server.methods or ():
        pruner_class(method)  # one that is unknown is refused
    for name, options in server.sets.items():
        try:
            build_pruner(options.method, options.parameters, (*COMMON_OPTIONS, *SERVER_OPTIONS))
            _settle(options, server, traits)
        except OptionsError as error:
            raise OptionsError(f"Variant {name!r}: {error}" if name else str(error)) from None
