"""Swagger UI, as a user meets it, in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, is_installed
from tests.services import KEY, Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="Debian's chromium and chromium-driver are not installed"),
]


@pytest.fixture
def browser(folder: Path) -> Iterator[Browser]:
    opened = Browser(folder / "profile")
    yield opened
    opened.close()


EXPECTED = {
    "persistence": ("Messages-createMessage", "201", "What is the capital of France?"),
    "chat": ("Chat-takeTurn", "200", "reply to What is the capital of France?"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_can_be_sent_as_it_is(browser: Browser, request: pytest.FixtureRequest, name: str) -> None:
    operation, *expected = EXPECTED[name]
    service: Service = request.getfixturevalue(name)
    browser.open(f"{service.url}/docs")
    browser.click("button.authorize")
    browser.type(".modal-ux input", KEY)
    browser.click(".modal-ux button.authorize")
    browser.click(".modal-ux button.btn-done")
    browser.click(f"#operations-{operation} .opblock-summary-control")
    browser.click(f"#operations-{operation} button.execute")
    answer = f"#operations-{operation} .live-responses-table"
    body = browser.text(f"{answer} .highlight-code")
    message: Any = json.loads(body[body.index("{") :])
    status = browser.text(f"{answer} tr.response td.response-col_status").split()[0]
    assert [status, message.get("reply", message)["content"]] == expected
    assert [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    elsewhere = [
        url for url in browser.requested() if url.startswith(("http", "ws")) and not url.startswith(service.url)
    ]
    assert elsewhere == []
    browser.open(f"{service.url}/docs")
    assert browser.find("button.authorize.locked")  # the key outlives a reload
