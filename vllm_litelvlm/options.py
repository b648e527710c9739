"""What users may ask for: the only parser and validator of options.

A request's options come from ``mm_processor_kwargs={"litelvlm": {...}}``, the server's from
``--additional-config '{"litelvlm": {...}}'``. Whatever a request does not set, the variant that
it names sets, then the server's options, and whatever those do not set, the defaults below.

Options fall in two groups. Those of :data:`COMMON_OPTIONS`, such as ``budget`` and ``texts``, are
common to every method and live here. The rest belong to one method; they travel in
:attr:`PruningOptions.parameters` and the method's own class validates them
(:mod:`vllm_litelvlm.pruning.registry`).
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vllm_litelvlm.errors import OptionsError

#: The one key in ``mm_processor_kwargs`` and ``--additional-config`` that is ours.
OPTIONS_KEY = "litelvlm"

Model = TypeVar("Model", bound=BaseModel)

_BUDGET = (
    "a token count (whole number from 1) or a fraction of the image's tokens (0 < number <= 1)"
)
_TEXTS = "one non-empty text or a non-empty list of them"
_METHODS = "a non-empty list of method names that requests may choose from, or null for all"
_VARIANTS = (
    'an object of names to sets of pruning options, such as {"fast": {"budget": 64}}; a name '
    "consists of letters, digits, '.', '_' and '-'"
)
_OWN_NAME = "served_model_name"
_VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StrictModel(BaseModel):
    """Frozen options that refuse unknown keys, wrong types, NaN and infinities."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,  # so that a default equals itself spelled out: 8 is 8.0
    )


class PruningOptions(StrictModel):
    """Which visual tokens of an image stay, as one user asked for it."""

    budget: int | float = Field(1 / 3, union_mode="left_to_right", description=_BUDGET)
    texts: tuple[str, ...] | None = Field(None, description=_TEXTS)
    guide: Literal["last", "first", "all"] = Field(
        "last",
        description=(
            '"last", "first" or "all": the user turns of the conversation that guide the pruning '
            "when no texts are named"
        ),
    )
    method: str = Field("litelvlm", description="the name of a pruning method")
    focus: float = Field(
        0,
        ge=0,
        lt=1,
        description=(
            "a number from 0 (one layer) and below 1: the share of the budget that the text "
            "chooses in a layer of its own, behind a base that no text touches"
        ),
    )
    positions: Literal["compact", "original"] = Field(
        "compact",
        description=(
            '"compact" or "original": whether the language model reads the kept tokens at '
            "consecutive positions, or each at its place in the whole image"
        ),
    )
    frame: Literal["crop", "pad"] = Field(
        "crop",
        description=(
            '"crop" or "pad": whether the model sees the middle square of a picture, as its '
            "processor cuts it, or all of it, padded to a square with the processor's mean colour"
        ),
    )
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_count_or_fraction(cls, budget: object) -> object:
        if isinstance(budget, float) and budget > 1:
            budget = _whole(budget)
        is_count = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1
        if not (is_count or (isinstance(budget, float) and 0 < budget <= 1)):
            raise ValueError(_BUDGET)
        return budget

    @field_validator("texts", mode="before")
    @classmethod
    def _texts_are_a_tuple(cls, texts: object) -> object:
        if texts is None:
            return None
        listed = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed, list | tuple) or not listed:
            raise ValueError(_TEXTS)
        if not all(isinstance(text, str) and text.strip() for text in listed):
            raise ValueError(_TEXTS)
        return tuple(_valid_unicode(text) for text in listed)

    def budget_tokens(self, patches: int, shown: int | None = None) -> int:
        """The budget in tokens for an image of ``patches`` tokens; a fraction rounds half up.

        ``shown``: how many of them are no padding. A fraction is one of these, and a count of more
        is all of them. Raises OptionsError when a count exceeds ``patches``.
        """
        shown = patches if shown is None else shown
        if isinstance(self.budget, float):
            return max(1, math.floor(self.budget * shown + 0.5))
        if self.budget > patches:
            raise OptionsError(
                f"litelvlm option 'budget' is {as_json(self.budget)}; allowed: at most {patches}, "
                "the number of this image's visual tokens (which keeps them all)."
            )
        return min(self.budget, shown)


