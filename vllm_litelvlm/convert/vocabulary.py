"""GLaMM's tokenizer as a fast one that gives the same ids."""

from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from vllm_litelvlm.convert.reading import read_json
from vllm_litelvlm.errors import CompatibilityError, LiteLVLMError
from vllm_litelvlm.grounding.layout import SEG_TOKEN

IMAGE_TOKEN = "<image>"
#: Without these a checkpoint is no GLaMM: the prompt or the masks need them.
NEEDED = ("<im_start>", "<im_end>", SEG_TOKEN)
SPACE = "▁"

#: What could differ between SentencePiece and its copy: spaces, lines, bytes, digits, lower case.
PROBES = (
    "Can you please segment the left-most man in this image?",
    "  two  spaces ,\tand a tab\n\nand lines ",
    " ",
    "1234567 ½ ﬁne ＡＢＣ İstanbul",
    "東京 \U0001f408\u200d \u200b\u00a0\u0301",
)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and what the model has to know of it."""

    tokenizer: Any
    #: Entries of GLaMM's own.
    size: int
    image_id: int
    seg_id: int
    #: That no text gives.
    unknown_id: int


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a GLaMM folder, with ``<image>`` added.

    GLaMM splits a prompt at ``<image>`` and tokenizes the pieces with the slow Llama tokenizer of
    transformers 4.28: it takes added tokens out with the spaces on both sides of them (but not
    those beside ``<s>``, ``</s>`` and ``<unk>``), and SentencePiece puts a space in front of
    everything between them. One fast tokenizer does the same to a whole prompt, but for the control
    characters U+001C to U+001F beside an added token, which are spaces to Python alone.
    ``<image>`` is the first id without an entry, unless GLaMM's tokenizer has it.

    Raises CompatibilityError for the tokenizer of another kind of model, and LiteLVLMError where
    the package ``sentencepiece`` is not installed.
    """
    model = _read_sentencepiece(folder / "tokenizer.model")
    added = _added_tokens(folder, len(model))
    tokenizer = _copy(model)
    _check_copy(folder, model, tokenizer)
    marks = [number for number in range(len(model)) if _is_mark(model, number)]
    tokenizer.add_special_tokens(
        [_added(model.id_to_piece(number), strips=False, special=True) for number in marks]
    )
    for token in added:
        # Not special: an answer shows them, unless asked otherwise, as GLaMM's tokenizer does.
        is_image = token == IMAGE_TOKEN
        tokenizer.add_tokens([_added(token, strips=not is_image, special=is_image)])
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([_added(IMAGE_TOKEN, strips=False, special=True)])
    if moved := [
        token for token, number in added.items() if tokenizer.token_to_id(token) != number
    ]:
        raise CompatibilityError(
            f"The added tokens {', '.join(moved)} of {folder} are in its tokenizer.model as well; "
            "GLaMM's are not."
        )
    wrapped = _wrapped(folder, model, tokenizer)
    return Vocabulary(
        tokenizer=wrapped,
        size=size,
        image_id=wrapped.convert_tokens_to_ids(IMAGE_TOKEN),
        seg_id=added[SEG_TOKEN],
        unknown_id=model.unk_id(),
    )


def _read_sentencepiece(file: Path) -> Any:
    try:
        sentencepiece: Any = import_module("sentencepiece")
    except ModuleNotFoundError:
        raise LiteLVLMError(
            "GLaMM's tokenizer.model is read with sentencepiece; install it: "
            "pip install sentencepiece"
        ) from None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    except (OSError, RuntimeError) as error:
        raise CompatibilityError(
            f"{file} is not a SentencePiece model ({error}). GLaMM's folder has one."
        ) from error


