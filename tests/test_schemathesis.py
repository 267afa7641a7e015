"""Thousands of requests that the OpenAPI documents allow, and that they do not, by schemathesis."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import KEY, Service


@pytest.mark.slow
@pytest.mark.parametrize("name", ["persistence", "chat"])
def test_the_service_keeps_what_its_document_says(name: str, request: pytest.FixtureRequest, folder: Path) -> None:
    service: Service = request.getfixturevalue(name)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.url}/openapi.json"]
    command += ["-H", f"x-api-key: {KEY}", "--checks", "all", "--max-examples", "50"]
    command += ["--seed", "1"]
    # a document can't say that `after` must exist, nor that an id in the body must be the one in the path (a 422);
    # nor that a message goes with its chat: after a DELETE of that, one that was just made is a 404
    command += ["--exclude-checks", "positive_data_acceptance,ensure_resource_availability"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
