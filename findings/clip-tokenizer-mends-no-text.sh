#!/usr/bin/env bash
# transformers 5.19.0, tokenizers as it pulls them, ftfy 6.3.1, open_clip_torch 3.3.0.
#
# The tokenizer that CLIP was trained with mends a text before it splits it (ftfy, then HTML entities).
# transformers' CLIPTokenizer does neither, whether ftfy is installed or not, and says nothing: a phone's
# apostrophe becomes two pieces instead of the one that CLIP knows, a ligature and an entity stay as they
# are. That is seen here without any published vocabulary, in what its normalizer and its splitter give.
#
# Fails if transformers mends one of the texts, or if open_clip no longer does.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=$folder/venv/bin/pip
"$pip" install --quiet transformers==5.19.0 ftfy==6.3.1
"$pip" download --quiet --no-deps --dest "$folder" open_clip_torch==3.3.0
python3 -m zipfile -e "$folder"/open_clip_torch-*.whl "$folder/open_clip"
grep -n 'ftfy.fix_text\|html.unescape' "$folder/open_clip/open_clip/tokenizer.py"

"$folder/venv/bin/python" - <<'PY'
import html

import ftfy
from transformers import CLIPTokenizer

vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
backend = CLIPTokenizer(vocab=vocab, merges=[]).backend_tokenizer

def pieces(text):
    normal = backend.normalizer.normalize_str(text)
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]

for text in ("the player\u2019s shirt", "\ufb01sh", "salt &amp; pepper"):
    mended = html.unescape(ftfy.fix_text(text))
    as_it_is, as_trained = pieces(text), pieces(mended)
    print(f"{text!r}: {as_it_is}; mended first: {as_trained}")
    assert as_it_is != as_trained, "transformers mends this text now"
PY
