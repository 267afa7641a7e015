"""Swagger UI, as a user meets it, in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, is_installed
from tests.services import KEY, Service

pytestmark = pytest.mark.skipif(not is_installed(), reason="Debian's chromium and chromium-driver are not installed")
STATUS = "tr.response td.response-col_status"


@pytest.fixture
def browser(folder: Path) -> Iterator[Browser]:
    opened = Browser(folder / "profile")
    yield opened
    opened.close()


def authorize(browser: Browser) -> None:
    browser.click("button.authorize")
    browser.type(".modal-ux input", KEY)
    browser.click(".modal-ux button.authorize")
    browser.click(".modal-ux button.btn-done")


def execute(browser: Browser, operation: str) -> tuple[str, str]:
    """Open an operation, send its example as it is, and give the status and the body of the answer."""
    browser.click(f"{operation} .opblock-summary-control")
    browser.click(f"{operation} button.execute")
    answer = f"{operation} .live-responses-table"
    body = browser.text(f"{answer} .highlight-code")
    return browser.text(f"{answer} {STATUS}").split()[0], body[body.index("{") :]


def outside(browser: Browser, service: Service) -> list[str]:
    """Give the requests that went elsewhere than to the service."""
    return [url for url in browser.requested() if url.startswith(("http", "ws")) and not url.startswith(service.url)]


def test_a_message_can_be_stored(browser: Browser, persistence: Service) -> None:
    browser.open(f"{persistence.url}/docs")
    authorize(browser)
    status, body = execute(browser, "#operations-Messages-createMessage")
    assert status == "201"
    assert "What is the capital of France?" in body
    assert browser.errors() == []
    assert outside(browser, persistence) == []


def test_a_turn_can_be_taken(browser: Browser, chat: Service) -> None:
    browser.open(f"{chat.url}/docs")
    authorize(browser)
    status, body = execute(browser, "#operations-Chat-takeTurn")
    assert status == "200"
    assert json.loads(body)["reply"]["content"] == "reply to What is the capital of France?"
    assert browser.errors() == []
    assert outside(browser, chat) == []


@pytest.mark.slow
def test_the_key_is_kept_over_a_reload(browser: Browser, persistence: Service) -> None:
    browser.open(f"{persistence.url}/docs")
    authorize(browser)
    browser.open(f"{persistence.url}/docs")
    assert browser.find("button.authorize.locked")


@pytest.mark.slow
def test_it_fits_a_phone(folder: Path, persistence: Service) -> None:
    browser = Browser(folder / "profile", width=500)
    try:
        browser.open(f"{persistence.url}/docs")
        browser.find(".opblock")
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.close()
