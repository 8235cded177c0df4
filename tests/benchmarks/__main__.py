"""Run all benchmarks and print figures and ratios; with names, only those.

``python -m tests.benchmarks slot_pairs repeats 20`` runs the functions ``report`` of these modules. Words that are not
names are arguments of the function before them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

_ALL: Final = (
    "pages",
    "aws_cli",
    "walkthrough",
    "start_up",
    "streams",
    "kinesis",
    "kinesis_shard",
    "kinesis_faults",
    "repeats",
    "file_kills",
    "corruptions",
    "snapshot",
    "snapshot_rules",
    "snapshot_kills",
    "snapshot_waits",
    "snapshot_stream",
    "replay_oracle",
    "identity",
    "fuzz",
    "sandbox_kills",
    "splits",
    "switchovers",
    "slot_pairs",
    "scale",
    "flips",
)
_PR_SET_CHILD_SUBREAPER: Final = 36


def main() -> None:
    """Run the benchmarks in a process of their own; then stop what it left running, however it ended."""
    wanted = _wanted(sys.argv[1:])
    # Processes whose parent has ended become children of this one, servers too.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    benchmarks = os.fork()
    if not benchmarks:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        for name, arguments in wanted:
            import_module(f"tests.benchmarks.{name}").report(*arguments)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(benchmarks, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the other process as well
    ended, status = 0, 0
    while ended != benchmarks:
        ended, status = os.wait()
    _stop_children()
    raise SystemExit(os.waitstatus_to_exitcode(status))


def _wanted(words: list[str]) -> list[tuple[str, list[int | str]]]:
    if not words:
        return [(name, []) for name in _ALL]
    if words[0] not in _ALL:
        raise SystemExit(f"{words[0]} is not a benchmark; the benchmarks are: {', '.join(_ALL)}")
    wanted: list[tuple[str, list[int | str]]] = []
    for word in words:
        if word in _ALL:
            wanted.append((word, []))
        else:
            wanted[-1][1].append(int(word) if word.isdecimal() else word)
    return wanted


def _end(number: int, _: object) -> None:
    """End as after Ctrl-C: what was started is stopped. A second signal does not interrupt that."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _stop_children() -> None:
    """End the processes that are left, and those that they leave; SIGQUIT is PostgreSQL's immediate shutdown."""
    for how in (signal.SIGQUIT, signal.SIGKILL):
        deadline = time.monotonic() + 10
        while (children := _children()) and time.monotonic() < deadline:
            for pid in children:
                os.kill(pid, how)
            time.sleep(0.1)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            found += [int(stat.parent.name)] if int(parent) == os.getpid() else []
    return found


if __name__ == "__main__":
    main()
