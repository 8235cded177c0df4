"""Run a command line of the user as a step of a plan."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from rdsrepl.apply.results import OnWaiting, StepResult
from rdsrepl.errors import StepFailed, TimedOut
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.plan import LocalCommand

_REPORT_SECONDS: Final = 1.0
_END_SECONDS: Final = 5.0


def run_command(step: LocalCommand, waiting: OnWaiting) -> StepResult:
    """Run a command with the shell, without input; what it prints goes to stderr.

    At its timeout and at Ctrl-C it is ended with every process that it started.

    Raises:
        StepFailed: it exited with another code than 0.
        TimedOut: it did not end in time.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        ["/bin/sh", "-c", step.command],
        stdin=subprocess.DEVNULL,
        stdout=_stderr(),
        start_new_session=True,
    )
    try:
        while True:
            try:
                code = process.wait(timeout=_REPORT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                elapsed = time.monotonic() - started
                if elapsed >= step.timeout_seconds:
                    _end(process)
                    raise TimedOut(
                        f"{step.summary}: the command did not end within {format_duration(step.timeout_seconds)}; it "
                        "was ended, and what it did until then stays",
                        hint="check what it did, then run the command again, or with a longer --timeout",
                    ) from None
                waiting(step, elapsed, ["the command runs"])
    except KeyboardInterrupt:
        _end(process)
        raise
    if code != 0:
        how = f"signal {-code}" if code < 0 else f"code {code}"
        raise StepFailed(
            f"{step.summary}: the command ended with {how}; what it did until then stays",
            hint="correct the command, then run the command again",
        )
    return StepResult(step, seconds=time.monotonic() - started)


def _stderr() -> int:
    """Return the descriptor of stderr; 2 where it has none."""
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError):
        return 2


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and its children: politely, then at once."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_SECONDS)
            return
