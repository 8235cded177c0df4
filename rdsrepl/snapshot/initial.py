"""Copy the rows that the tables of a stream have, and begin the stream exactly where the copy ends.

A temporary slot exports a snapshot and names its position: what is visible in the snapshot committed before that
position, and the slot sends everything else. The temporary slot is copied to the permanent one, at its position, and
processes read the tables in that snapshot. The state says which tables the output has. Whatever ends the copy early (a
lost connection, a kill), the stream begins at the slot's position and reads the other tables in chunks.

Where the stream cannot do that (a table has no key, for example), the temporary slot is copied when the output has all
rows. What ends the copy before that also removes the temporary slot: no slot is left that retains WAL, and the copy
begins again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.config import Target
from rdsrepl.errors import ConnectionLost, Error, NotFound, ServerError, SinkFailed, SlotInvalidated, SlotsExhausted
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import connection
from rdsrepl.postgres.error_mapping import translating
from rdsrepl.snapshot import table_store
from rdsrepl.snapshot import tables as snapshot_tables
from rdsrepl.snapshot.chunk_reader import is_transient
from rdsrepl.snapshot.exported_snapshot import ExportedSnapshot, exported
from rdsrepl.snapshot.initial_state import InitialState
from rdsrepl.snapshot.state import FilePlace, Place
from rdsrepl.snapshot.stream import unsupported
from rdsrepl.snapshot.tables import TableRange
from rdsrepl.snapshot.worker import Block, Snapshot, read_lines
from rdsrepl.snapshot.workers import Workers
from rdsrepl.tail.model import TableFilter, Transaction
from rdsrepl.tail.options import TailOptions
from rdsrepl.tail.preflight import PreflightResult
from rdsrepl.tail.sinks.base import Sink
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

    from rdsrepl.postgres.connection import Connection

_COPY_SLOT: Final = "SELECT lsn FROM pg_catalog.pg_copy_logical_replication_slot(%s, %s, false)"
_NEXT_XID: Final = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint"
_SLOT_IS_THERE: Final = "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = %s AND active_pid = %s"
_WAL_STATUS: Final = "SELECT wal_status FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
_FREE_SLOTS: Final = """
SELECT setting::integer - (SELECT count(*) FROM pg_catalog.pg_replication_slots) FROM pg_catalog.pg_settings
 WHERE name = 'max_replication_slots'