class VariantOptions(PruningOptions):
    """A variant's options, and a name of its own to serve it by, beside MODEL:VARIANT."""

    served_model_name: str | None = Field(
        None, min_length=1, description="a name for the variant that no other model here has"
    )


class ServerOptions(StrictModel):
    """What the operator decides: the defaults of requests, and the bounds on what they may ask."""

    defaults: PruningOptions = Field(default_factory=PruningOptions)
    clip_model: str | None = Field(
        None,
        min_length=1,
        description=(
            "the name on the Hugging Face hub, or the folder, of the CLIP (or SigLIP) checkpoint "
            "that the vision tower was taken from"
        ),
    )
    methods: tuple[str, ...] | None = Field(None, description=_METHODS)
    min_budget: int = Field(1, ge=1, description="a whole number from 1")
    max_budget: int | None = Field(None, ge=1, description="a whole number from 1")
    max_texts: int = Field(64, ge=1, description="a whole number from 1")
    max_text_length: int = Field(4096, ge=1, description="a whole number of characters from 1")
    feature_cache_gb: float = Field(
        0.5, ge=0, description="a number of GiB from 0 (no cache) for images' features"
    )
    text_cache: int = Field(
        4096, ge=0, description="a whole number from 0 (no cache) of texts whose embeddings stay"
    )
    pixel_cache_gb: float = Field(
        0.25, ge=0, description="a number of GiB from 0 (no cache) for preprocessed images"
    )
    sam_cache_gb: float = Field(
        1, ge=0, description="a number of GiB from 0 (no cache) for SAM's features of pictures"
    )
    sam_device: str | None = Field(
        None,
        min_length=1,
        description=(
            'the device that SAM computes on, such as "cpu" or "cuda:0", or null: the first GPU, '
            "where the engine left room on it, or the CPU"
        ),
    )
    request_options: bool = Field(True, description="true or false")
    page: bool = Field(True, description="true or false")
    variants: dict[str, VariantOptions] = Field(default_factory=dict, description=_VARIANTS)

    @field_validator("methods", mode="before")
    @classmethod
    def _methods_are_a_tuple(cls, methods: object) -> object:
        if methods is None:
            return None
        if not isinstance(methods, list | tuple) or not methods:
            raise ValueError(_METHODS)
        return tuple(methods)

    @property
    def sets(self) -> dict[str, PruningOptions]:
        """Every set of options that the operator has written: defaults, under "", and variants."""
        return {"": self.defaults, **self.variants}

    @property
    def original_positions(self) -> bool:
        """Whether tokens can keep their own positions: what that takes is installed at start."""
        return any(options.positions == "original" for options in self.sets.values())

    def of(self, variant: str | None) -> "ServerOptions":
        """The options of requests that name a variant, or none: their defaults are its."""
        if variant is None:
            return self
        return self.model_copy(update={"defaults": self.variants[variant]})

    def highest_budget(self, patches: int) -> int:
        """The most tokens that a request may ask for of an image of ``patches`` tokens."""
        return min(patches, self.max_budget or patches)

    def fitted_budget(self, options: PruningOptions, tokens: int) -> int:
        """The budget in tokens for an image whose size decides how many it has: never refused.

        A count of more than the image has is all of them; a fraction stays within the bounds.
        """
        if isinstance(options.budget, int):
            return min(options.budget, tokens)
        asked = max(options.budget_tokens(tokens), self.min_budget)
        return min(asked, self.highest_budget(tokens))

    def check_request(self, options: PruningOptions, budget: int | None) -> None:
        """Raise OptionsError where a request's merged options leave the operator's bounds.

        ``budget`` is what they come to, in tokens; None where every image has its own.
        """
        if self.methods is not None and options.method not in self.methods:
            raise OptionsError(
                f"litelvlm option 'method' is {as_json(options.method)}; this server allows "
                f"{', '.join(self.methods)}."
            )
        highest = self.max_budget
        too_many = budget is not None and highest is not None and budget > highest
        if too_many or (budget is not None and budget < self.min_budget):
            allowed = f"{self.min_budget} to {'all tokens' if highest is None else highest}"
            raise OptionsError(
                f"litelvlm option 'budget' comes to {budget} tokens; this server allows {allowed}."
            )
        if options.positions == "original" and not self.original_positions:
            raise OptionsError(
                "litelvlm option 'positions' is \"original\", which this server was not started "
                "for: that takes --additional-config "
                '\'{"litelvlm": {"positions": "original"}}\'. Leave it out, or ask for "compact".'
            )
        if options.texts is None:
            return
        if len(options.texts) > self.max_texts:
            raise OptionsError(
                f"litelvlm option 'texts' has {len(options.texts)} texts; "
                f"this server allows at most {self.max_texts}."
            )
        longest = max(map(len, options.texts))
        if longest > self.max_text_length:
            raise OptionsError(
                f"litelvlm option 'texts' has a text of {longest} characters; this server allows "
                f"at most {self.max_text_length} (CLIP reads 77 tokens of each)."
            )


