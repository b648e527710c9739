"""The server's page: served and told where it is, or clicked through and photographed."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from vllm_litelvlm.demo.browser import chromium
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.errors import LiteLVLMError

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATH = "/litelvlm"
_SHIPPED = Path(__file__).parent / "model"
Scheme = Literal["light", "dark"]
_HEIGHT = 900
_ANSWER_MILLISECONDS = 300_000


class PageError(LiteLVLMError, RuntimeError):
    """The page does not answer; the message is what it says."""


@dataclass(frozen=True)
class Shot:
    """A picture of the page: file, width of the window in pixels, colours, and what is asked for.

    Without ``budget`` and ``method`` those that the server has by default.
    """

    file: Path
    width: int = 1280
    scheme: Scheme = "light"
    budget: int | None = None
    method: str | None = None


def show_page(
    output: Path,
    model: Path | str | None = None,
    clip_model: Path | str | None = None,
    port: int | None = None,
    shots: Sequence[Shot] = (),
    arguments: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Serve a model and tell where its page is, until interrupted; or photograph it and end.

    Args:
        output: folder for the server's log.
        model: hub name or folder; without one it is the model that ships.
        clip_model: of the model's vision tower.
        port: of the server; a free one if left out.
        shots: pictures to take; without any the server stays.
        arguments: further ones of ``vllm serve``.
        console: where it is told.

    Raises ServerError, BrowserError, and PageError where the page does not answer.
    """
    console = console or Console()
    given = ["--max-model-len=2048", "--enforce-eager"]
    if model is None:
        model = _SHIPPED
        given.append("--served-model-name=demo")
    log = output / "server.log"
    options = {"positions": "original"}
    with ExitStack() as stack:
        browser = stack.enter_context(chromium()) if shots else None
        with console.status(f"Starting vllm serve {model} --plugin litelvlm (log: {log}) ..."):
            server = stack.enter_context(
                serve(
                    model,
                    clip_model=clip_model,
                    options=options,
                    arguments=[*given, *arguments],
                    log=log,
                    port=port,
                )
            )
        if browser is None:
            console.print(f"The page is at {server.url}{PATH} (Ctrl-C ends the server)")
            threading.Event().wait()
        for shot in shots:
            with console.status(f"Asking on the page, for {shot.file} ..."):
                window: Any = {"width": shot.width, "height": _HEIGHT}
                assert browser is not None
                page = browser.new_page(viewport=window, color_scheme=shot.scheme)
                ask_on(page, server.url, shot)
                shot.file.parent.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=shot.file, full_page=True)
                page.close()
            console.print(f"Screenshot: {shot.file}")


def ask_on(page: "Page", url: str, shot: Shot) -> None:
    """Open a server's page, take its first example, and ask. Raises PageError with its sentence."""
    page.goto(f"{url}{PATH}")
    page.get_by_role("group", name="Examples").get_by_role("button").first.click()
    page.get_by_role("img", name="Chosen picture").wait_for()
    if shot.method is not None:
        page.get_by_label("Method").select_option(shot.method)
    if shot.budget is not None:
        page.get_by_label("Budget as a number").fill(str(shot.budget))
        page.get_by_label("Budget as a number").blur()
    page.get_by_role("button", name="Answer").click()
    done = page.locator("#summary").or_(page.get_by_role("alert"))
    done.filter(visible=True).first.wait_for(timeout=_ANSWER_MILLISECONDS)
    refused = page.get_by_role("alert")
    if refused.is_visible():
        raise PageError(f"The page at {url}{PATH} says: {refused.inner_text()}")
    page.evaluate("scrollTo(0, 0)")
