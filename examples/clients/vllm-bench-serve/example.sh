# vllm bench serve: options go in --extra-body, as JSON. `vllm` itself must be on PATH.
question='{"type": "text", "text": "What colour is the circle?"}'
picture=${IMAGE:+"{\"type\": \"image\", \"image\": \"$IMAGE\"}, "}
echo "{\"content\": [$picture$question]}" > data.jsonl

# Without the ready check a refused run ends with 0 and counts its requests as failed.
vllm bench serve --backend openai-chat --base-url "${BASE_URL%/v1}" --endpoint /v1/chat/completions \
    --model "$MODEL" --skip-tokenizer-init --ready-check-timeout-sec 5 \
    --dataset-name custom_image --dataset-path data.jsonl --custom-ensure-client-side-data \
    --num-prompts 4 --custom-output-len 8 \
    --extra-body "{\"mm_processor_kwargs\": {\"litelvlm\": {\"budget\": $BUDGET}}}"
