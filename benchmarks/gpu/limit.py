"""How long a run may go on."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limit:
    """So many seconds from now on; after them no further block begins."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - (time.monotonic() - self._began))

    @property
    def passed(self) -> bool:
        return self.left == 0
