"""Method names to classes. Methods load when they are first asked for."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from vllm_litelvlm import __version__
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import COMMON_OPTIONS, PruningOptions, as_json, parse
from vllm_litelvlm.pruning.base import Pruner, Signal
from vllm_litelvlm.pruning.decoder import DecoderPruner
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.ranking import part
from vllm_litelvlm.pruning.traits import ANY, Traits
from vllm_litelvlm.pruning.window import Window

#: Third parties add a method by an entry point of this group: ``name = "module:Class"``.
ENTRY_POINT_GROUP = "vllm_litelvlm.pruners"

_BUILT_IN = {
    "litelvlm": "vllm_litelvlm.pruning.litelvlm:LiteLVLM",
    "fovea": "vllm_litelvlm.pruning.fovea:Fovea",
    "random": "vllm_litelvlm.pruning.random:Random",
    "context": "vllm_litelvlm.pruning.context:ContextOnly",
    "cls-attention": "vllm_litelvlm.pruning.cls_attention:ClsAttention",
    "trim": "vllm_litelvlm.pruning.trim:Trim",
    "prumerge": "vllm_litelvlm.pruning.prumerge:PruMerge",
    "prumerge+": "vllm_litelvlm.pruning.prumerge_plus:PruMergePlus",
    "visionzip": "vllm_litelvlm.pruning.visionzip:VisionZip",
    "vispruner": "vllm_litelvlm.pruning.vispruner:VisPruner",
    "divprune": "vllm_litelvlm.pruning.divprune:DivPrune",
    "cdpruner": "vllm_litelvlm.pruning.cdpruner:CDPruner",
    "scope": "vllm_litelvlm.pruning.scope:Scope",
    "mmtok": "vllm_litelvlm.pruning.mmtok:MMTok",
    "eadp": "vllm_litelvlm.pruning.eadp:EADP",
    "holov": "vllm_litelvlm.pruning.holov:HoloV",
    "nuwa": "vllm_litelvlm.pruning.nuwa:Nuwa",
    "prunesid": "vllm_litelvlm.pruning.prunesid:PruneSID",
    "tome": "vllm_litelvlm.pruning.tome:ToMe",
    "keep-all": "vllm_litelvlm.pruning.keep_all:KeepAll",
}

#: Methods inside the language model, which only the evaluation can run.
_DECODER = {
    "fastv": "vllm_litelvlm.pruning.fastv:FastV",
    "sparsevlm": "vllm_litelvlm.pruning.sparsevlm:SparseVLM",
}


@cache
def method_names() -> tuple[str, ...]:
    """Every method's name, the built-in ones first."""
    added = (entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
    return tuple(dict.fromkeys([*_BUILT_IN, *added]))


@cache
def pruner_class(name: str) -> type[Pruner]:
    """The class of a method. Raises OptionsError naming the methods there are."""
    if name in _DECODER:
        raise OptionsError(
            f"litelvlm option 'method' is {as_json(name)}, which prunes inside the language model "
            "by its attention maps; paged attention does not give them, so it runs only in the "
            f"evaluation, with transformers. Allowed here: {', '.join(method_names())}."
        )
    if name in _BUILT_IN:
        found = _load(_BUILT_IN[name])
    else:
        entries = entry_points(group=ENTRY_POINT_GROUP, name=name)
        if not entries:
            raise OptionsError(
                f"litelvlm option 'method' is {as_json(name)}; "
                f"allowed: {', '.join(method_names())}."
            )
        found = next(iter(entries)).load()
    if not (isinstance(found, type) and issubclass(found, Pruner)):
        raise OptionsError(f"litelvlm method {name!r} is {found!r}, not a Pruner class.")
    return found


@cache
def method_version(name: str) -> str:
    """What the tokens that a method keeps depend on, besides its options: the code's version."""
    versions = [__version__]
    if name not in _BUILT_IN:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            if entry.dist is not None:
                versions.append(f"{entry.dist.name} {entry.dist.version}")
    return ", ".join(versions)


def build_pruner(
    method: str, parameters: Mapping[str, Any], known: tuple[str, ...] = COMMON_OPTIONS
) -> Pruner:
    """A method with its options.

    Raises OptionsError for an option that it does not have; ``known`` are those that would have
    been taken elsewhere, for the message.
    """
    return parse(pruner_class(method), parameters, known)


def pruner_for(options: PruningOptions, traits: Traits) -> Pruner:
    """The method that a request's options name, for a model of these traits.

    Raises OptionsError for what the model cannot do.
    """
    own = traits.parameters.get(options.method, {})
    pruner = build_pruner(options.method, {**own, **options.parameters})
    if lacking := pruner.needs - traits.signals:
        able = ", ".join(offered_methods(traits))
        raise OptionsError(
            f"litelvlm option 'method' is {as_json(options.method)}, which goes by "
            f"{', '.join(sorted(lacking))} as it is asked for; {traits.family} models do not have "
            f"that. They can run: {able}."
        )
    if options.focus and not traits.layered:
        raise OptionsError(
            f"litelvlm option 'focus' is {options.focus}, but images of {traits.family} models "
            "come in one layer; leave it out."
        )
    if options.frame != "crop" and not traits.crops:
        raise OptionsError(
            f"litelvlm option 'frame' is {as_json(options.frame)}, but {traits.family} models see "
            "all of a picture as it is; leave it out."
        )
    return pruner


def offered_methods(traits: Traits) -> list[str]:
    """The methods that a model of these traits can run, as they are by default there."""

    def can_run(method: str) -> bool:
        pruner = build_pruner(method, traits.parameters.get(method, {}))
        return pruner.needs <= traits.signals

    return list(filter(can_run, method_names()))


def settle(
    options: PruningOptions,
    patches: int,
    window: Window | None = None,
    traits: Traits = ANY,
) -> tuple[Pruner, int]:
    """What a request's options come to for images of ``patches`` tokens: a method and a budget.

    ``window``: the patches that show the picture, where others do not. A budget of all that do is
    keep-all whatever the method. Raises OptionsError for what is not allowed.
    """
    pruner = pruner_for(options, traits)
    if options.frame == "pad" and Signal.TOWER in pruner.needs:
        raise OptionsError(
            f"litelvlm option 'frame' is \"pad\", but method {pruner.name!r} merges tokens inside "
            'the vision tower, where padding cannot be left out. Choose another method, or "crop".'
        )
    shown = patches if window is None else window.patches
    budget = options.budget_tokens(patches, shown)
    if budget == shown or isinstance(pruner, KeepAll):
        return KeepAll(), shown
    return pruner, budget


def settle_focus(options: PruningOptions, pruner: Pruner, budget: int) -> int:
    """How many of a settled budget's tokens the text chooses in a layer of its own; 0 for none.

    Raises OptionsError for a method that does not choose in layers, and for a budget that leaves
    no base.
    """
    if options.focus == 0 or isinstance(pruner, KeepAll):
        return 0
    if not pruner.layered:
        layered = ", ".join(name for name in method_names() if pruner_class(name).layered)
        raise OptionsError(
            f"litelvlm option 'focus' is {options.focus}, but method {pruner.name!r} does not "
            f"choose in layers; these do: {layered}. Leave 'focus' out, or choose one of them."
        )
    focus = max(1, part(budget, options.focus))
    if focus >= budget:
        raise OptionsError(
            f"litelvlm option 'focus' is {options.focus}, which comes to {focus} of {budget} "
            "tokens and leaves none for a base; ask for a larger budget or a smaller focus."
        )
    return focus


def check_texts(method: str, texts: Sequence[str]) -> None:
    """Raise OptionsError for a method that chooses by the text alone where there is none."""
    if not texts and pruner_class(method).requires_text:
        raise OptionsError(
            f"litelvlm option 'method' is {as_json(method)}, which chooses by the text alone, but "
            "the request has none; write one, name it in 'texts', or choose another method."
        )


def decoder_method_names() -> tuple[str, ...]:
    """The methods that prune inside the language model."""
    return tuple(_DECODER)


@cache
def decoder_pruner_class(name: str) -> type[DecoderPruner]:
    """The class of a method that prunes inside the language model."""
    found = _load(_DECODER[name])
    assert isinstance(found, type)
    assert issubclass(found, DecoderPruner)
    return found


def build_decoder_pruner(method: str, parameters: Mapping[str, Any]) -> DecoderPruner:
    """A method that prunes inside the language model, with its options.

    Raises OptionsError for an option that it does not have.
    """
    return parse(decoder_pruner_class(method), parameters, COMMON_OPTIONS)


def _load(target: str) -> object:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
