# lm_eval: options go in --gen_kwargs, as JSON.
echo "{\"question\": \"What colour is the circle?\", \"answer\": \"red\", \"picture\": \"$IMAGE\"}" > data.jsonl

# A task either has a picture in every question or in none.
lm_eval run --model local-chat-completions --apply_chat_template \
    --model_args "model=$MODEL,base_url=$BASE_URL/chat/completions,max_retries=1" \
    --include_path . --tasks "${IMAGE:+picture_}question" \
    --gen_kwargs "{\"mm_processor_kwargs\": {\"litelvlm\": {\"budget\": $BUDGET}}}"
