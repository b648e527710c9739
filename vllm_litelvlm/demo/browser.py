"""A real browser without a window: the Chromium that the system has, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllm_litelvlm.errors import LiteLVLMError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Names one that is not on PATH.
CHROMIUM = "LITELVLM_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: Nothing but pages: Chromium would look for updates and for accounts, which a closed network
#: answers with nothing. As root it has no sandbox.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


class BrowserError(LiteLVLMError, RuntimeError):
    """There is no browser; the message says how to get one."""


def find_chromium() -> str:
    """The path of a Chromium. Raises BrowserError where there is none."""
    named = os.environ.get(CHROMIUM)
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        looked = repr(named) if named else f"none of {', '.join(_NAMES)}"
        raise BrowserError(
            f"No Chromium was found ({looked} on PATH). Install one (Debian: apt-get install "
            f"chromium), or name it in {CHROMIUM}."
        )
    return found


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A Chromium with a profile of its own. Raises BrowserError where it cannot be started."""
    path = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise BrowserError(
            f"A browser is driven by {error.name}; install it: pip install 'vllm-litelvlm[page]'"
        ) from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_FLAGS])
        try:
            yield browser
        finally:
            browser.close()