def parse_request_options(data: object, server: ServerOptions) -> PruningOptions:
    """Merge a request's options over the server's. ``data`` is the request's JSON value or None.

    Method parameters and ``focus`` of the server hold for the server's own method only: a request
    that names another method starts from the defaults. What is null was not given.
    """
    if data is None:
        return server.defaults
    given = _as_mapping(data, "the request's litelvlm options")
    if given and not server.request_options:
        raise OptionsError(
            f"litelvlm options {as_json(sorted(given))} were sent, but this server does not take "
            "options from requests; leave them out."
        )
    return _parse_pruning_options(given, server.defaults)


def parse_server_options(data: object, own: PruningOptions | None = None) -> ServerOptions:
    """Parse the value of ``litelvlm`` in ``--additional-config``; None gives the defaults.

    ``own``: what requests have by default, where the model has other defaults than others.
    """
    own = PruningOptions() if own is None else own
    if data is None:
        return ServerOptions(defaults=own)
    given = _as_mapping(data, "the server's litelvlm options")
    bounds = {name: value for name, value in given.items() if name in SERVER_OPTIONS}
    pruning = {name: value for name, value in given.items() if name not in SERVER_OPTIONS}
    defaults = _parse_pruning_options(pruning, own)
    variants = _parse_variants(bounds.pop("variants", None), defaults)
    server = parse(ServerOptions, {**bounds, "defaults": defaults, "variants": variants})
    if server.max_budget is not None and server.max_budget < server.min_budget:
        raise OptionsError(
            f"litelvlm option 'max_budget' is {server.max_budget}; "
            f"allowed: at least min_budget, {server.min_budget}."
        )
    return server


def parse(model: type[Model], data: Mapping[str, Any], known: tuple[str, ...] = ()) -> Model:
    """Validate ``data`` as ``model``, turning the first fault into an OptionsError sentence.

    ``known`` names further options for the sentence about an unknown one. Null is "not given" and
    64.0 a whole number, as data frames write them.
    """
    try:
        return model.model_validate(_as_meant(model, data))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if not fault["loc"]:  # what a model says of its options together
            raise OptionsError(f"litelvlm options are refused: {fault['msg']}.") from None
        name = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            names = ", ".join(sorted({*model.model_fields, *known}))
            raise OptionsError(
                f"litelvlm option {_quoted(name)} is unknown; allowed: {names}."
            ) from None
        allowed = model.model_fields[name].description or fault["msg"]
        raise OptionsError(
            f"litelvlm option '{name}' is {as_json(fault['input'])}; allowed: {allowed}."
            f"{_unquoted(fault['input'], model.model_fields[name].annotation)}"
        ) from None


