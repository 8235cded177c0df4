"""Read the ranges of an initial copy with several processes, and hand their lines to the output."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.errors import Error, ServerError
from rdsrepl.snapshot.initial_state import InitialState
from rdsrepl.snapshot.tables import TableRange
from rdsrepl.snapshot.worker import Block, Snapshot, read_lines
from rdsrepl.snapshot.workers import Workers
from rdsrepl.tail.sinks.base import Sink
from rdsrepl.text.counts import form, named

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

# What was accepted and is not yet written may have this size before the workers wait.
_MOST_PENDING_BYTES: Final = 16 << 20
_POLL_SECONDS: Final = 0.05
_CHECK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy is.

    Attributes:
        rows: rows read so far.
        ranges, all_ranges: ranges that are complete, and all of them.
        seconds: since the copy began.
        table: the table that is read.
    """

    rows: int
    ranges: int
    all_ranges: int
    seconds: float
    table: str


class InitialCopy:
    """Distributes ranges to workers and hands their lines to the sink.

    Attributes:
        rows, batches: how many the sink got.
        can_be_completed: whether what failed leaves out tables that can be read later.
    """

    def __init__(
        self,
        job: Snapshot,
        ranges: Sequence[TableRange],
        sink: Sink,
        progress: Callable[[Progress], None],
        warn: Callable[[str], None],
        check: Callable[[], None],
        state: InitialState | None,
    ) -> None:
        """Prepare.

        Args:
            job: what the workers have in common.
            ranges: what they read, in this order.
            sink: the output; gets batches from number 1.
            progress: called again and again.
            warn: takes warnings.
            check: called every few seconds; raises an error if the copy became useless.
            state: notes which tables the output has.
        """
        self._job, self._left, self._all = job, list(reversed(ranges)), len(ranges)
        self._state = state
        self._sink, self._progress, self._warn, self._check = sink, progress, warn, check
        self._began = self._checked_at = time.monotonic()
        self._busy: list[Pipe[Any, Any]] = []
        self.rows = self.batches = 0
        self.can_be_completed = False
        self._altered: list[str] = []

    def work(self, workers: Workers) -> None:
        """Copy everything, and wait until the sink has it.

        Raises:
            Error: a worker, the sink or the check failed, or a table was altered.
        """
        from multiprocessing.connection import wait

        try:
            for pipe in workers.pipes:
                pipe.send(self._job)
                self._give(pipe)
            while self._busy:
                self._wait_for_sink()
                ready = wait(self._busy, timeout=_POLL_SECONDS * 10)
                for pipe in [pipe for pipe in self._busy if pipe in ready]:
                    self._receive(pipe)
                self._report()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.can_be_completed = True
            raise ServerError("a process of the snapshot ended unexpectedly", hint="run the command again") from None
        workers.close()
        while self._sink.durable < self.batches:
            time.sleep(_POLL_SECONDS)
            self._report()
        if self._altered:
            self.can_be_completed = True
            was = form(len(self._altered), "was", "were")
            raise ServerError(f"{named(self._altered, most=3)} {was} altered during the snapshot: rows are missing")

    def save(self) -> None:
        """Save which tables the output has.

        Raises:
            Error: the sink failed, or the state cannot be written.
        """
        if self._state is not None:
            self._state.stored(self._sink.durable)
            self._state.save()

    def _give(self, pipe: Pipe[Any, Any]) -> None:
        if self._left:
            pipe.send(self._left.pop())
            self._busy.append(pipe)
        else:
            pipe.send(None)

    def _receive(self, pipe: Pipe[Any, Any]) -> None:
        received = pipe.recv()
        if isinstance(received, Error):
            raise received
        if isinstance(received, str):
            self._warn(received)
            return
        assert isinstance(received, Block)
        if received.rows:
            self.batches += 1
            self.rows += received.rows
            self._sink.put(self.batches, read_lines(pipe, received.size))
        name = self._job.tables[received.table].name
        if received.was_altered and name not in self._altered:
            self._altered.append(name)
        if self._state is not None:
            is_complete = received.ends_range and not received.was_altered
            self._state.received(received.table, received.rows, self.batches, ends_range=is_complete)
        if received.ends_range:
            self._busy.remove(pipe)
            self._give(pipe)

    def _wait_for_sink(self) -> None:
        while self._sink.pending_bytes > _MOST_PENDING_BYTES:
            time.sleep(_POLL_SECONDS / 5)
            self._report()

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_SECONDS:
            self._check()
            self._checked_at = now
        durable = self._sink.durable  # raises what the sink failed with
        if self._state is not None:
            self._state.stored(durable)
        done = self._all - len(self._left) - len(self._busy)
        following = self._left[-1].table if self._left else len(self._job.tables) - 1
        table = self._job.tables[following].name if self._job.tables else ""
        self._progress(Progress(self.rows, done, self._all, now - self._began, table))
