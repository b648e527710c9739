"""What a running server tells about itself: its metrics, its log, and lengths of prompts."""

import asyncio
import json
import re
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.settings import SERVED_MODEL_NAME
from vllm_litelvlm.demo.server import Server

KV_CACHE_USE = "vllm:kv_cache_usage_perc"
RUNNING = "vllm:num_requests_running"
CACHE_CONFIGURATION = "vllm:cache_config_info"
FEATURE_QUERIES = "litelvlm_feature_cache_queries_total"
FEATURE_HITS = "litelvlm_feature_cache_hits_total"
#: Seconds between two looks at the metrics.
POLL_SECONDS = 0.25

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")


@dataclass(frozen=True)
class Capacity:
    """How many requests of ``tokens`` fit the KV cache at once; ``source`` says who says so."""

    tokens: int
    requests: float
    source: str

    def __str__(self) -> str:
        return f"{self.requests:.2f} requests of {self.tokens:,} tokens ({self.source})"


def metric(text: str, name: str) -> float:
    """The value of a metric in an exposition, summed over labels; 0 where it is not there."""
    return sum(float(value) for found, _, value in _SAMPLE.findall(text) if found == name)


def capacity(log: str, metrics: str, longest: int) -> Capacity:
    """From the line in the server's log, else from the number and size of the blocks."""
    if found := _CONCURRENCY.search(log):
        return Capacity(int(found[1].replace(",", "")), float(found[2]), "the engine's own log")
    samples = _SAMPLE.findall(metrics)
    labels = next(labels for name, labels, _ in samples if name == CACHE_CONFIGURATION)
    sizes = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    tokens = int(sizes["num_gpu_blocks"]) * int(sizes["block_size"])
    return Capacity(longest, tokens / longest, f"computed from {CACHE_CONFIGURATION}")


async def read_metrics(server: Server) -> str:
    return await asyncio.to_thread(_get, f"{server.url}/metrics")


async def peaks(server: Server, ended: asyncio.Event) -> tuple[float, int]:
    """The highest share of the KV cache in use, and the most requests running, until ``ended``."""
    used, running = 0.0, 0
    while not ended.is_set():
        text = await read_metrics(server)
        used = max(used, metric(text, KV_CACHE_USE))
        running = max(running, int(metric(text, RUNNING)))
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), POLL_SECONDS)
    return used, running


async def prompt_lengths(server: Server, prompts: Sequence[list[dict[str, Any]]]) -> list[int]:
    """Tokens of each prompt as ``server`` counts them; its caches do not notice."""

    def count(messages: list[dict[str, Any]]) -> int:
        body = json.dumps({"model": SERVED_MODEL_NAME, "messages": messages}).encode()
        return int(json.loads(_get(f"{server.url}/tokenize", body))["count"])

    return await asyncio.gather(*(asyncio.to_thread(count, messages) for messages in prompts))


def _get(url: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.read().decode())
