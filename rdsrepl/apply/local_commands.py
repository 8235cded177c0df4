"""Run a command line of the user as a step of a plan."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rdsrepl.apply.results import OnWaiting, StepResult
from rdsrepl.errors import StepFailed, TimedOut
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.plan import LocalCommand

_REPORT_SECONDS: Final = 1.0
_END_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.05


def run_command(step: LocalCommand, waiting: OnWaiting, *, end_seconds: float = _END_SECONDS) -> StepResult:
    """Run a command with the shell, without input; what it prints goes to stderr.

    At its timeout and at Ctrl-C it is ended with every process of its process group: what still runs ``end_seconds``
    after SIGTERM gets SIGKILL.

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
                    ended = _end(process, end_seconds)
                    outcome = "it was ended" if ended else f"processes of its group {process.pid} still run"
                    raise TimedOut(
                        f"{step.summary}: the command did not end within {format_duration(step.timeout_seconds)}; "
                        f"{outcome}, and what it did until then stays",
                        hint="check what it did, then run the command again, or with a longer --timeout",
                    ) from None
                waiting(step, elapsed, ["the command runs"])
    except KeyboardInterrupt:
        _end(process, end_seconds)
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


def _end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """End the command and its children: politely, then at once. Return True if none of them runs any more."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + seconds
        while True:
            if not _runs(process.pid):
                process.wait()
                return True
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
    return False


def _runs(group: int) -> bool:
    """Tell whether a process of the group runs.

    A process that ended keeps its group until its parent has read its exit status: in a container, often none does.
    Linux names the states of processes in /proc (proc(5)); elsewhere such a process counts as running.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # Processes of another user, such as those of sudo.
        pass
    processes = (_stat(path) for path in Path("/proc").glob("[0-9]*/stat"))
    states = [fields[0] for fields in processes if fields and fields[2] == str(group)]
    return not states or any(state not in "ZX" for state in states)


def _stat(path: Path) -> list[str]:
    """Return the state, the parent and the process group of a process, and what follows; nothing if it ended."""
    try:
        return path.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
