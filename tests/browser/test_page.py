"""The page in a real headless Chromium, against the app on a real port."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH; install Debian's package chromium"),
]


@pytest.fixture
def url(small_bundle: Any, clean_redis: Any, fake_engine: Any, tmp_path: Path) -> Iterator[str]:
    """The running app."""
    import uvicorn

    from service.app import create_app
    from service.settings import Settings

    settings = Settings(redis_url=clean_redis.url, data_dir=tmp_path)  # type: ignore[call-arg]
    app = create_app(settings, bundle=small_bundle, make_engine=lambda: fake_engine)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not (server.started and not app.state.services.not_ready_reasons()):
        assert time.monotonic() < deadline, "the app did not become ready"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A browser tab that fails the test on any script error or refused resource."""
    from playwright.sync_api import sync_playwright

    faults: list[str] = []
    with sync_playwright() as playwright, contextlib.ExitStack() as stack:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        stack.callback(browser.close)
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        yield tab
    assert faults == []


def test_a_history_is_built_and_answered_with_the_keyboard_alone(page: Any, url: str) -> None:
    from playwright.sync_api import expect

    page.goto(url)
    expect(page.locator("#items .source.popular")).to_have_count(10)
    page.locator("#search").fill("lamp")
    expect(page.locator("#found li").first).to_contain_text("lamp")
    page.locator("#search").press("ArrowDown")
    second = page.locator("#found li[aria-selected=true]").text_content()
    page.locator("#search").press("Enter")
    expect(page.locator("#items .source.model")).to_have_count(10)
    expect(page.locator("#history .title")).to_have_text([second])
    expect(page.locator("#request")).to_contain_text('"history"')
    expect(page.locator("#response")).to_contain_text('"recommendation_id"')
    page.get_by_role("button", name="Clear history").click()
    expect(page.locator("#items .source.popular")).to_have_count(10)


def test_seen_items_can_be_left_out(page: Any, url: str) -> None:
    from playwright.sync_api import expect

    page.goto(url)
    picked = page.locator("#found li").first.text_content()
    page.locator("#found li").first.click()
    expect(page.locator("#items .source.model")).to_have_count(10)
    expect(page.locator("#items")).to_contain_text(picked)
    page.locator("#exclude-seen").check()
    expect(page.locator("#items")).not_to_contain_text(picked)
    expect(page.locator("#items li")).to_have_count(10)


def test_it_fits_a_phone(page: Any, url: str) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    page.goto(url)
    page.wait_for_selector("#items li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_the_reference_lists_every_call(page: Any, url: str) -> None:
    page.goto(f"{url}/docs")
    page.wait_for_selector(".endpoint")
    listed = page.locator(".endpoint h2 code").all_text_contents()
    paths = page.evaluate("fetch('/openapi.json').then(r => r.json()).then(a => Object.keys(a.paths))")
    assert set(listed) == set(paths)
    assert "/recommend" in listed
