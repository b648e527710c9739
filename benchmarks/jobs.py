"""What a block asks of a server, and the requests that it takes."""

import itertools
import json
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.workload import WORDS, Workload, question
from vllm_litelvlm.options import OPTIONS_KEY


@dataclass(frozen=True)
class Job:
    """What a block asks of a server that calls its model ``model``.

    ``clients`` requests are under way at a time. Each image is asked about with ``texts`` texts,
    one after another, so ``requests`` is rounded up to a multiple of it. ``options`` are the
    plugin's; None for stock vLLM.
    """

    url: str
    model: str
    requests: int
    clients: int
    texts: int = 1
    output_tokens: int = 4
    options: Mapping[str, Any] | None = None

    @property
    def images(self) -> int:
        return -(-self.requests // self.texts)

    def split(self, processes: int) -> list["Job"]:
        """One job for each process that gets something to do."""
        parts = min(processes, self.clients, self.images)
        return [
            replace(
                self,
                requests=self.texts * share_of(self.images, number, parts),
                clients=share_of(self.clients, number, parts),
            )
            for number in range(parts)
        ]


def share_of(count: int, number: int, parts: int) -> int:
    """How many of ``count`` fall to one of so many parts."""
    return count // parts + (number < count % parts)


class Requests:
    """Makes the bodies of one process's requests, from images and texts that no other has."""

    def __init__(self, seed: int, number: int, processes: int) -> None:
        self._workload = Workload(1000 * seed + number)
        self._images: deque[str] = deque()
        orders = list(itertools.permutations(WORDS))
        random.Random(seed).shuffle(orders)
        self._orders = itertools.cycle(orders[number::processes])

    def make_images(self, count: int) -> None:
        self._images.extend(one.image for one in self._workload.take(count))

    def bodies(self, job: Job) -> list[bytes]:
        self.make_images(max(0, job.images - len(self._images)))
        images = [self._images.popleft() for _ in range(job.images)]
        return [
            _body(job, image, question(next(self._orders)))
            for image in images
            for _ in range(job.texts)
        ]


def _body(job: Job, image: str, text: str) -> bytes:
    content = [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": text},
    ]
    given = {} if job.options is None else {"mm_processor_kwargs": {OPTIONS_KEY: job.options}}
    body = {
        "model": job.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": job.output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **given,
    }
    return json.dumps(body).encode()
