"""Which process runs which tests: a start of vLLM takes up to a minute, so servers are shared.

pytest-xdist has groups for this, but its 3.8.0 does not see them beside pytest 9.2.
"""

import re

from xdist.scheduler import LoadScopeScheduling

#: Files whose tests ask the fixture ``server``, of which a process has one for each model runner;
#: but for test_parallel, which asks it once and has long tests for another process.
SHARING = (
    "test_bad_input",
    "test_caches",
    "test_conversations",
    "test_examples",
    "test_frames",
    "test_methods",
    "test_positions",
    "test_served",
    "test_stock",
)


class ByServer(LoadScopeScheduling):
    """Tests of one file stay together, and those of files that share a server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition(".py::")[0].rpartition("/")[2]
        runner = re.search(r"[\[-](V[12])[\]-]", nodeid)
        if runner is None:
            return file
        return f"server {runner[1]}" if file in SHARING else f"{file} {runner[1]}"
