"""Prometheus metrics on vLLM's own ``/metrics``.

Images and tokens are counted in the front end, where requests are planned. Seconds and the use of
caches are measured in the worker, another process: it writes them into prometheus_client's
multi-process files, and the front end reads these on every scrape. With several API servers vLLM
itself runs in multi-process mode and all of this goes through its own directory.
"""

import atexit
import multiprocessing
import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Histogram, Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vllm_litelvlm.grounding.features import FeatureCache
from vllm_litelvlm.vision.pages import PageCache
from vllm_litelvlm.vision.slots import SlotCache

_DIRECTORY = "LITELVLM_METRICS_DIR"
_BOUNDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_MASK_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)
_BOUNDS_AND_REST = (*_BOUNDS, float("inf"))

GUIDANCE_SECONDS = "litelvlm_guidance_seconds"
SELECTION_SECONDS = "litelvlm_selection_seconds"
FEATURE_CACHE = "litelvlm_feature_cache"
TEXT_CACHE = "litelvlm_text_cache"
_HELP = {
    GUIDANCE_SECONDS: "Seconds to embed the texts and score the patches of one encoder batch.",
    SELECTION_SECONDS: "Seconds to select the kept tokens of one encoder batch.",
    f"{FEATURE_CACHE}_queries": "Images that the vision tower was to see.",
    f"{FEATURE_CACHE}_hits": "Those whose features were still there.",
    f"{FEATURE_CACHE}_bytes": "Memory of the features that are there.",
    f"{TEXT_CACHE}_queries": "Guiding texts that were to be embedded.",
    f"{TEXT_CACHE}_hits": "Those whose embeddings were still there.",
}


@cache
def _counters() -> tuple[Counter, Counter, Counter]:
    return (
        Counter("litelvlm_images", "Images in requests.", ["method"]),
        Counter("litelvlm_visual_tokens_in", "Visual tokens before pruning.", ["method"]),
        Counter("litelvlm_visual_tokens_kept", "Visual tokens after pruning.", ["method"]),
    )


@cache
def _pixel_counters() -> tuple[Counter, Counter]:
    return (
        Counter("litelvlm_pixel_cache_queries", "Images that were to be preprocessed."),
        Counter("litelvlm_pixel_cache_hits", "Those whose pixels were still there."),
    )


def count_pixels(queries: int, hits: int) -> None:
    """Count images that were to be preprocessed, and those that need not be."""
    asked, there = _pixel_counters()
    asked.inc(queries)
    there.inc(hits)


@cache
def _mask_metrics() -> tuple[Counter, Histogram, Counter, Counter]:
    return (
        Counter("litelvlm_mask_expressions", "Expressions that were answered with masks."),
        Histogram(
            "litelvlm_mask_seconds",
            "Seconds from SAM's prompts of one picture to its masks, waiting among them.",
            buckets=_MASK_BOUNDS,
        ),
        Counter("litelvlm_sam_cache_queries", "Pictures whose features SAM was to have."),
        Counter("litelvlm_sam_cache_hits", "Those whose features were still there."),
    )


_sam_cache = {"queries": 0, "hits": 0}


def count_masks(expressions: int, seconds: float, features: FeatureCache) -> None:
    """Count the masks of a picture, and what was asked of SAM's features since the last."""
    answered, took, *cache_counters = _mask_metrics()
    answered.inc(expressions)
    took.observe(seconds)
    now = {"queries": features.queries, "hits": features.hits}
    for counter, (name, value) in zip(cache_counters, now.items(), strict=True):
        counter.inc(value - _sam_cache[name])
    _sam_cache.update(now)


def count_images(method: str, images: int, tokens_in: int, tokens_kept: int) -> None:
    """Count a request's images and their tokens, before and after."""
    seen, before, after = _counters()
    seen.labels(method).inc(images)
    before.labels(method).inc(tokens_in)
    after.labels(method).inc(tokens_kept)


class WorkerHistogram:
    """A Prometheus histogram that another process exposes."""

    def __init__(self, name: str, store: MmapedDict) -> None:
        self._store = store
        self._sum_key = mmap_key(name, f"{name}_sum", [], [], _HELP[name])
        self._bucket_keys = [
            mmap_key(name, f"{name}_bucket", ["le"], [floatToGoString(bound)], _HELP[name])
            for bound in _BOUNDS_AND_REST
        ]

    def observe(self, seconds: float) -> None:
        """Add one observation."""
        self._add(self._sum_key, seconds)
        self._add(self._bucket_keys[bisect_left(_BOUNDS, seconds)], 1.0)

    def _add(self, key: str, amount: float) -> None:
        value, _ = self._store.read_value(key)
        self._store.write_value(key, value + amount, 0.0)


class WorkerValue:
    """A Prometheus counter or gauge that another process exposes."""

    def __init__(self, name: str, sample: str, store: MmapedDict) -> None:
        self._store, self._key = store, mmap_key(name, sample, [], [], _HELP[name])

    def set(self, value: float) -> None:
        """What the next scrape shows."""
        self._store.write_value(self._key, value, 0.0)


class WorkerMetrics:
    """What this worker process measures: seconds, and the use of its caches.

    ``stores`` holds prometheus_client's multi-process file of each type.
    """

    def __init__(self, stores: Mapping[str, MmapedDict]) -> None:
        self.guidance_seconds = WorkerHistogram(GUIDANCE_SECONDS, stores["histogram"])
        self.selection_seconds = WorkerHistogram(SELECTION_SECONDS, stores["histogram"])
        self._counters = {
            f"{name}_{what}": WorkerValue(
                f"{name}_{what}", f"{name}_{what}_total", stores["counter"]
            )
            for name in (FEATURE_CACHE, TEXT_CACHE)
            for what in ("queries", "hits")
        }
        size = f"{FEATURE_CACHE}_bytes"
        self._bytes = WorkerValue(size, size, stores["gauge_livesum"])

    def show_caches(self, features: SlotCache | PageCache | None, texts: SlotCache | None) -> None:
        """Bring the caches' counts up to date."""
        for name, slots in ((FEATURE_CACHE, features), (TEXT_CACHE, texts)):
            if slots is not None:
                self._counters[f"{name}_queries"].set(slots.queries)
                self._counters[f"{name}_hits"].set(slots.hits)
        if features is not None:
            self._bytes.set(features.bytes)


@cache
def worker_metrics() -> WorkerMetrics | None:
    """Those of this worker process; None where nobody could read them.

    That is on another host than the front end's, which its workers' files do not reach.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or os.environ.get(_DIRECTORY)
    if not directory or not Path(directory).is_dir():
        return None
    return WorkerMetrics(
        {
            kind: MmapedDict(str(Path(directory) / f"{kind}_litelvlm-{os.getpid()}.db"))
            for kind in ("histogram", "counter", "gauge_livesum")
        }
    )


class _WorkerSeconds(Collector):
    """Exposes the histograms of this front end's workers."""

    def __init__(self, directory: str) -> None:
        self._collector = MultiProcessCollector(None, path=directory)

    def collect(self) -> Iterable[Metric]:
        """Called on every scrape."""
        collected: Iterable[Metric] = self._collector.collect()
        return collected


@cache
def install() -> None:
    """Make the front end's directory and expose it; engine processes inherit it and only write."""
    if multiprocessing.parent_process() is not None:
        return
    directory = tempfile.mkdtemp(prefix="litelvlm-metrics-")
    os.environ[_DIRECTORY] = directory
    atexit.register(_remove, directory, os.getpid())
    REGISTRY.register(_WorkerSeconds(directory))


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:  # and not a process forked from it
        shutil.rmtree(directory, ignore_errors=True)
