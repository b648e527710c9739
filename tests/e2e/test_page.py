"""The page, in a real browser: clicked through, read, and looked at from all sides."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from tests.e2e.client import data_url, user_turn
from tests.e2e.runners import V1
from vllm_litelvlm.demo.browser import BrowserError, chromium
from vllm_litelvlm.demo.grounding import build_grounding
from vllm_litelvlm.demo.server import serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

#: Set where a missing browser is a failure.
NEEDS_BROWSER = "LITELVLM_NEEDS_BROWSER"
API_KEY = "the-key-of-this-test"
ARGUMENTS = (
    "--served-model-name=model",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=2048",
    "--max-num-seqs=8",
    "--runner=generate",
    f"--api-key={API_KEY}",
)
SECONDS = 60_000


@dataclass(frozen=True)
class PageServer:
    """One that answers with masks and in words, to who has its key."""

    url: str
    trace: Path

    def post(self, path: str, body: Any, key: str | None = API_KEY) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=300)

    def kept(self, body: Any) -> list[dict[str, Any]]:
        answer = self.post("/litelvlm/kept", body)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def traced(self, budget: int) -> dict[str, Any]:
        """The last selection of so many tokens."""
        lines = [json.loads(line) for line in self.trace.read_text().splitlines()]
        found: dict[str, Any] = [line for line in lines if len(line["kept"]) == budget][-1]
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    folder = tmp_path_factory.mktemp("page")
    checkpoint = build_grounding(folder / "model")
    trace = folder / "trace.jsonl"
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"positions": "original", "variants": {"fast": {"budget": 48}}},
        arguments=ARGUMENTS,
        environment={**V1.environment, "VLLM_LITELVLM_TRACE": str(trace)},
        log=folder / "server.log",
    ) as running:
        yield PageServer(running.url, trace)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    try:
        with chromium() as found:
            yield found
    except BrowserError as error:
        if os.environ.get(NEEDS_BROWSER):
            raise
        pytest.skip(str(error))


@dataclass
class Visit:
    """An open page, and what went wrong on it."""

    page: "Page"
    home: str
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("request", lambda sent: self._check(sent.url))

    def _note(self, kind: str, text: str) -> None:
        # A browser writes down every answer of 4xx, too.
        if kind == "error" and "Failed to load resource" not in text:
            self.problems.append(text)

    def _check(self, url: str) -> None:
        if not url.startswith((f"{self.home}/", "data:", "blob:")):
            self.problems.append(f"asked {url}")

    def open(self, key: str | None = API_KEY) -> "Page":
        if key is not None:
            told = f"sessionStorage.setItem('litelvlm-key', {json.dumps(key)})"
            self.page.add_init_script(told)
        self.page.goto(f"{self.home}/litelvlm")
        return self.page

    def choose_example(self, number: int) -> None:
        self.page.get_by_role("button", name=f"Scene {number}").click()
        self.page.get_by_role("img", name=re.compile("Chosen picture: A drawn scene")).wait_for()

    def set_budget(self, tokens: int) -> None:
        self.page.get_by_label("Budget as a number").fill(str(tokens))
        self.page.get_by_label("Budget as a number").blur()

    def answer(self) -> None:
        self.page.get_by_role("button", name="Answer").click()
        self.page.locator("#summary").wait_for(timeout=SECONDS)


@pytest.fixture
def visit(browser: "Browser", server: PageServer) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    found = Visit(page, server.url)
    yield found
    page.close()
    assert found.problems == []


def cells(side: "Locator") -> dict[int, bool]:
    """The drawn tokens: places in the grid, and whether they are drawn as the text's."""
    said = "all => all.map(one => [Number(one.dataset.place), one.classList.contains('text')])"
    return dict(side.locator("rect.cell").evaluate_all(said))


def fact(side: "Locator", name: str) -> str:
    term = side.locator("dt").filter(has_text=re.compile(f"^{name}$"))
    return term.locator("xpath=following-sibling::dd[1]").inner_text()


def painted(side: "Locator") -> float:
    """The share of the picture that masks cover."""
    script = """canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let covered = 0;
        for (let place = 3; place < data.length; place += 4) covered += data[place] > 0;
        return covered / (canvas.width * canvas.height);
    }"""
    share: float = side.locator("canvas").evaluate(script)
    return share


