#!/usr/bin/env bash
# transformers 5.19.0 and 4.31.0, sentencepiece 0.2.3, protobuf 7.36.2, and what they pull. The older
# transformers installs with Python 3.11, not with later ones.
#
# The folder of an old LLaVA or GLaMM model has a SentencePiece model, added_tokens.json, a tokenizer_config.json
# that asks for LlamaTokenizer, and a config.json whose model_type is llava, which has since become the name of
# another model in transformers. AutoTokenizer in transformers 5 does not take the class that the folder asks for
# when the model_type is that, and neither use_fast=False nor backend="sentencepiece" (which its documentation
# offers) changes it. It makes a TokenizersBackend, which puts no space before a text, or before a word that
# touches an added token, so these words fall into other pieces than SentencePiece gives them and than the model
# was trained with: "the" is no longer "▁the". Nothing is logged. With llama in place of llava, or with
# LlamaTokenizer itself, the same files give SentencePiece's pieces.
# Whichever class it is, a space before an added token becomes a piece of its own, which the slow LlamaTokenizer
# of transformers 4.31.0, of those models' time, did not make.
#
# Fails if AutoTokenizer gives the folder's own pieces, if LlamaTokenizer no longer does, or if neither makes a
# piece of the space before an added token.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.19.0 4.31.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "transformers==$version" sentencepiece==0.2.3 protobuf==7.36.2
done
cd "$folder"
cat >build.py <<'PY'
import json
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

sentences = [
    "the cat sits on the mat", "a dog runs over the green field", "where is the red car in this picture",
    "please segment the cat and the dog in this image", "it is a small house near the river",
    "the man reads a book in the garden",
]
SentencePieceTrainer.train(
    sentence_iterator=iter(sentences * 20), model_prefix="tokenizer", model_type="bpe", byte_fallback=True,
    vocab_size=340, character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
    minloglevel=2,
)
model = Path("tokenizer.model").read_bytes()
size = SentencePieceProcessor(model_proto=model).get_piece_size()
for kind in ("llava", "llama"):
    folder = Path(kind)
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    added = {"<im_start>": size, "<im_end>": size + 1, "[SEG]": size + 2}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True, **special,
    }))
PY
cat >ask.py <<'PY'
import json
import sys

from transformers import AutoTokenizer, LlamaTokenizer, __version__

TEXTS = ("the cat sits", "the cat [SEG] and the dog", "[SEG]and the dog")
ways = {
    "AutoTokenizer, llava": AutoTokenizer.from_pretrained("llava", use_fast=False),
    "AutoTokenizer, llama": AutoTokenizer.from_pretrained("llama", use_fast=False),
    "LlamaTokenizer, llava": LlamaTokenizer.from_pretrained("llava"),
}
if __version__.startswith("5."):
    ways["AutoTokenizer, llava, sentencepiece"] = AutoTokenizer.from_pretrained("llava", backend="sentencepiece")
seen = {
    way: (type(tokenizer).__name__, [tokenizer(text).input_ids for text in TEXTS])
    for way, tokenizer in ways.items()
}
json.dump({"texts": TEXTS, "seen": seen}, sys.stdout)
PY
cat >compare.py <<'PY'
import json
from pathlib import Path

from sentencepiece import SentencePieceProcessor

processor = SentencePieceProcessor("llava/tokenizer.model")
added = {number: token for token, number in json.loads(Path("llava/added_tokens.json").read_text()).items()}


def pieces(numbers):
    return [added.get(number) or processor.id_to_piece(number) for number in numbers]


now, then = (json.loads(Path(name).read_text()) for name in ("5.19.0.json", "4.31.0.json"))
for version, said in (("4.31.0", then), ("5.19.0", now)):
    for way, (kind, lists) in said["seen"].items():
        print(f"transformers {version}, {way}: {kind}")
        for text, numbers in zip(said["texts"], lists):
            print(f"    {text!r}: {' '.join(pieces(numbers))}")

start, space, touching = now["texts"]
own = [processor.bos_id(), *processor.encode(start)]
print(f"SentencePiece itself: {start!r}: {' '.join(pieces(own))}")
by_seg = {token: number for number, token in added.items()}["[SEG]"]
trained = [
    own,
    [processor.bos_id(), *processor.encode("the cat"), by_seg, *processor.encode("and the dog")],
    [processor.bos_id(), by_seg, *processor.encode("and the dog")],
]
assert all(lists == trained for _, lists in then["seen"].values())

bare = processor.piece_to_id("▁")
for way, (kind, lists) in now["seen"].items():
    lost = way.startswith("AutoTokenizer, llava")
    assert (kind == "TokenizersBackend") is lost, f"{way} is a {kind} now"
    assert (lists[0] == trained[0]) is not lost, f"{way}: the start of a text changed"
    assert (lists[2] == trained[2]) is not lost, f"{way}: a word that touches an added token changed"
    assert lists[1][lists[1].index(by_seg) - 1] == bare, f"{way}: a space before an added token changed"
PY
export HF_HUB_OFFLINE=1
5.19.0/bin/python build.py
for version in 5.19.0 4.31.0; do
    "$version/bin/python" ask.py >"$version.json" 2>"$version.log" || { cat "$version.log"; exit 1; }
done
if grep -v 'PyTorch' 5.19.0.log; then
    echo "transformers says something now"
    exit 1
fi
5.19.0/bin/python compare.py
