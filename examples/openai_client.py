"""Ask a pruning server with the ordinary OpenAI client.

    vllm serve llava-hf/llava-1.5-7b-hf --plugin litelvlm
    python examples/openai_client.py photo.jpg "Where is the red cup?" --budget 64

    vllm serve Qwen/Qwen3-VL-8B-Instruct --plugin litelvlm
    python examples/openai_client.py film.mp4 "Who opens the door?" --budget 0.25

Of a video the budget is each frame's. Pruning options ride in ``extra_body``; leave them out and
the server's own apply.
"""

import argparse
import base64
import mimetypes
from pathlib import Path
from typing import Any

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="path of a photograph or a video")
    parser.add_argument("question")
    parser.add_argument(
        "--budget",
        type=budget,
        help="visual tokens to keep, a count (64) or a fraction (0.25); the server's if left out",
    )
    parser.add_argument("--text", action="append", help="guide by this text instead (repeatable)")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()

    options = {"budget": arguments.budget, "texts": arguments.text}
    options = {name: value for name, value in options.items() if value is not None}
    client = OpenAI(base_url=arguments.url, api_key="none")
    completion = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {
                "role": "user",
                "content": [
                    part(arguments.file),
                    {"type": "text", "text": arguments.question},
                ],
            }
        ],
        max_tokens=arguments.max_tokens,
        temperature=0,
        extra_body={"mm_processor_kwargs": {"litelvlm": options}} if options else None,
    )
    print((completion.choices[0].message.content or "").strip())
    if completion.usage:
        print(f"({completion.usage.prompt_tokens} prompt tokens)")


def part(file: Path) -> dict[str, Any]:
    """A message's part with an image or a video in it."""
    kind = mimetypes.guess_type(file)[0] or "image/jpeg"
    name = "video_url" if kind.startswith("video/") else "image_url"
    data = base64.b64encode(file.read_bytes()).decode()
    return {"type": name, name: {"url": f"data:{kind};base64,{data}"}}


def budget(text: str) -> int | float:
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    main()
