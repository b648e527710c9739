# evalscope perf: options go in --extra-args, as JSON.
question='{"type": "text", "text": "What colour is the circle?"}'
if [ -n "$IMAGE" ]; then
    url="data:image/png;base64,$(base64 < "$IMAGE" | tr -d '\n')"
    picture="{\"type\": \"image_url\", \"image_url\": {\"url\": \"$url\"}}, "
fi
echo "[{\"role\": \"user\", \"content\": [$picture$question]}]" > data.jsonl

evalscope perf --url "$BASE_URL/chat/completions" --api openai --model "$MODEL" \
    --dataset line_by_line --dataset-path data.jsonl --number 1 --max-tokens 8 \
    --extra-args "{\"mm_processor_kwargs\": {\"litelvlm\": {\"budget\": $BUDGET}}}"
