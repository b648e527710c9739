"""The page's file, and the pictures that it offers."""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_EXAMPLES = _FOLDER / "examples"


@cache
def document() -> str:
    """HTML with its style and its script, and nothing from anywhere else."""
    return (_FOLDER / "index.html").read_text(encoding="utf-8")


@cache
def headers() -> dict[str, str]:
    """What a browser may do with the page: run its own script, and ask this server alone."""
    policy = [
        "default-src 'none'",
        f"script-src {_hashes('script')}",
        f"style-src {_hashes('style')}",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


@cache
def examples() -> list[dict[str, Any]]:
    """Pictures to begin with: file name, title, description, expressions and a question each."""
    found: list[dict[str, Any]] = json.loads(
        (_EXAMPLES / "examples.json").read_text(encoding="utf-8")
    )
    return found


def example(file: str) -> Path | None:
    """An example's picture; None for a name that is none of theirs."""
    known = {one["file"] for one in examples()}
    return _EXAMPLES / file if file in known else None


def _hashes(element: str) -> str:
    """Of the text of every such element, as a Content-Security-Policy names it."""
    texts = re.findall(rf"<{element}>(.*?)</{element}>", document(), re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
