"""The page at / and the reference at /docs, in a real headless Chromium with no other network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.bundle import load_bundle
from tests.service.fleet import KEY, make_shelf

pytestmark = pytest.mark.browser

# Root inside a container has no user namespaces for Chromium's sandbox; nothing may phone home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def site(serve_app) -> Iterator[str]:
    with serve_app() as url:
        yield url


@contextmanager
def opened(browser, url: str, **options) -> Iterator:
    """A page on which every script error, broken policy and foreign request is a failure."""
    page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if "Failed to load resource" not in m.text else None)
    origin = "/".join(url.split("/")[:3])
    page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(origin) else None)
    page.set_default_timeout(5000)
    page.goto(url)
    try:
        yield page
        assert problems == []
    finally:
        page.close()


def has_count(page, selector: str, number: int) -> None:
    """Wait until so many elements match. (`wait_for_function` is forbidden by the page's own policy.)"""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(number)


def cards(page) -> list[str]:
    return page.locator("#items li strong").all_inner_texts()


def test_popular_first_then_pick_by_keyboard_and_see_recommendations(browser, site):
    with opened(browser, site) as page:
        page.wait_for_selector("#items li")
        assert set(page.locator("#items .source").all_inner_texts()) == {"popular"}
        assert "small · 40 items · fake" in page.inner_text("#served")
        popular = cards(page)
        page.keyboard.press("Tab")
        page.focus("#search")
        page.keyboard.type("blue chair")
        has_count(page, "#found [role=option]", 2)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        page.wait_for_selector("#items .source.model")
        assert page.locator("#history li").all_inner_texts()[0].startswith("Blue chair No. 9")
        assert cards(page) != popular and "Blue chair No. 9" not in cards(page)
        assert page.locator("#items > li").count() == 10
        assert "%" in page.inner_text("#items li:first-child .score")
        assert '"history": ["item-9"]' in page.inner_text("#request")
        assert '"recommendation_id"' in page.inner_text("#response")
        page.keyboard.press("Backspace")  # on the empty field: takes the last one back
        page.wait_for_selector("#items .source.popular")
        assert cards(page) == popular


def test_add_from_results_change_options_and_remove(browser, site):
    with opened(browser, site) as page:
        page.click("#items > li:nth-child(2) .add")
        page.wait_for_selector("#items .source.model")
        page.fill("#k", "40")
        page.fill("#beam-width", "2")
        has_count(page, "#items > li", 39)
        assert "Fewer items exist" in page.inner_text("#message")
        assert {"model"} == set(page.locator("#items .source").all_inner_texts())  # the beams were widened
        page.uncheck("#exclude-seen")
        has_count(page, "#items > li", 40)
        page.click("#history li button")
        has_count(page, "#items .model", 0)
        assert page.is_visible("#history-empty")


def test_titles_are_text_never_markup(browser, site):
    with opened(browser, site) as page:
        page.fill("#search", "39")
        page.wait_for_selector("#found [role=option] >> text=<b>No.</b> 39")
        page.fill("#search", "item-39")
        page.keyboard.press("Enter")  # at once: means what was typed, not the list still shown
        page.wait_for_selector("#history li")
        assert "<b>No.</b> 39" in page.inner_text("#history")


def test_a_dead_engine_and_a_wrong_k_are_shown_as_sentences(browser, site, fake_engine):
    with opened(browser, site) as page:
        page.wait_for_selector("#items li")
        fake_engine.start_error = RuntimeError("still broken")
        page.fill("#k", "500")
        page.wait_for_selector("#message.error")
        assert page.inner_text("#message") == "'k' must be at most 200, got 500"
        page.fill("#k", "5")
        has_count(page, "#items > li", 5)
        fake_engine.kill()
        page.click("#items > li:first-child .add")
        page.wait_for_selector("#message:has-text('Something is away')")
        assert set(page.locator("#items .source").all_inner_texts()) == {"popular"}


def test_a_fact_becomes_a_filter_and_a_wrong_filter_a_sentence(browser, site):
    with opened(browser, site) as page:
        page.click("#items .fact:has-text('colour: blue')")
        has_count(page, "#items > li", 10)
        has_count(page, "#items > li:has-text('Blue')", 10)
        assert '"colour": "blue"' in page.inner_text("#request")
        page.fill("#filter", '{"colour": ')
        page.wait_for_selector("#filter-problem:has-text('Not JSON yet')")
        page.fill("#filter", '{"color": "blue"}')
        page.wait_for_selector("#message.error:has-text('colour')")  # names the attributes that there are


def test_why_shows_what_the_history_did_and_what_the_codes_mean(browser, site):
    with opened(browser, site) as page:
        page.uncheck("#exclude-seen")
        for title in ("Red lamp No. 0", "Blue chair No. 9"):
            page.fill("#search", title)
            page.wait_for_selector(f"#found [role=option]:has-text('{title}')")
            page.keyboard.press("Enter")
        page.wait_for_selector("#items > li:first-child .source.model")
        page.wait_for_selector("#items > li:first-child:has-text('Blue chair No. 9')")
        page.click("#items > li:first-child summary")
        page.wait_for_selector("#items .bars li:has-text('Blue chair No. 9')")
        text = page.inner_text("#items > li:first-child .why")
        assert "begins like Blue chair No. 9 (3 of 3 codes)" in text
        assert "<a_0><b_2> chair" in text


def test_live_numbers_count_this_pages_own_requests(browser, site):
    with opened(browser, site) as page:
        page.wait_for_selector("#items li")
        page.click("#live summary")
        page.wait_for_selector("#numbers div:has-text('engine') dd:has-text('up')")
        assert int(page.inner_text("#numbers div:has(dt:text-is('requests')) dd")) >= 1


@pytest.fixture
def site_with_two(serve_app, small_bundle_dir, tmp_path) -> Iterator[str]:
    """A service in an experiment: the small bundle against one with other SIDs and five items more."""
    shelf = make_shelf(small_bundle_dir, tmp_path)
    with serve_app(bundles_dir=shelf, admin_key=KEY) as url:
        body = {"bundle_id": load_bundle(shelf / "two").bundle_id, "share": 0.5, "name": "other codes"}
        response = httpx.post(
            f"{url}/admin/experiments",
            params={"wait_s": 30},
            headers={"X-API-Key": KEY},
            json=body,
            timeout=40,
        )
        assert response.status_code == 201, response.text
        yield url


def test_two_bundles_side_by_side(browser, site_with_two, tmp_path):
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    for name, options in {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "phone": {"viewport": {"width": 360, "height": 740}},
    }.items():
        with opened(browser, site_with_two, **options) as page:
            page.wait_for_selector("#items li")
            assert page.is_hidden("#sides")
            page.fill("#search", "Blue chair No. 9")
            page.wait_for_selector("#found [role=option]:has-text('Blue chair No. 9')")
            page.keyboard.press("Enter")
            page.wait_for_selector("#items .source.model")
            page.focus("#compare")
            page.keyboard.press("Space")
            has_count(page, ".side", 2)
            has_count(page, ".side >> nth=0 >> .items > li", 10)
            has_count(page, ".side >> nth=1 >> .items > li", 10)
            assert page.is_hidden("#items")
            columns = [
                page.locator(f".side >> nth={n} >> .items > li").evaluate_all(
                    "all => all.map(e => e.dataset.item)"
                )
                for n in (0, 1)
            ]
            for mine, other, side in ((*columns, 0), (*columns[::-1], 1)):
                marks = page.locator(f".side >> nth={side} >> .mark > [aria-hidden]").all_inner_texts()
                assert marks == [_mark(mine, other, item) for item in mine]
            shared = len(set(columns[0]) & set(columns[1]))
            assert f"{shared} items in both" in page.inner_text("#sides > p")
            assert '"variant": "b"' in page.inner_text("#response")
            both = next(item for item in columns[0] if item in columns[1])
            page.locator(f".side >> nth=0 >> li[data-item={both}] >> .add").focus()
            has_count(page, f"li.twin[data-item={both}]", 2)  # the same item is marked in both columns
            page.click("#live summary")
            page.wait_for_selector("#experiment tbody tr >> nth=1")
            page.screenshot(path=shots / f"compare-{name}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            page.uncheck("#compare")
            page.wait_for_selector("#items > li")
            assert page.is_hidden("#sides")


def _mark(mine: list[str], other: list[str], item: str) -> str:
    if item not in other:
        return "only here"
    up = other.index(item) - mine.index(item)
    return "=" if not up else f"\u25b2 {up}" if up > 0 else f"\u25bc {-up}"


def test_without_an_experiment_there_is_nothing_to_compare(browser, site):
    with opened(browser, site) as page:
        page.wait_for_selector("#items li")
        assert page.is_hidden("#compare-choice") and page.is_hidden("#experiment")


def test_both_themes_and_a_phone(browser, site):
    backgrounds = set()
    for scheme in ("light", "dark"):
        with opened(browser, site, color_scheme=scheme) as page:
            page.wait_for_selector("#items li")
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.click("#theme")
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
    with opened(browser, site, viewport={"width": 360, "height": 740}) as page:
        for path in ("/", "/docs"):
            page.goto(site + path)
            page.wait_for_selector("#items li, details")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_reference_lists_every_operation_and_sends_real_requests(browser, site):
    with opened(browser, site + "/docs") as page:
        page.wait_for_selector("details")
        paths = page.locator(".path").all_inner_texts()
        assert {"/recommend", "/items", "/items/{item_id}", "/readyz", "/info", "/metrics"} <= set(paths)
        assert {"/recommend/batch", "/events", "/events/bulk", "/users/{user_id}", "/items/bulk"} <= set(
            paths
        )
        page.click("details[open] button:has-text('Send')")
        page.wait_for_selector("details[open] pre:has-text('recommendation_id')")
        assert '"source": "model"' in page.inner_text("details[open] pre")


def test_page_asks_for_a_key_where_one_is_needed(browser, serve_app):
    key = "0123456789abcdef"
    with serve_app(api_key=key) as url:
        page = browser.new_page()
        page.set_default_timeout(5000)
        page.goto(url)
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#items li")
        assert page.is_hidden("#key-form")
        page.close()