"""
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


@dataclass(frozen=True, slots=True)
class Copied:
    """The result of a copy.

    Attributes:
        rows, tables: how many were copied.
        position: where the stream begins.
        batches: how many batches the sink got.
        failure: why it ended early; None if it did not.
        left: the tables that the stream is to read.
    """

    rows: int
    tables: int
    position: Lsn
    batches: int
    failure: str | None = None
    left: tuple[str, ...] = ()


def copy(
    target: Target,
    options: TailOptions,
    checked: PreflightResult,
    sink: Sink,
    *,
    workers: Workers,
    place: Place,
    timeout_seconds: float,
    progress: Callable[[Progress], None],
    warn: Callable[[str], None],
) -> Copied:
    """Write the rows of the published tables to SINK, wait until it has them, and create the slot behind them.

    If the copy ends early by a failure that is not lasting, the stream goes on and reads what is left.

    Args:
        target: the database.
        options: of the stream.
        checked: the result of the preflight check; its slot is planned.
        sink: the output; gets batches from number 1.
        workers: the processes that read.
        place: where the state is.
        timeout_seconds: how long to wait for transactions that are in progress when the copy begins.
        progress: called again and again.
        warn: takes warnings.

    Raises:
        TimedOut: the server waits for transactions that are in progress.
        SlotsExhausted: there is no slot for the stream besides the one of the snapshot.
        BadState, InUse: the state is damaged, or in use.
        ConnectionLost: the connection that holds the snapshot was lost; nothing is left, and the copy can begin again.
        Error: the sink failed, or a statement did; the hint says whether the slot is there.
    """
    with (
        exported(target, checked, timeout_seconds) as source,
        connection.open(target) as control,
    ):
        _require_free_slot(control)
        job, ranges = _job(control, target, options, checked, source, len(workers.pipes))
        state = _open_state(control, job, ranges, options, place, warn)
        goes_on = state is not None and state.goes_on

        def check() -> None:
            with translating():
                if goes_on:
                    _require_valid(control, options.slot_name)
                else:
                    _require_slot(control, source)

        run = _Copy(job, ranges, sink, progress, warn, check, state)
        try:
            if state is not None and goes_on:
                state.save()
                control.execute(_COPY_SLOT, (source.slot_name, options.slot_name))
            failure = None
            if goes_on:
                failure = _work(run, workers, options, warn)
            else:
                run.work(workers)
            if failure is None:
                check()
            if state is not None:
                state.stored(sink.durable)
                state.save()
            if not goes_on:
                control.execute(_COPY_SLOT, (source.slot_name, options.slot_name))
            left = tuple(state.left) if state is not None else ()
        finally:
            if state is not None:
                state.close()
    return Copied(run.rows, len(job.tables), source.position, run.batches, failure, left)


def _open_state(
    control: Connection,
    job: Snapshot,
    ranges: Sequence[TableRange],
    options: TailOptions,
    place: Place,
    warn: Callable[[str], None],
) -> InitialState | None:
    """Return the state of the copy; None if the stream cannot have snapshots, or the state cannot be written.

    Raises:
        BadState, InUse: the state is damaged, or in use.
        SinkFailed: the file that the user named cannot be written.
    """
    reason, state = unsupported(options, job.checked), None
    if reason is None:
        keyless = [table.name for table in snapshot_tables.without_key(control, job.tables)]
        if job.checked.in_recovery:
            reason = "the server is a standby"
        elif keyless:
            reason = f"table {keyless[0]} has no key that the publications send"
        owner = table_store.owner_of(control, options.slot_name)
        store = table_store.open_store(place, owner, job.target)
        try:
            state = InitialState(store, options.slot_name, job.tables, ranges, goes_on=reason is None)
        except SinkFailed as exc:
            if place != FilePlace():
                raise
            reason = exc.message
    if reason is not None:
        warn(f"a copy that ends early begins again from the start: {reason}")
    return state


def _work(run: _Copy, workers: Workers, options: TailOptions, warn: Callable[[str], None]) -> str | None:
    """Copy, with a slot that stays; return why the copy ended early, if the stream can go on, or None.

    Raises:
        Error: the stream cannot go on.
    """
    name = options.slot_name
    stays = (
        f"slot {name} is there and retains WAL: run the command again, which goes on with the tables that are not "
        f"complete, or drop it: {command('slot drop {}', name)}"
    )
    try:
        run.work(workers)
    except SlotInvalidated:
        raise
    except Error as exc:
        ends = options.stop.until_now or options.stop.until_lsn is not None
        if not ends and (run.lost_process or is_transient(exc)):
            return exc.message
        exc.hint = stays if exc.hint is None else f"{exc.hint}; {stays}"
        raise
    except KeyboardInterrupt:
        warn(stays)
        raise
    return None


def _job(
    control: Connection,
    target: Target,
    options: TailOptions,
    checked: PreflightResult,
    source: ExportedSnapshot,
    workers: int,
) -> tuple[Snapshot, list[TableRange]]:
    with control.transaction():
        control.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        control.execute(source.take_over_statement())
        wanted = TableFilter(options.tables)
        found = snapshot_tables.ls(control, checked.publications, wanted.wants)
        if missing := wanted.unmatched([table.full_name for table in found]):
            raise NotFound(
                f"--table {', '.join(missing)}: no published table to copy",
                hint="correct the name, or omit it; the slot was not created",
            )
        ranges = snapshot_tables.ranges(control, found, workers)
        row = control.execute(_NEXT_XID).fetchone()
    assert row is not None
    # No commit record begins there: the rows precede every change of the stream, and have identities of their own.
    before = str(Lsn(source.position - 1))
    job = Snapshot(
        target,
        checked,
        source.name,
        tuple(found),
        options.format,
        None if options.kinesis is None else options.kinesis.partition_by,
        options.debezium,
        Transaction.at(None, source.timeline, before, datetime.now(UTC)),
        str(source.position),
        int(row[0]),
    )
    return job, ranges


def _require_free_slot(control: Connection) -> None:
    """Check that the permanent slot can be created besides the temporary one: at the end is too late.

    Raises:
        SlotsExhausted: it cannot.
    """
    row = control.execute(_FREE_SLOTS).fetchone()
    if row is None or row[0] < 1:
        raise SlotsExhausted(
            "all max_replication_slots are in use: a snapshot needs two slots, one of them until it ends",
            hint="drop a slot that is not needed (rdsrepl slot prune --dry-run), or raise max_replication_slots",
        )


def _require_valid(control: Connection, slot_name: str) -> None:
    """Check that the slot of the stream still has all WAL since the snapshot.

    Raises:
        SlotInvalidated: it does not.
    """
    row = control.execute(_WAL_STATUS, (slot_name,)).fetchone()
    if row is None or row[0] == "lost":
        raise SlotInvalidated(
            f"slot {slot_name} is invalidated: the changes since the snapshot are gone"
            if row is not None
            else f"slot {slot_name} was dropped during the snapshot",
            hint=f"drop it ({command('slot drop {}', slot_name)}), raise max_slot_wal_keep_size, and copy again"
            if row is not None
            else "run the command again, with a new file",
        )


def _require_slot(control: Connection, source: ExportedSnapshot) -> None:
    """Check that the temporary slot is there: its connection does nothing that would show that it was lost.

    Raises:
        ConnectionLost: it is not.
    """
    if control.execute(_SLOT_IS_THERE, (source.slot_name, source.exporting.info.backend_pid)).fetchone() is None:
        raise ConnectionLost(
            "the connection that holds the snapshot was lost", hint="no slot is left; run the command again"
        )


class _Copy:
    """Distributes ranges to workers and hands their lines to the sink."""

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
        self._job, self._left, self._all = job, list(reversed(ranges)), len(ranges)
        self._state = state
        self._sink, self._progress, self._warn, self._check = sink, progress, warn, check
        self._began = self._checked_at = time.monotonic()
        self._busy: list[Pipe[Any, Any]] = []
        self.rows = self.batches = 0
        self.lost_process = False

    def work(self, workers: Workers) -> None:
        """Copy everything, and wait until the sink has it."""
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
            self.lost_process = True
            raise ServerError("a process of the snapshot ended unexpectedly", hint="run the command again") from None
        workers.close()
        while self._sink.durable < self.batches:
            time.sleep(_POLL_SECONDS)
            self._report()

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
        if self._state is not None:
            self._state.received(received.table, received.rows, self.batches, ends_range=received.ends_range)
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
        if self._state is not None:
            self._state.stored(self._sink.durable)
        done = self._all - len(self._left) - len(self._busy)
        following = self._left[-1].table if self._left else len(self._job.tables) - 1
        table = self._job.tables[following].name if self._job.tables else ""
        self._progress(Progress(self.rows, done, self._all, now - self._began, table))
