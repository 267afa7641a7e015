"""Swagger UI, as a user meets it, in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, is_installed
from tests.services import KEY, Service, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="Debian's chromium and chromium-driver are not installed"),
]

# give the key and send the example of an operation; return the status and the body of the answer
SEND = """
const [operation, key] = arguments;
const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
async function find(css) {
  for (;;) {
    const found = [...document.querySelectorAll(css)].find(element => element.offsetParent);
    if (found) return found;
    await pause(20);
  }
}
const click = async css => (await find(css)).click();
await click("button.authorize");
const input = await find(".modal-ux input");
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, key);
input.dispatchEvent(new Event("input", {bubbles: true}));
await click(".modal-ux button.authorize");
await click(".modal-ux button.btn-done");
await click(`#operations-${operation} .opblock-summary-control`);
await find(`#operations-${operation} textarea`);
await pause(1000); // the page fills the example in, and takes no notice of who is faster
await click(`#operations-${operation} button.execute`);
const answer = `#operations-${operation} .live-responses-table`;
const body = await find(`${answer} .highlight-code`);
return [(await find(`${answer} tr.response td.response-col_status`)).innerText, body.innerText];
"""
EXPECTED = {
    "persistence": ("Messages-createMessage", "201", "What is the capital of France?"),
    "chat": ("Chat-takeTurn", "200", "reply to What is the capital of France?"),
}


@pytest.fixture
def browser(folder: Path) -> Iterator[Browser]:
    opened = Browser(folder / "profile")
    yield opened
    opened.close()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_can_be_sent_as_it_is(browser: Browser, request: pytest.FixtureRequest, name: str) -> None:
    operation, *expected = EXPECTED[name]
    service: Service = request.getfixturevalue(name)
    browser.open(f"{service.url}/docs")
    status, body = browser.run(SEND, operation, KEY)
    message: Any = json.loads(body[body.index("{") :])
    assert [status.split()[0], message.get("reply", message)["content"]] == expected
    assert [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    requested = [url for url in browser.requested() if url.startswith(("http", "ws"))]
    assert [url for url in requested if not url.startswith(service.url)] == []
    browser.open(f"{service.url}/docs")
    wait_for(lambda: browser.run("return document.querySelector('button.authorize.locked')"), what="the key, kept")
