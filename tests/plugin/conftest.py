"""The plugin installed into the test process itself, without an engine."""

import pytest

from vllm_litelvlm.plugin.register import install


@pytest.fixture(scope="session")
def installed() -> None:
    """The plugin's hooks, in this process."""
    install()
    install()
