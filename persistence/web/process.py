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


def _make_end_with_parent(end_signal: signal.Signals, parent: int) -> Callable[[], None]:
    """Make what a child calls first: the kernel sends it `end_signal` when its parent dies, kill -9 included."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None).prctl  # looked up here: a child between fork and exec should do little

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, end_signal)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return prepare


def end_with_parent(end_signal: signal.Signals, parent: int) -> None:
    """Have `end_signal` sent to this process when `parent` dies; what `start` started has that already."""
    _make_end_with_parent(end_signal, parent)()


def exit_on_signals() -> None:
    """Have SIGTERM and Ctrl-C end this process in order, with status 0, until its server takes them over."""
    for end_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end_signal, lambda _signal, _frame: sys.exit(0))


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
        preexec_fn=_make_end_with_parent(end_signal, os.getpid()),  # one system call, and no lock is taken
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
