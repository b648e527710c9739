"""Several things awaited as one."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def together(parts: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """What they give, in order; where one fails, or this is cancelled, the others end."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
