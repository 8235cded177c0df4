"""The processes that read a snapshot, and the pipes to them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.snapshot.worker import work

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe
    from multiprocessing.sharedctypes import Synchronized

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Workers:
    """Processes that wait for a snapshot.

    They are started first of all: a process without threads can be forked, and then nothing is imported again, which
    takes longer than to read a small table. Elsewhere each process imports everything again.

    Attributes:
        pipes: one for each process.
    """

    def __init__(self, count: int) -> None:
        """Start COUNT processes."""
        import psycopg  # noqa: F401 - once, for all of them

        forks = sys.platform == "linux" and threading.active_count() == 1
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        # Kept: a process that imports everything again opens its lock by name, which goes with the object.
        self._numbers = context.Value("q", 0)
        pairs = [context.Pipe() for _ in range(count)]
        self.pipes: list[Pipe[Any, Any]] = [ours for ours, _ in pairs]
        # A process closes its copies of the other ends: it must see that this process has ended.
        self._processes = [
            context.Process(
                target=_run,
                args=(
                    theirs,
                    [end for pair in pairs for end in pair if end is not theirs] if forks else [],
                    self._numbers,
                ),
                daemon=True,
            )
            for _, theirs in pairs
        ]
        with _without_signals():
            for process in self._processes:
                process.start()
        for _, theirs in pairs:
            theirs.close()

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


@contextmanager
def _without_signals() -> Iterator[None]:
    """Let signals wait, also those of the processes that are started: they have this process's handlers at first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(pipe: Pipe[Any, Any], others: list[Pipe[Any, Any]], numbers: Synchronized[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all processes; the first one ends the rest
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    for other in others:
        other.close()
    work(pipe, numbers)


def _end_with_parent() -> None:
    """End this process when its parent has ended: it may wait for the server, for a lock for example."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
