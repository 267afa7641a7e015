"""Processes that we start, and that must not outlive us."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # prctl(2)


def _end_with_parent(end_signal: signal.Signals) -> Callable[[], None]:
    """Make what a child calls first: the kernel sends it `end_signal` when its parent dies, kill -9 included."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None).prctl  # looked up here: a child between fork and exec should do little
    parent = os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, end_signal)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return prepare


def start(
    command: Sequence[str | Path], *, env: Mapping[str, str], end_signal: signal.Signals, **options: Any
) -> "subprocess.Popen[bytes]":
    """Start `command` in a session of its own, which a terminal's Ctrl-C does not reach.

    `env` is all of its environment; `options` go to subprocess.Popen.
    """
    return subprocess.Popen(  # noqa: S603  # our own commands
        [str(part) for part in command],
        env=dict(env),
        start_new_session=True,
        preexec_fn=_end_with_parent(end_signal),  # one system call, and no lock is taken
        **options,
    )


def stop(process: "subprocess.Popen[bytes]", end_signal: signal.Signals, seconds: float) -> None:
    """Send `end_signal`, wait until the process has ended, and kill it after `seconds`."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(end_signal)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