COMMON_OPTIONS = tuple(name for name in PruningOptions.model_fields if name != "parameters")
SERVER_OPTIONS = tuple(name for name in ServerOptions.model_fields if name != "defaults")


def _as_meant(model: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """Options as Python has them: without those that are null, floats as integers where meant."""
    meant = dict(data)
    for name, field in model.model_fields.items():
        if name in meant and meant[name] is None:
            del meant[name]
        elif name in meant and field.annotation in (int, int | None):
            meant[name] = _whole(meant[name])
    return meant


def _whole(number: object) -> object:
    """64.0 as 64; anything else as it is."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _unquoted(value: object, annotation: Any) -> str:
    """A hint where a number, true or false stands in quotes."""
    if not isinstance(value, str) or len(value) >= 20:
        return ""
    kinds = get_args(annotation) or (annotation,)
    is_number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value) and (int in kinds or float in kinds)
    is_truth = value in ("true", "false") and bool in kinds
    return f" Write it without quotes: {value}." if is_number or is_truth else ""


def _parse_variants(given: object, defaults: PruningOptions) -> dict[str, VariantOptions]:
    """Every variant's options over the server's own."""
    variants: dict[str, VariantOptions] = {}
    if given is None:
        return variants
    for name, value in _as_mapping(given, "litelvlm option 'variants'", _VARIANTS).items():
        if not _VARIANT_NAME.fullmatch(name):
            raise OptionsError(
                f"litelvlm option 'variants' has the name {as_json(name)}; allowed: {_VARIANTS}."
            )
        try:
            options = dict(_as_mapping(value, f"the options of litelvlm variant {name!r}"))
            own = {_OWN_NAME: options.pop(_OWN_NAME, None)}
            pruning = _parse_pruning_options(options, defaults)
            variants[name] = parse(VariantOptions, {**dict(pruning), **own})
        except OptionsError as error:
            raise OptionsError(f"Variant {name!r}: {error}") from None
    return variants


def _parse_pruning_options(given: Mapping[str, Any], base: PruningOptions) -> PruningOptions:
    said = {
        name: value
        for name, value in given.items()
        if value is not None or name not in (*COMMON_OPTIONS, *base.parameters)
    }
    common = {name: value for name, value in said.items() if name in COMMON_OPTIONS}
    own = {name: value for name, value in said.items() if name not in COMMON_OPTIONS}
    same_method = common.get("method", base.method) == base.method
    parameters = {**base.parameters, **own} if same_method else own
    inherited = {name: getattr(base, name) for name in COMMON_OPTIONS}
    if not same_method:
        del inherited["focus"]
    return parse(PruningOptions, {**inherited, **common, "parameters": parameters})


def _as_mapping(
    data: object,
    what: str,
    allowed: str = 'an object such as {"budget": 128, "texts": ["the red car"]}',
) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        hint = " Send the object itself, not a text that holds it." if _holds_object(data) else ""
        raise OptionsError(f"{what} are {as_json(data)}; allowed: {allowed}.{hint}")
    return data


def _holds_object(data: object) -> bool:
    try:
        return isinstance(data, str) and isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def as_json(value: object, longest: int = 80) -> str:
    """A value as JSON has it, for a sentence; cut where it is long."""
    try:
        text = _valid_unicode(json.dumps(value, ensure_ascii=False))
    except TypeError:  # no JSON
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        text = "a number of too many digits"
    except RecursionError:
        text = "a value of too many levels"
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def _quoted(name: str) -> str:
    """An option's name for a sentence."""
    return "'" + as_json(name).replace('"', "") + "'"


def _valid_unicode(text: str) -> str:
    """Replace lone surrogates, which JSON can spell but no encoder accepts."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
