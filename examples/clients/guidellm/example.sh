# guidellm: options go in `extras.body` of --backend.
options="extras.body.mm_processor_kwargs.litelvlm.budget=$BUDGET"
picture=${IMAGE:+", \"image\": \"$IMAGE\""}
echo "{\"prompt\": \"What colour is the circle?\"$picture}" > data.jsonl

guidellm run --disable-progress --profile kind=synchronous --constraint kind=max_requests,count=1 \
    --backend "kind=openai_http,target=${BASE_URL%/v1},model=$MODEL,$options" \
    --tokenizer "kind=huggingface_auto,model=$TOKENIZER" --data kind=json_file,path=data.jsonl
