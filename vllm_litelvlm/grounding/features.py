"""SAM's features of pictures, which are encoded once for all expressions about them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from torch import Tensor

#: Bytes of features that are kept: 256 pictures of a SAM of the published sizes.
KEPT_BYTES = 1 << 30


class FeatureCache:
    """Features by picture; the least recently used go first. Threads may share one.

    Args:
        max_bytes: what all features together may take; those of a picture that are larger by
            themselves are given and not kept, and 0 keeps none.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.max_bytes = max_bytes
        #: Of what is kept.
        self.bytes = 0
        #: Pictures that were asked for, and those that were answered without encoding them again.
        self.queries = self.hits = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._encoding: dict[Hashable, Future[Tensor]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, encode: Callable[[], Tensor]) -> Tensor:
        """The features of a picture, which nobody may change.

        One thread encodes; others that ask for the same picture meanwhile wait for it. Where it
        fails, all of them raise what it raised, and the next one that asks tries again.
        """
        with self._lock:
            self.queries += 1
            if key in self._kept:
                self.hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            waited = self._encoding.get(key)
            own = waited or self._encoding.setdefault(key, Future())
        if waited is not None:
            features = waited.result()
            with self._lock:
                self.hits += 1
            return features
        try:
            features = encode()
        except BaseException as error:
            with self._lock:
                del self._encoding[key]
            own.set_exception(error)
            raise
        with self._lock:
            del self._encoding[key]
            self._keep(key, features)
        own.set_result(features)
        return features

    def clear(self) -> None:
        """Forget every picture, and what was counted."""
        with self._lock:
            self._kept.clear()
            self.bytes = self.queries = self.hits = 0

    def _keep(self, key: Hashable, features: Tensor) -> None:
        if _nbytes(features) > self.max_bytes:
            return
        self._kept[key] = features
        self.bytes += _nbytes(features)
        while self.bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _nbytes(oldest)


def _nbytes(features: Tensor) -> int:
    """Of the memory that it keeps from being freed, which may be more than its elements."""
    return features.untyped_storage().nbytes()
