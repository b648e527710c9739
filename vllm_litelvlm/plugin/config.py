"""The server's options: validated once at start, then carried to every process."""

from dataclasses import dataclass
from pathlib import Path
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
from vllm_litelvlm.plugin.positions import ROWS
from vllm_litelvlm.pruning.registry import build_pruner, pruner_class, settle_focus
from vllm_litelvlm.vision.checkpoint import (
    CONFIG_KEY,
    check_tower,
    find_clip_model,
    read_clip_config,
)
from vllm_litelvlm.vision.clip import patch_count

#: What makes vLLM keep rows of positions a request; the language model's own embedding is not told.
_SECTIONS = [1] * ROWS
#: What vLLM takes on a CPU.
_CPU_BLOCK = 128


@dataclass(frozen=True)
class GuidanceConfig:
    """What the processor and the model need to know.

    ``clip_model`` is a hub name or an absolute folder, ``text_tokens`` how many tokens its text
    tower reads, ``block`` how many tokens a block of the prefix cache has, 0 without one.
    """

    server: ServerOptions
    clip_model: str
    text_tokens: int
    block: int


class LiteLVLMConfigHook(VerifyAndUpdateConfig):
    """vLLM calls this for every LLaVA model, before any engine process starts."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Validate ``--additional-config`` and what the plugin cannot work with.

        Raises a LiteLVLMError with a sentence that says the fix.
        """
        model_config = vllm_config.model_config
        config = model_config.hf_config
        check_tower(config)
        _check_engine(vllm_config)
        additional = vllm_config.additional_config
        given = additional.get(OPTIONS_KEY) if isinstance(additional, dict) else None
        server = parse_server_options(given)
        tower = config.vision_config
        patches = patch_count(tower)
        _check_defaults(server, patches)
        _check_step(vllm_config.scheduler_config, server.highest_budget(patches))
        clip_model = find_clip_model(server.clip_model, config, model_config.model)
        clip_config = read_clip_config(clip_model, tower)
        if Path(clip_model).is_dir():
            clip_model = str(Path(clip_model).resolve())
        if server.original_positions:
            _install_positions(vllm_config)
        # Plain JSON: vLLM hashes and pickles it.
        setattr(
            config,
            CONFIG_KEY,
            {
                "server": server.model_dump(),
                "clip_model": clip_model,
                "text_tokens": clip_config.text_config.max_position_embeddings,
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
        clip_model=carried["clip_model"],
        text_tokens=carried["text_tokens"],
        block=carried["block"],
    )


def settle_options(
    asked: object, server: ServerOptions, patches: int
) -> tuple[PruningOptions, Plan, int]:
    """A request's options, with the plan and the focus that an image has by them, all of it shown.

    Raises OptionsError for what is not allowed.
    """
    options = parse_request_options(asked, server)
    return options, *_settle(options, server, patches)


def _settle(options: PruningOptions, server: ServerOptions, patches: int) -> tuple[Plan, int]:
    plan = Plan.decide(options, patches)
    focus = settle_focus(options, plan.pruner, plan.budget)
    server.check_request(options, plan.budget)
    return plan, focus


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


def _install_positions(vllm_config: VllmConfig) -> None:
    """Have vLLM ask the model for positions, and hand it the pruned tokens to place them by.

    Its switch for that second half is named for videos, of which these models have none.
    """
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
    model_config = vllm_config.model_config
    model_config.hf_config.mrope_section = _SECTIONS
    assert model_config.multimodal_config is not None
    model_config.multimodal_config.video_pruning_rate = 0.5


def _check_defaults(server: ServerOptions, patches: int) -> None:
    """A default that every request would be refused for is an error at start, a variant too."""
    for method in server.methods or ():
        pruner_class(method)  # one that is unknown is refused
    for name, options in server.sets.items():
        try:
            build_pruner(options.method, options.parameters, (*COMMON_OPTIONS, *SERVER_OPTIONS))
            _settle(options, server, patches)
        except OptionsError as error:
            raise OptionsError(f"Variant {name!r}: {error}" if name else str(error)) from None