def test_page_asks_for_the_key_of_the_server(visit: Visit) -> None:
    page = visit.open(key=None)
    key = page.get_by_role("textbox", name="API key")
    key.wait_for()
    assert key.evaluate("one => one === document.activeElement")
    assert not page.get_by_role("form", name="Request").is_visible()
    key.fill("another")
    key.press("Enter")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "does not take this API key" in alert.inner_text()
    key.fill(API_KEY)
    key.press("Enter")
    page.get_by_role("form", name="Request").wait_for()
    assert not alert.is_visible()
    assert page.evaluate("sessionStorage.getItem('litelvlm-key')") == API_KEY
    assert page.evaluate("localStorage.length") == 0


def test_masks_and_kept_tokens_are_shown_beside_the_unpruned_answer(
    visit: Visit, server: PageServer
) -> None:
    page = visit.open()
    visit.choose_example(1)
    expressions = page.get_by_label("Expressions, one a line").input_value().splitlines()
    assert len(expressions) == 2
    slider = page.get_by_role("slider", name="Budget")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(36):
        page.keyboard.press("ArrowRight")
    assert page.get_by_label("Budget as a number").input_value() == "37"
    assert slider.get_attribute("aria-valuetext") == "37 tokens of 576: 6%"
    page.get_by_label("Method").select_option("fovea")
    visit.answer()

    pruned = page.get_by_role("article", name="Pruned")
    whole = page.get_by_role("article", name="All tokens")
    traced = server.traced(37)
    assert traced["method"] == "fovea"
    guided = dict(zip(traced["kept"], traced["guided"], strict=True))
    assert len(guided) == 37
    assert cells(pruned) == guided
    assert any(guided.values())
    assert cells(whole) == {}
    assert fact(pruned, "Visual tokens") == "37 of 576"
    tokens = [int(fact(side, "Prompt tokens")) for side in (pruned, whole)]
    assert tokens[1] - tokens[0] == 576 - 37

    link = page.locator("#preview").get_attribute("src")
    for side, options in (
        (pruned, {"budget": 37, "method": "fovea"}),
        (whole, {"budget": 576}),
    ):
        body = {"image": link, "expressions": expressions}
        kwargs = {"mm_processor_kwargs": {"litelvlm": options}}
        masks = server.post("/v1/masks", {**body, **kwargs}).json()["data"]
        boxes = side.get_by_role("checkbox").all()
        assert len(boxes) == len(masks) == 2
        for row, mask in zip(side.get_by_role("listitem").all(), masks, strict=True):
            said = f"{mask['expression']}\n{100 * mask['area'] / 336**2:.0f}% of the picture"
            assert said in row.inner_text()
        boxes[1].uncheck()
        assert painted(side) == pytest.approx(masks[0]["area"] / 336**2, abs=1e-6)
        boxes[0].uncheck()
        assert painted(side) == 0
    assert re.search(r"\d+ prompt tokens instead of \d+.*mean IoU", page.inner_text("#summary"))
    page.get_by_label("kept tokens").uncheck()
    assert not pruned.locator("svg.tokens").is_visible()


def test_words_are_answered_as_the_chat_does(visit: Visit, server: PageServer) -> None:
    page = visit.open()
    page.get_by_label("words").check()
    visit.choose_example(2)
    page.get_by_label("Question").fill("Where is the star?")
    page.get_by_label("Longest answer").fill("5")
    page.get_by_label("Model").select_option("model:fast")
    assert page.get_by_label("Budget as a number").input_value() == "48"
    page.get_by_label("compact").check()
    visit.answer()
    pruned = page.get_by_role("article", name="Pruned")
    assert cells(pruned).keys() == {*server.traced(48)["kept"]}
    options = {"budget": 48, "positions": "compact"}
    link = page.locator("#preview").get_attribute("src")
    assert link is not None
    said = server.post(
        "/v1/chat/completions",
        {
            "model": "model",
            "messages": [user_turn("Where is the star?", link)],
            "max_tokens": 5,
            "temperature": 0,
            "mm_processor_kwargs": {"litelvlm": options},
        },
    ).json()
    shown = pruned.locator(".answer").inner_text()
    assert " ".join(shown.split()) == " ".join(said["choices"][0]["message"]["content"].split())
    assert fact(pruned, "Prompt tokens") == str(said["usage"]["prompt_tokens"])
    whole = int(fact(page.get_by_role("article", name="All tokens"), "Prompt tokens"))
    assert whole == said["usage"]["prompt_tokens"] + 576 - 48
    assert re.search("The answers (differ|are the same)", page.inner_text("#summary"))


