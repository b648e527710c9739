# litellm-proxy: options are fixed in its config, directly under ``litellm_params``.
set -euo pipefail

port=${PORT:-4000}
LITELLM_MASTER_KEY=sk-$(openssl rand -hex 24) # it does not start without one
export LITELLM_MASTER_KEY
cat > config.yaml <<CONFIG
model_list:
  - model_name: pruned
    litellm_params:
      model: hosted_vllm/$MODEL
      api_base: $BASE_URL
      api_key: none
      mm_processor_kwargs: {litelvlm: {budget: $BUDGET}}
CONFIG
litellm --config config.yaml --host 127.0.0.1 --port "$port" > log 2>&1 &
trap "kill $!; wait" EXIT
until curl -sf "127.0.0.1:$port/health/readiness" > ready; do kill -0 $! || { tail log; exit 1; }; sleep 1; done

curl -sw '\n' -H "Authorization: Bearer $LITELLM_MASTER_KEY" "127.0.0.1:$port/health" | tee health
grep -q '"unhealthy_count": *0' health # its probe is a text-only turn with the options

python - "http://127.0.0.1:$port/v1" <<'PYTHON'
import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

content = [{"type": "text", "text": "What colour is the circle?"}]
if image := os.environ["IMAGE"]:
    url = f"data:image/png;base64,{base64.b64encode(Path(image).read_bytes()).decode()}"
    content.insert(0, {"type": "image_url", "image_url": {"url": url}})

ask = OpenAI(base_url=sys.argv[1], api_key=os.environ["LITELLM_MASTER_KEY"]).chat.completions.create
messages = [{"role": "user", "content": content}]
answer = ask(model="pruned", messages=messages, max_tokens=8)
print(answer.choices[0].message.content, answer.usage)
for chunk in ask(model="pruned", messages=messages, max_tokens=8, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
PYTHON
