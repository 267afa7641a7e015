import shutil
import subprocess
import sys

import pytest

from tests.services import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("wrk"), reason="Debian's wrk is not installed")
def test_the_benchmark_runs() -> None:
    command = [sys.executable, "-m", "tests.benchmark", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for work in ("POST /messages/", "export of all messages", "first delta of a stream"):
        assert f"| {work} " in done.stdout