def test_own_picture_is_drawn_where_the_model_sees_it_and_text_stays_text(
    visit: Visit, server: PageServer, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    page = visit.open()
    file = tmp_path / "<b>wide<b>.jpg"
    photographs[2].resize((400, 300)).save(file)
    page.get_by_label("Choose a picture").set_input_files(file)
    page.get_by_role("img", name="Chosen picture: <b>wide<b>.jpg").wait_for()
    expression = "<img src=x onerror=alert(1)>"
    page.get_by_label("Expressions, one a line").fill(expression)
    page.get_by_label("beside the unpruned answer").uncheck()
    visit.set_budget(20)
    visit.answer()
    pruned = page.get_by_role("article", name="Pruned")
    assert expression in pruned.get_by_role("listitem").inner_text()
    assert pruned.locator("ul img").count() == 0
    assert page.get_by_role("article").count() == 1
    # The middle 300 of 400 pixels, in 24 columns.
    places = "all => all.map(one => [one.dataset.place, one.getAttribute('x')].map(Number))"
    for place, left in pruned.locator("rect.cell").evaluate_all(places):
        assert left == pytest.approx(50 + place % 24 * 12.5)


def test_errors_are_told_in_the_sentences_of_the_server(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    alert = page.get_by_role("alert")
    page.get_by_role("button", name="Answer").click()
    assert "Choose a picture first" in alert.inner_text()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.get_by_label("Choose a picture").set_input_files(broken)
    page.get_by_text("cannot read that picture").wait_for()
    visit.choose_example(3)
    assert not alert.is_visible()
    page.get_by_label("Expressions, one a line").fill("the [SEG]")
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("special tokens of the model").wait_for(timeout=SECONDS)
    assert alert.is_visible()
    page.get_by_label("Expressions, one a line").fill("the star")
    visit.answer()
    assert not alert.is_visible()


def test_page_is_for_keyboards_screen_readers_and_phones(visit: Visit, browser: "Browser") -> None:
    page = visit.open()
    visit.choose_example(1)
    visit.set_budget(30)
    visit.answer()
    tree = page.locator("body").aria_snapshot()
    for control in (
        'button "Choose a picture"',
        'radio "masks" [checked]',
        'textbox "Expressions, one a line"',
        'combobox "Method"',
        'slider "Budget": "30"',
        'checkbox "kept tokens" [checked]',
        "status:",
        'article "Pruned"',
    ):
        assert control in tree
    assert "30 of 576 tokens are kept" in tree
    nameless = re.findall(
        r"- (?:button|textbox|checkbox|radio|slider|combobox|img)\b(?! [\"'])", tree
    )
    assert nameless == []
    # All that can be used is reached by Tab, in the order in which it stands, and shows it.
    reached: list[tuple[str, str]] = []
    page.locator("#file").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    while (said := tuple(page.evaluate(FOCUS))) not in reached[:1]:
        reached.append(said)
        page.keyboard.press("Tab")
    wanted = ["file", "expressions", "method", "budget", "budget-number", "beside", "go"]
    assert [name for name, _ in reached if name in wanted] == wanted
    assert {"show-tokens", "show-masks"} < {name for name, _ in reached}
    assert [name for name, style in reached if style != "solid"] == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate(CONTRASTS) == []
    page.set_viewport_size({"width": 340, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 340


#: What has the focus, and the outline that shows it.
FOCUS = """() => {
    const at = document.activeElement;
    const shown = at.id === "file" ? document.querySelector("label[for=file]") : at;
    return [at.id, getComputedStyle(shown).outlineStyle];
}"""
#: Of every text its contrast with what is behind it, by WCAG 2.2; those below 4.5 are told.
CONTRASTS = """() => {
    const channel = part => {
        part /= 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    };
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => {
        const [red, green, blue] = parts(colour).map(channel);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = element => {
        for (; element; element = element.parentElement) {
            const {backgroundColor} = getComputedStyle(element);
            if ((parts(backgroundColor)[3] ?? 1) === 1) return backgroundColor;
        }
        return "rgb(255, 255, 255)";
    };
    const found = [];
    for (const one of document.querySelectorAll("body *:not(svg *):not(script):not(option)")) {
        const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || !one.checkVisibility() || one.matches(":disabled")) continue;
        const pair = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (contrast < 4.5) found.push(`${one.textContent.trim().slice(0, 40)}: ${contrast}`);
    }
    return found;
}"""


def test_kept_tokens_are_told_to_whoever_may_ask(
    server: PageServer, photographs: Sequence[Image.Image]
) -> None:
    wide, high = photographs[1].resize((300, 200)), photographs[3].resize((200, 320))
    chat = {
        "model": "model",
        "messages": [user_turn("Where is the cup?", data_url(wide), data_url(high))],
        "mm_processor_kwargs": {"litelvlm": {"budget": 33}},
    }
    assert server.post("/litelvlm/kept", chat, key=None).status_code == 401
    assert httpx.get(f"{server.url}/litelvlm/server").status_code == 401
    before = server.kept(chat)
    assert [(one["picture"], one["remembered"]) for one in before] == [(0, False), (1, False)]
    assert server.post("/v1/chat/completions", {**chat, "max_tokens": 1}).status_code == 200
    after = server.kept({**chat, "sizes": [wide.size, high.size]})
    lines = [json.loads(line) for line in server.trace.read_text().splitlines()]
    traced = [line for line in lines if len(line["kept"]) == 33]
    assert [one["kept"] for one in after] == [line["kept"] for line in traced]
    assert [one["guided"] for one in after] == [line["guided"] for line in traced]
    assert [one["grid"]["box"] for one in after] == [[50, 0, 200, 200], [0, 60, 200, 200]]

    padded = {"budget": 0.5, "focus": 0.25, "method": "fovea", "frame": "pad"}
    layered = {**chat, "mm_processor_kwargs": {"litelvlm": padded}}
    assert server.post("/v1/chat/completions", {**layered, "max_tokens": 1}).status_code == 200
    after = server.kept({**layered, "sizes": [wide.size, high.size]})
    assert [len({*one["kept"]}) for one in after] == [192, 192]
    assert after[0]["grid"]["box"] == [0, -50, 300, 300]

    masks = {"image": data_url(wide), "expressions": ["a cup", "a spoon"]}
    apart = {**masks, "conversation": "separate"}
    assert server.post("/v1/masks", apart).status_code == 200
    found = server.kept(apart)
    assert [one["expressions"] for one in found] == [["a cup"], ["a spoon"]]
    assert found[0]["kept"] != found[1]["kept"]
    assert not server.kept(masks)[0]["remembered"]
    refused = server.post("/litelvlm/kept", {**apart, "sizes": [[0, 1]]})
    assert refused.status_code == 400
    assert "sizes" in refused.json()["error"]["message"]


def test_server_tells_what_it_can_do_and_nothing_may_be_added_to_its_page(
    server: PageServer,
) -> None:
    page = httpx.get(f"{server.url}/litelvlm")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page.text)
    told = httpx.get(
        f"{server.url}/litelvlm/server", headers={"Authorization": f"Bearer {API_KEY}"}
    ).json()
    assert told["answers"] == {"masks": True, "words": True}
    assert [one["name"] for one in told["models"]] == ["model", "model:fast"]
    assert [one["defaults"]["budget"] for one in told["models"]] == [192, 48]
    assert told["positions"] == ["compact", "original"]
    for example in told["examples"]:
        picture = httpx.get(f"{server.url}/litelvlm/examples/{example['file']}")
        assert picture.headers["content-type"] == "image/jpeg"
    assert httpx.get(f"{server.url}/litelvlm/examples/examples.json").status_code == 404
