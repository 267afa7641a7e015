import shutil
import subprocess
import sys

import pytest

from tests.services import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("wrk"), reason="Debian's wrk is not installed")
def test_the_benchmark_runs() -> None:
    command = [sys.executable, "-m", "tests.benchmark", "--smoke", "--before", str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for work in ("store a message", "export all", "import 2000 messages", "10 callers without pause"):
        assert f"| {work}" in done.stdout
