"""The page at `/` of a running server, in headless Chromium: `make test-browser`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core.local import LocalClient
from sie_core.server.keys import make_key
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings, ServerSettings

pytestmark = pytest.mark.browser

START_MS = 240_000
"""A browser on a busy machine is slow to start."""
TIMEOUT_MS = 30_000

MODEL = "test/tiny-bert"
MARKUP = "test/<img src=x onerror=document.title='bad'>"
QUERY = "how many people live in berlin"
DOCUMENTS = [
    "the museum in berlin is new",
    "berlin had a population of many people",
    "bananas are yellow fruit",
    "the eiffel tower is a tall tower in paris",
    "python is a programming language",
    "a song on the first album of the american band",
]


def run(server: Server) -> threading.Thread:
    """Run a server in a thread, and return once its models are there."""
    thread = threading.Thread(target=server.run, name="sie-page-server")
    thread.start()
    with httpx.Client(timeout=30) as client:
        while client.get(f"{server.url}/readyz").status_code != 200:
            threading.Event().wait(0.05)
    return thread


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """A maker of running servers; it takes what `ServerSettings` takes."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(**given: Any) -> Server:
        server = Server(ServerSettings(**given), port=0, client=LocalClient(mode="exact"))
        running.append((server, run(server)))
        return server

    yield start
    for server, thread in running:
        server.stop()
        thread.join()


@pytest.fixture(scope="module")
def served(tiny_bert: Path, tiny_xlmr: Path, tiny_embedder: Path) -> Iterator[str]:
    """The address of a server with models of several kinds, one of them named to do harm."""
    models = (
        ModelSettings(name=MODEL, source=str(tiny_bert)),
        ModelSettings(name="test/tiny-xlmr", source=str(tiny_xlmr)),
        ModelSettings(name="test/tiny-embedder", source=str(tiny_embedder)),
        ModelSettings(name=MARKUP, source=str(tiny_bert)),
    )
    server = Server(ServerSettings(models=models), port=0, client=LocalClient(mode="exact"))
    thread = run(server)
    yield server.url
    server.stop()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for these tests."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=START_MS
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that keeps what goes wrong and what it asks for; nothing moves, unless told."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, reduced_motion="reduce", color_scheme="light"
    )
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(TIMEOUT_MS)
    opened.wrong = []
    opened.on("console", lambda message: opened.wrong.append(message.text))
    opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    context.close()


def expect(locator: Any) -> Any:
    """Playwright's own waiting assertions."""
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=TIMEOUT_MS)
    return playwright_expect(locator)


def visit(page: Any, url: str) -> None:
    """Open the page, and wait until it knows the server's models."""
    page.goto(f"{url}/")
    page.wait_for_selector("#model option", state="attached")


def fill(page: Any, documents: list[str], query: str = QUERY, model: str = MODEL) -> None:
    """Fill in the form."""
    page.select_option("#model", model)
    page.fill("#query", query)
    page.fill("#documents", "\n".join(documents))


def rerank(page: Any) -> None:
    """Press the button, and wait for the new order."""
    page.click("#rerank")
    page.wait_for_selector("#order:not([hidden])")


def shown(page: Any) -> list[str]:
    """The documents as they stand."""
    return page.locator(".row .text").all_text_contents()  # type: ignore[no-any-return]


def score(url: str, documents: list[str], **more: Any) -> dict[str, Any]:
    """What the API says of the same request."""
    items = [{"id": f"doc-{i + 1}", "text": text} for i, text in enumerate(documents)]
    body = {"query": {"text": QUERY}, "items": items, **more}
    reply = httpx.post(
        f"{url}/v1/score/{MODEL}", json=body, headers={"Accept": "application/json"}, timeout=60
    )
    return reply.raise_for_status().json()  # type: ignore[no-any-return]


