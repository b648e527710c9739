"""Many referring expressions about one image, all at once.

    vllm serve llava-hf/llava-1.5-7b-hf --plugin litelvlm
    python examples/batch_expressions.py photo.jpg "the red cup" "the spoon" "the plate" --shared

Each expression prunes the image for itself. With --shared all of them are named in ``texts``:
every request then keeps the same tokens, which the server computes once and whose KV blocks the
prefix cache serves to all but the first request.
"""

import argparse
import asyncio
import base64
import mimetypes
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

QUESTION = "Where is {} in this image?"


async def ask_all(arguments: argparse.Namespace) -> list[Any]:
    client = AsyncOpenAI(base_url=arguments.url, api_key="none")
    model = (await client.models.list()).data[0].id
    kind = mimetypes.guess_type(arguments.image)[0] or "image/jpeg"
    url = f"data:{kind};base64,{base64.b64encode(arguments.image.read_bytes()).decode()}"

    async def ask(expression: str) -> Any:
        options: dict[str, Any] = {"budget": arguments.budget}
        options["texts"] = arguments.expressions if arguments.shared else [expression]
        return await client.chat.completions.create(
            model=model,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": QUESTION.format(expression)},
                    ],
                }
            ],
            max_tokens=arguments.max_tokens,
            temperature=0,
            extra_body={"mm_processor_kwargs": {"litelvlm": options}},
        )

    return list(await asyncio.gather(*map(ask, arguments.expressions)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path, help="path of a photograph")
    parser.add_argument("expressions", nargs="+", help='such as "the red cup"')
    parser.add_argument("--shared", action="store_true", help="one pruned set for all of them")
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--max-tokens", type=int, default=32)
    arguments = parser.parse_args()
    began = time.perf_counter()
    completions = asyncio.run(ask_all(arguments))
    for expression, completion in zip(arguments.expressions, completions, strict=True):
        answer = " ".join((completion.choices[0].message.content or "").split())
        print(f"{expression} ({completion.usage.prompt_tokens} prompt tokens): {answer}")
    print(f"{len(completions)} expressions in {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
