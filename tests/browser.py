"""Headless Chromium, driven by the W3C's WebDriver protocol over HTTP."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import requests

from tests.services import free_port, wait_for

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--window-size=1280,1200"]


def is_installed() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One window of a fresh profile."""

    def __init__(self, profile: Path) -> None:
        port = free_port()
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}"
        wait_for(lambda: requests.get(f"{self.url}/status", timeout=5).json()["value"]["ready"], what="chromedriver")
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        session = self._post(f"{self.url}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"{self.url}/session/{session['sessionId']}"

    def _post(self, url: str, body: dict[str, Any]) -> Any:
        response = requests.post(url, json=body, timeout=60).json()["value"]
        if isinstance(response, dict) and "error" in response:
            raise LookupError(response["message"])
        return response

    def open(self, url: str) -> None:
        self._post(f"{self.session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of an async function in the page, and return what it returns."""
        return self._post(f"{self.session}/execute/sync", {"script": script, "args": arguments})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return what the browser has noted: in "browser" what its console says, in "performance" what it has done."""
        entries: list[dict[str, Any]] = self._post(f"{self.session}/se/log", {"type": kind})
        return entries

    def requested(self) -> list[str]:
        """Return the addresses of all requests that were made."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        requests.delete(self.session, timeout=60)
        self.driver.terminate()
        self.driver.wait()