def in_order(result: dict[str, Any], documents: list[str]) -> list[str]:
    """The documents in the API's order."""
    return [documents[int(entry["item_id"][4:]) - 1] for entry in result["scores"]]


def tab_to(page: Any, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(60):
        if page.evaluate("wanted => document.activeElement?.matches(wanted)", selector):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab does not lead to {selector}")


def test_documents_move_to_the_apis_order(page: Any, served: str) -> None:
    """With its scores, the ranks before and after, what it took, and back again."""
    visit(page, served)
    assert page.locator("#model option").all_inner_texts() == [MODEL, "test/tiny-xlmr", MARKUP]
    fill(page, DOCUMENTS)
    expect(page.locator(".row")).to_have_count(len(DOCUMENTS))
    assert shown(page) == DOCUMENTS
    rerank(page)
    result = score(served, DOCUMENTS)
    expected = in_order(result, DOCUMENTS)
    assert shown(page) == expected
    for row, entry in zip(page.locator(".row").all(), result["scores"], strict=True):
        before, after = int(entry["item_id"][4:]), entry["rank"] + 1
        assert row.locator("b").inner_text() == str(after)
        told = row.locator(".from .sr").text_content()
        assert told in {"did not move", f"moved up from {before} to {after}",
                        f"moved down from {before} to {after}"}  # fmt: skip
        assert ("up" in told, "down" in told) == (before > after, before < after)
        value = float(row.locator("output").inner_text().replace("\N{MINUS SIGN}", "-"))
        assert value == pytest.approx(entry["score"], abs=0.0051)
    spent = page.locator("#spending").inner_text()
    for term in ("round trip", "server", "queue", "tokenization", "inference", "tokens"):
        assert term in spent
    assert f"{result['usage']['input_tokens']:,}" in spent
    page.click("#retrieved")
    assert shown(page) == DOCUMENTS
    page.click("#reranked")
    assert shown(page) == expected
    assert page.locator("#live").inner_text().startswith(f"Reranked {len(DOCUMENTS)} documents")
    assert page.wrong == []


def test_bars_are_as_long_as_scores_are_far_from_zero(page: Any, served: str) -> None:
    """Negative logits go to the left of zero; probabilities are drawn between 0 and 1."""
    visit(page, served)
    fill(page, DOCUMENTS)
    for space in ("raw", "probability"):
        page.evaluate("document.querySelector('.ask details').open = true")
        page.select_option("#space", space)
        with page.expect_response("**/v1/score/**"):
            page.click("#rerank")
        expect(page.locator("#rerank")).to_contain_text("Rerank")
        scores = [e["score"] for e in score(served, DOCUMENTS, options={"score_space": space})["scores"]]  # fmt: skip  # noqa: E501
        low, high = (0, 1) if space == "probability" else (min(0, *scores), max(0, *scores))
        bars = page.locator(".track i").evaluate_all(
            "bars => bars.map(bar => [parseFloat(bar.style.left), parseFloat(bar.style.width)])"
        )
        for (left, width), value in zip(bars, scores, strict=True):
            assert left == pytest.approx(100 * (min(0, value) - low) / (high - low), abs=0.01)
            assert width == pytest.approx(100 * abs(value) / (high - low), abs=0.01)


def test_all_can_be_done_with_the_keyboard(page: Any, served: str) -> None:
    """Tab, arrows, Enter and Ctrl+Enter; the focus can always be seen."""
    visit(page, served)
    seen = []
    for wanted in ("#pause", "#theme", "#model", "#query"):
        tab_to(page, wanted)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        seen.append(outline)
    assert set(seen) == {"solid"}
    page.keyboard.type(QUERY)
    tab_to(page, "#documents")
    page.keyboard.insert_text("\n".join(DOCUMENTS))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#order:not([hidden])")
    expected = in_order(score(served, DOCUMENTS), DOCUMENTS)
    assert shown(page) == expected
    tab_to(page, "#retrieved")
    page.keyboard.press("Enter")
    assert shown(page) == DOCUMENTS
    tab_to(page, "#reranked")
    page.keyboard.press("Space")
    tab_to(page, ".row .open")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    second = page.locator(".row").nth(1)
    expect(second.locator(".open")).to_have_attribute("aria-expanded", "true")
    expect(second.locator(".open")).to_be_focused()
    assert f"retrieved at {DOCUMENTS.index(expected[1]) + 1}" in second.locator(".about").inner_text()  # fmt: skip  # noqa: E501
    page.keyboard.press("End")
    expect(page.locator(".row").last.locator(".open")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#code summary")).to_be_focused()


def test_what_can_be_used_has_a_name_and_words_can_be_read(page: Any, served: str) -> None:
    """As assistive technology sees it; contrast is at least 4.5 : 1, light and dark."""
    visit(page, served)
    fill(page, DOCUMENTS)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.fill("#top", "2")
    rerank(page)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    usable = {"button", "textbox", "combobox", "spinbutton", "radio", "link", "DisclosureTriangle"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in usable
    ]
    assert len(found) > 20
    assert not [role for role, name in found if not name.strip()]
    images = [node for node in tree if node.get("role", {}).get("value") in {"image", "img"}]
    assert all(node["name"]["value"] for node in images if not node["ignored"])
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        faint = page.evaluate(CONTRASTS)
        assert faint == [], scheme


CONTRASTS = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, .sr, .skip") || !element.checkVisibility()) continue;
    let ground = [255, 255, 255, 0], alpha = 1;
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      alpha *= Number(style.opacity);
      const own = rgba(style.backgroundColor);
      if (own[3] === 255 && ground[3] === 0) ground = own;
    }
    const style = getComputedStyle(element);
    const ink = rgba(element.closest("svg") ? style.fill : style.color).map((v, i) => v * alpha + ground[i] * (1 - alpha));
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push([node.data.trim().slice(0, 30), ratio]);
  }
  return faint;
}"""  # noqa: E501


def test_a_phone_shows_all_without_scrolling_sideways(page: Any, served: str) -> None:
    """At 360 pixels, with a word longer than the screen, before and after, and with an error."""
    page.set_viewport_size({"width": 360, "height": 740})
    visit(page, served)
    fits = "document.documentElement.scrollWidth <= 360"
    assert page.evaluate(fits)
    fill(page, [*DOCUMENTS, "w" * 300], query="q" * 200)
    page.wait_for_selector(".row")
    assert page.evaluate(fits)
    rerank(page)
    assert page.evaluate(fits)
    expect(page.locator("#asked")).to_be_in_viewport()
    page.locator(".row .open").first.click()
    page.locator("#code summary").click()
    assert page.evaluate(fits)
    fill(page, ["w"] * 513)
    page.click("#rerank")
    page.wait_for_selector("#trouble .note")
    assert page.evaluate(fits)


def test_the_theme_follows_the_system_until_told(page: Any, served: str) -> None:
    """And is kept for the next visit."""
    ground = "getComputedStyle(document.body).backgroundColor"
    visit(page, served)
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    dark = page.evaluate(ground)
    assert dark != light
    page.click("#theme")
    expect(page.locator("#theme")).to_have_text("Theme: light")
    assert page.evaluate(ground) == light
    page.reload()
    assert page.evaluate(ground) == light
    page.click("#theme")
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert page.evaluate(ground) == dark


def test_nothing_leaves_the_server_it_came_from(page: Any, served: str) -> None:
    """Every request goes to it, and what is written there is nowhere kept."""
    visit(page, served)
    fill(page, DOCUMENTS)
    rerank(page)
    page.locator("#code summary").click()
    assert {url for url in page.asked if not url.startswith((f"{served}/", "data:"))} == set()
    assert page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])") == (
        '[{"sie-theme":""},{}]' if page.evaluate("'sie-theme' in localStorage") else "[{},{}]"
    )
    assert page.wrong == []


def test_markup_stays_text(page: Any, served: str) -> None:
    """In queries, documents, names of models and files, and in what the server says of them."""
    harm = "<img src=x onerror=\"document.title='bad'\"><script>document.title='bad'</script>"
    visit(page, served)
    fill(page, [harm, f"{harm} berlin"], query=harm, model=MARKUP)
    page.locator("#code summary").click()
    page.set_input_files(
        "#file", {"name": "<b>x.txt", "mimeType": "text/plain", "buffer": harm.encode()}
    )
    rerank(page)
    assert page.locator("#asked").inner_text() == harm
    assert sorted(shown(page))[:2] == [harm, harm]
    assert MARKUP in page.locator("#said").inner_text()
    expect(page.locator("#snippet")).to_contain_text("onerror")
    assert harm in json.loads(page.locator("#snippet").inner_text().split("<<'JSON'")[1][:-4])["query"]["text"]  # fmt: skip  # noqa: E501
    assert page.locator("main img, main script, main b:not(.place b)").count() == 0
    page.route("**/v1/score/**", lambda route: route.fulfill(
        status=500, json={"detail": {"code": "<b>", "message": harm}}))  # fmt: skip
    page.click("#rerank")
    expect(page.locator("#trouble h3")).to_have_text(harm)
    assert "bad" not in page.title()


def test_a_key_is_asked_for_and_kept_in_the_tab(
    page: Any, serve: Callable[..., Server], tiny_bert: Path, tmp_path: Path
) -> None:
    """A wrong one is refused readably; the right one goes on with what was asked."""
    key, line = make_key("page")
    (tmp_path / "keys").write_text(f"{line}\n")
    (tmp_path / "keys").chmod(0o600)
    models = (ModelSettings(name=MODEL, source=str(tiny_bert)),)
    server = serve(models=models, api_key_file=str(tmp_path / "keys"))
    page.goto(f"{server.url}/")
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("sie_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-wrong")).to_contain_text("The key was refused")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#model option", state="attached")
    assert page.locator("#keybox").is_hidden()
    fill(page, DOCUMENTS)
    rerank(page)
    assert page.evaluate("[sessionStorage.length, sessionStorage['sie-api-key']]") == [1, key]
    assert key not in page.evaluate("JSON.stringify({...localStorage})")
    assert key not in page.content()
    page.locator("#code summary").click()
    expect(page.locator("#snippet")).to_contain_text("$SIE_API_KEY")
    page.click("#forget")
    expect(page.locator("#keybox")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_model_that_loads_is_waited_for(
    page: Any, serve: Callable[..., Server], make_tiny_bert: Callable[..., Path]
) -> None:
    """The page says so, counts down, and comes back by itself."""
    cold = make_tiny_bert()  # the process has the others in memory by now
    server = serve(models=(ModelSettings(name=MODEL, source=str(cold), preload=False),))
    visit(page, server.url)
    expect(page.locator("#model-state")).to_contain_text("not loaded yet")
    fill(page, DOCUMENTS)
    page.click("#rerank")
    expect(page.locator("#trouble")).to_contain_text("is loading")
    expect(page.locator("#trouble")).to_contain_text("Trying again in")
    page.wait_for_selector("#order:not([hidden])")
    assert shown(page) == in_order(score(server.url, DOCUMENTS), DOCUMENTS)
    assert page.locator("#trouble").inner_text() == ""
    assert sum("/v1/score/" in url for url in page.asked) >= 2
    expect(page.locator("#model-state")).to_contain_text("loaded")


def test_a_call_can_be_cancelled(page: Any, served: str) -> None:
    """Escape ends the wait for a model, and nothing is sent again."""
    visit(page, served)
    fill(page, DOCUMENTS)
    loading = {"detail": {"code": "MODEL_LOADING", "message": "it is loading"}}
    page.route("**/v1/score/**", lambda route: route.fulfill(
        status=503, json=loading, headers={"Retry-After": "600"}))  # fmt: skip
    page.click("#rerank")
    expect(page.locator("#trouble")).to_contain_text("Trying again in 600 s")
    page.keyboard.press("Escape")
    expect(page.locator("#rerank")).to_contain_text("Rerank")
    assert page.locator("#trouble").inner_text() == ""


def test_scores_of_other_documents_are_not_shown(page: Any, served: str) -> None:
    """Whoever changes the documents while they are scored ends that call."""
    visit(page, served)
    fill(page, DOCUMENTS)
    page.route("**/v1/score/**", lambda _: None)  # is never answered
    with page.expect_request("**/v1/score/**"):
        page.click("#rerank")
    with page.expect_event("requestfailed"):
        page.fill("#documents", "another")
    expect(page.locator(".row")).to_have_count(1)
    expect(page.locator("#rerank")).to_contain_text("Rerank")
    assert page.locator("#order").is_hidden()
    assert page.locator("#trouble").inner_text() == ""


def test_errors_are_readable(page: Any, served: str) -> None:
    """The server's own words and code; how long it asks to wait; and if it does not answer."""
    visit(page, served)
    fill(page, ["w"] * 513)
    page.click("#rerank")
    expect(page.locator("#trouble h3")).to_contain_text("513 items")
    expect(page.locator("#trouble code")).to_have_text("INVALID_INPUT, HTTP 400")
    fill(page, DOCUMENTS)
    full = {"detail": {"code": "QUEUE_FULL", "message": "too much waits"}}
    page.route("**/v1/score/**", lambda route: route.fulfill(
        status=503, json=full, headers={"Retry-After": "7"}))  # fmt: skip
    page.click("#rerank")
    expect(page.locator("#trouble h3")).to_have_text("too much waits")
    expect(page.locator("#trouble button")).to_contain_text("wait 7 s")
    page.unroute("**/v1/score/**")
    page.route("**/v1/score/**", lambda route: route.abort())
    page.click("#rerank")
    expect(page.locator("#trouble h3")).to_contain_text("did not answer")
    page.unroute("**/v1/score/**")
    page.locator("#trouble button").click()
    page.wait_for_selector("#order:not([hidden])")
    assert page.locator("#trouble").inner_text() == ""