def _added_tokens(folder: Path, size: int) -> dict[str, int]:
    """Added token to id, by id: of ``added_tokens.json``, else of ``tokenizer_config.json``.

    Args:
        folder: of the tokenizer.
        size: entries of ``tokenizer.model``, of which none is given.

    Raises CompatibilityError unless they are such as GLaMM has.
    """
    fields = _tokenizer_config(folder)
    if fields.get("add_bos_token") is False or fields.get("add_eos_token"):
        raise CompatibilityError(
            f"{folder / 'tokenizer_config.json'} has add_bos_token {fields.get('add_bos_token')} "
            f"and add_eos_token {fields.get('add_eos_token')}; GLaMM's tokenizer puts <s> in front "
            "of a text and nothing behind it."
        )
    file = folder / "added_tokens.json"
    if file.is_file():
        found = {str(token): int(number) for token, number in read_json(file).items()}
    else:
        listed = fields.get("added_tokens_decoder", {})
        found = {str(one["content"]): int(number) for number, one in listed.items()}
    found = {token: found[token] for token in sorted(found, key=lambda token: found[token])}
    added = {token: number for token, number in found.items() if number >= size}
    if lacking := [token for token in NEEDED if token not in added]:
        raise CompatibilityError(
            f"The tokenizer of {folder} has no {', '.join(lacking)} among its added tokens "
            f"({', '.join(added) or 'none'}); GLaMM's has. Convert a GLaMM that can segment."
        )
    if list(added.values()) != list(range(size, size + len(added))):
        raise CompatibilityError(
            f"The added tokens of {folder} have the ids {list(added.values())}; expected "
            f"{size} and on without a gap, behind the {size} entries of tokenizer.model."
        )
    return added


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}


def _copy(model: Any) -> Tokenizer:
    """SentencePiece's BPE with byte fallback, as Llama uses it, without any added token.

    A merge is any pair of entries that makes an entry; the made one's score is its rank.
    """
    pieces = [model.id_to_piece(number) for number in range(len(model))]
    scores = {
        piece: model.get_score(number)
        for number, piece in enumerate(pieces)
        if _is_text(model, number)
    }
    merges = [
        (left, right)
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in scores and right in scores
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=merges,
            unk_token=model.id_to_piece(model.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # In front of every text between added tokens, even of one that begins with a space.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _is_mark(model: Any, number: int) -> bool:
    return bool(model.is_control(number) or model.is_unknown(number))


def _is_text(model: Any, number: int) -> bool:
    return not _is_mark(model, number) and not model.is_byte(number)


def _check_copy(folder: Path, model: Any, tokenizer: Tokenizer) -> None:
    """Raise CompatibilityError where any of many texts, all entries among them, has other ids."""
    pieces = [
        model.id_to_piece(number).replace(SPACE, " ")
        for number in range(len(model))
        if _is_text(model, number)
    ]
    joined = [" ".join(pieces[start : start + 50]) for start in range(0, len(pieces), 50)]
    for text in (*PROBES, *joined):
        theirs = model.encode(text)
        ours = tokenizer.encode(text, add_special_tokens=False).ids
        if theirs != ours:
            pairs = enumerate(zip_longest(theirs, ours))
            at = next(place for place, (one, other) in pairs if one != other)
            raise CompatibilityError(
                f"{folder / 'tokenizer.model'} is not like Llama's (BPE with byte fallback that "
                f"changes no character): from token {at} of {text!r} on its ids are "
                f"{theirs[at : at + 4]} ..., and {ours[at : at + 4]} ... if read as Llama's."
            )


def _added(token: str, *, strips: bool, special: bool) -> AddedToken:
    return AddedToken(token, lstrip=strips, rstrip=strips, normalized=False, special=special)


def _wrapped(folder: Path, model: Any, tokenizer: Tokenizer) -> Any:
    """As transformers has it. Its own LlamaTokenizer would build the pre-tokenizer anew."""
    begin, end = model.id_to_piece(model.bos_id()), model.id_to_piece(model.eos_id())
    unknown = model.id_to_piece(model.unk_id())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, model.bos_id())],
    )
    length = _tokenizer_config(folder).get("model_max_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        pad_token=unknown,  # GLaMM's
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **({} if length is None else {"model_max_length": length}),
    )
