# lmms-eval: sends nothing of its own; the model's name is a variant's, whose budget is 64.
[ "$BUDGET" = 64 ] || exit 77
echo "{\"question\": \"What colour is the circle?\", \"answer\": \"red\", \"picture\": \"$IMAGE\"}" > data.jsonl

python -m lmms_eval --model openai \
    --model_args "model_version=$MODEL-small,base_url=$BASE_URL,api_key=none,timeout=60" \
    --tasks question --include_path . --output_path results