def test_the_page_finds_a_server_that_comes_back(page: Any, served: str) -> None:
    """It says that there is no answer, and goes on asking."""
    page.route("**/v1/**", lambda route: route.abort())
    page.goto(f"{served}/")
    expect(page.locator("#model-state")).to_contain_text("did not answer")
    expect(page.locator("#facts")).to_contain_text("did not answer")
    page.unroute("**/v1/**")
    expect(page.locator("#facts")).to_contain_text("up ")
    expect(page.locator("#model option")).to_have_count(3)
    expect(page.locator("#model-state")).to_contain_text("loaded")


def test_what_is_missing_is_asked_for(page: Any, served: str) -> None:
    """By a sentence at the field, which gets the focus."""
    visit(page, served)
    page.click("#rerank")
    expect(page.locator("#query")).to_be_focused()
    expect(page.locator("#query-wrong")).to_have_text("Write a query first.")
    page.keyboard.type("q")
    page.click("#rerank")
    expect(page.locator("#documents")).to_be_focused()
    assert not [url for url in page.asked if "/v1/score/" in url]


FILES = {
    "notes.txt": ("first\n\nsecond\n", ["first", "second"]),
    "rows.jsonl": (
        '{"id": "a", "text": "one\\ntwo"}\n{"text": ""}\nno json\n"three"\n',
        ["one\ntwo", "three"],
    ),
    "table.csv": (
        'id,text\n7,"with ""quotes"", a comma\nand a line"\n8,plain\n9,\n',
        ['with "quotes", a comma\nand a line', "plain"],
    ),
    "bare.csv": (
        "1;a long text here\n2;another long text\n",
        ["a long text here", "another long text"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_can_be_dropped(page: Any, served: str, name: str) -> None:
    """Their documents follow what is pasted, and go again with the file."""
    content, documents = FILES[name]
    visit(page, served)
    fill(page, ["pasted"])
    data = page.evaluate_handle(
        """([name, content]) => {
            const data = new DataTransfer();
            data.items.add(new File([content], name));
            return data;
        }""",
        [name, content],
    )
    page.dispatch_event("#documents", "dragover", {"dataTransfer": data})
    page.dispatch_event("#documents", "drop", {"dataTransfer": data})
    expect(page.locator("#files li")).to_contain_text(f"{name}: 2 documents")
    with page.expect_request("**/v1/score/**") as asked:
        rerank(page)
    items = asked.value.post_data_json["items"]
    assert [item["text"] for item in items] == ["pasted", *documents]
    assert len({item["id"] for item in items}) == 3
    left_out = page.locator("#files li").inner_text()
    assert ("left out" in left_out) == (name in {"rows.jsonl", "table.csv"})
    page.get_by_role("button", name=f"Remove {name}").click()
    expect(page.locator(".row")).to_have_count(1)


def test_a_file_of_another_kind_is_refused(page: Any, served: str) -> None:
    """By name, and the page stays where it is."""
    visit(page, served)
    page.set_input_files("#file", {"name": "x.pdf", "mimeType": "application/pdf", "buffer": b"%"})
    expect(page.locator("#documents-wrong")).to_contain_text("x.pdf is none of the files")


def test_paragraphs_may_hold_lines(page: Any, served: str) -> None:
    """Blank lines stand between documents then, however the lines end."""
    visit(page, served)
    page.fill("#query", QUERY)
    page.fill("#documents", "one\ntwo\n\n \nthree\n\n")
    expect(page.locator("#counted")).to_contain_text("3 documents, one on each line")
    page.get_by_label("a paragraph").check()
    expect(page.locator("#counted")).to_contain_text("2 documents, with blank lines between")
    with page.expect_request("**/v1/score/**") as asked:
        rerank(page)
    assert [item["text"] for item in asked.value.post_data_json["items"]] == ["one\ntwo", "three"]


def test_500_documents_come_in_the_apis_order(page: Any, served: str) -> None:
    """And travel there, where motion is wanted: only those that can be seen."""
    page.emulate_media(reduced_motion="no-preference")
    documents = [
        f"{word} {i}" for i in range(125) for word in ("berlin", "museum", "song", "tower")
    ]
    visit(page, served)
    fill(page, documents)
    expect(page.locator(".row")).to_have_count(500)
    page.evaluate(
        """() => {
            window.travelling = 0;
            new MutationObserver(() => {
                const now = document.querySelectorAll(".row.moving").length;
                window.travelling = Math.max(window.travelling, now);
            }).observe(document.getElementById("rows"), { attributes: true, subtree: true });
        }"""
    )
    rerank(page)
    assert shown(page) == in_order(score(served, documents), documents)
    assert 0 < page.evaluate("travelling") < 100
    page.wait_for_selector(".row.moving", state="detached")


def test_nothing_travels_where_motion_is_not_wanted(page: Any, served: str) -> None:
    """As the system's setting says."""
    visit(page, served)
    fill(page, DOCUMENTS)
    rerank(page)
    assert page.evaluate("document.getAnimations().length") == 0


def test_what_follows_the_best_is_told_apart(page: Any, served: str) -> None:
    """`top_k` keeps the first, and a line says where they end; a wrong one is refused."""
    visit(page, served)
    fill(page, DOCUMENTS)
    page.evaluate("document.querySelector('.ask details').open = true")
    page.fill("#top", "0")
    page.click("#rerank")
    expect(page.locator("#top")).to_be_focused()
    page.fill("#top", "2")
    rerank(page)
    assert page.locator("#rows > li").nth(2).inner_text() == "the best 2 are kept, what follows is not"  # fmt: skip  # noqa: E501
    assert page.locator(".row.below").count() == len(DOCUMENTS) - 2


def test_documents_that_lost_their_end_are_marked(page: Any, served: str) -> None:
    """Those that the API names, and no others."""
    documents = [*DOCUMENTS, "berlin museum " * 400]
    visit(page, served)
    fill(page, documents)
    rerank(page)
    assert score(served, documents)["truncated"] == ["doc-7"]
    marked = page.locator(".row:has(.lost:not([hidden]))")
    assert marked.count() == 1
    assert marked.locator(".text").inner_text().startswith("berlin museum berlin")
    assert page.locator("#truncated").inner_text() == "1 document of 7 was longer than the model reads, and lost its end."  # fmt: skip  # noqa: E501


AWKWARD = ['it\'s $HOME `date` "quoted"', "back\\slash \\n and ü 😀", "berlin people"]


def test_the_code_does_what_the_page_did(page: Any, served: str, tmp_path: Path) -> None:
    """The command and the program are run as copied; both find the page's order."""
    visit(page, served)
    fill(page, AWKWARD)
    rerank(page)
    order = [AWKWARD.index(text) for text in shown(page)]
    page.locator("#code summary").click()
    page.click("#copy")
    expect(page.locator("#copied")).to_have_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    if shutil.which("curl") is not None:
        printed = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout  # noqa: S607
        found = [int(entry["item_id"][4:]) - 1 for entry in json.loads(printed)["scores"]]
        assert found == order
    page.click("#as-python")
    page.click("#copy")
    program = tmp_path / "copied.py"
    program.write_text(page.locator("#snippet").inner_text(), encoding="utf-8")
    printed = subprocess.run([sys.executable, program], capture_output=True, check=True).stdout
    assert [int(line.split()[1][4:]) - 1 for line in printed.decode().splitlines()] == order


def test_charts_say_in_words_what_they_draw(page: Any, served: str) -> None:
    """And are asked for no more once paused, or while nobody can see them."""
    page.clock.install()
    visit(page, served)
    pictures = page.locator(".vitals svg")
    assert pictures.count() == 3
    page.clock.run_for(1500)
    expect(page.locator("#facts")).to_contain_text("up ")
    for title, unit in (("Queue", "token"), ("Throughput", "documents/s"), ("Latency", "")):
        expect(pictures.filter(visible=True).and_(page.get_by_label(title))).to_have_attribute(
            "aria-label", _saying(title, unit)
        )
    page.click("#pause")
    polls = _count_polls(page)
    page.clock.run_for(5000)
    assert _count_polls(page) == polls
    with page.expect_response("**/v1/status"):
        page.click("#pause")
        page.clock.run_for(10)
    page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", { value: true, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    polls = _count_polls(page)
    page.clock.run_for(5000)
    assert _count_polls(page) == polls
    with page.expect_response("**/v1/status"):
        page.evaluate(
            "delete document.hidden; document.dispatchEvent(new Event('visibilitychange'));"
        )
        page.clock.run_for(10)


def _saying(title: str, unit: str) -> Any:
    return re.compile(rf"{title}.*: now .*{unit}.*; .*in the last two minutes")


def _count_polls(page: Any) -> int:
    return sum(url.endswith("/v1/status") for url in page.asked)


def test_the_example_fills_an_empty_page(page: Any, served: str) -> None:
    """And leads to a ranking with one more key."""
    visit(page, served)
    expect(page.locator("#blank")).to_be_visible()
    page.locator("#first-example").click()
    expect(page.locator("#rerank")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_selector("#order:not([hidden])")
    assert page.locator(".row").count() == 10
    page.click("#clear")
    expect(page.locator("#blank")).to_be_visible()
