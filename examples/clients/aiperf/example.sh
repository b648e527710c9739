# aiperf: options go in --extra-inputs, as JSON.
options="{\"mm_processor_kwargs\": {\"litelvlm\": {\"budget\": $BUDGET}}, \"max_completion_tokens\": 8}"
picture=${IMAGE:+", \"image\": \"$IMAGE\""}
echo "{\"text\": \"What colour is the circle?\"$picture}" > data.jsonl

# Without --use-server-token-count it counts the text by itself, and shows no visual token.
aiperf profile --url "${BASE_URL%/v1}" --endpoint-type chat --streaming --model "$MODEL" \
    --tokenizer "$TOKENIZER" --use-server-token-count --ui none --extra-inputs "$options" \
    --input-file data.jsonl --custom-dataset-type single_turn --request-count 4
