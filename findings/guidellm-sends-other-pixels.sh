#!/usr/bin/env bash
# guidellm 0.8.1 with transformers 5.24.0 and pillow 13.0.0. Installing takes minutes.
#
# A benchmark of image requests is thought to send the images of its data set. guidellm opens each and
# encodes it anew as a JPEG, whatever it was: a server gets other pixels than the file has, which matters
# where answers, hashes of pictures or sizes of uploads are compared with another client's.
#
# Fails if a PNG arrives as it is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 'guidellm[vision]==0.8.1' \
    transformers==5.24.0 pillow==13.0.0
cd "$folder"
cat >jpeg.py <<'PY'
import base64
import io
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

received = []

class Server(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "model", "object": "model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        received.extend(
            part["image_url"]["url"]
            for message in body["messages"]
            for part in message["content"]
            if part["type"] == "image_url"
        )
        message = {"role": "assistant", "content": "a"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self.answer({
            "id": "1", "object": "chat.completion", "created": 1, "model": "model", "usage": usage,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        })

server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
word = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
PreTrainedTokenizerFast(tokenizer_object=word, unk_token="<unk>").save_pretrained("tokenizer")
picture = Image.effect_noise((64, 48), 80).convert("RGB")
picture.save("picture.png")
with open("data.jsonl", "w") as file:
    json.dump({"prompt": "What is this?", "image": "picture.png"}, file)
subprocess.run(
    [
        "guidellm", "run", "--disable-progress", "--profile", "kind=synchronous",
        "--constraint", "kind=max_requests,count=1",
        "--backend", f"kind=openai_http,target=http://127.0.0.1:{server.server_port},model=model,stream=false",
        "--tokenizer", "kind=huggingface_auto,model=tokenizer",
        "--data", "kind=json_file,path=data.jsonl",
    ],
    check=True, capture_output=True,
)
head, _, data = received[0].partition(",")
sent = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
differ = sum(one != other for one, other in zip(picture.tobytes(), sent.tobytes()))
print("a PNG was given; sent was", head, sent.size, "with", differ, "of", len(sent.tobytes()), "values changed")
assert head == "data:image/jpeg;base64", head
assert differ > len(sent.tobytes()) / 2
PY
PATH=$folder/venv/bin:$PATH HF_HUB_OFFLINE=1 python jpeg.py
