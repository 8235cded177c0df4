"""Copy the rows that the tables of a stream have, and begin the stream exactly where the copy ends.

A temporary slot exports a snapshot and names its position: what is visible in the snapshot committed before that
position, and the slot sends everything else. The temporary slot is copied to the permanent one, at its position, and
processes read the tables in that snapshot. The state says which tables the output has. Whatever ends the copy early (a
lost connection, a kill), the stream begins at the slot's position and reads the other tables in chunks.

Where the stream cannot do that (before PostgreSQL 14, for example), the temporary slot is copied when the output has
all rows. What ends the copy before that also removes the temporary slot: no slot is left that retains WAL, and the copy
begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.config import Target
from rdsrepl.errors import AlreadyExists, Error, InUse, NotFound, SinkFailed, SlotInvalidated, Unreachable
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import connection
from rdsrepl.snapshot import table_store
from rdsrepl.snapshot import tables as snapshot_tables
from rdsrepl.snapshot.chunk_reader import is_transient
from rdsrepl.snapshot.exported_snapshot import ExportedSnapshot, exported
from rdsrepl.snapshot.initial_copy import InitialCopy, Progress
from rdsrepl.snapshot.initial_slot import InitialSlot
from rdsrepl.snapshot.initial_state import InitialState
from rdsrepl.snapshot.state import FilePlace, Place
from rdsrepl.snapshot.stream import keeps_table_order, unsupported
from rdsrepl.snapshot.tables import TableRange
from rdsrepl.snapshot.worker import Snapshot
from rdsrepl.snapshot.workers import Workers
from rdsrepl.tail.model import Transaction
from rdsrepl.tail.options import TailOptions
from rdsrepl.tail.preflight import PreflightResult
from rdsrepl.tail.sinks.base import Sink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rdsrepl.postgres.connection import Connection

_NEXT_XID: Final = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint"


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
    with exported(target, checked, timeout_seconds) as source, connection.open(target) as control:
        slot = InitialSlot(control, source, options.slot_name)
        slot.require_possible()
        job, ranges = _job(control, target, options, checked, source, len(workers.pipes))
        state = _open_state(control, job, ranges, options, place, warn)
        run = InitialCopy(job, ranges, sink, progress, warn, slot.check, state)
        try:
            with _saying(slot, warn):
                slot.check()  # another process may have had the state until now
                if state is None or not state.goes_on:
                    run.work(workers)
                    slot.check()
                    run.save()
                    slot.create()
                    return Copied(run.rows, len(job.tables), source.position, run.batches)
                state.save()
                slot.create()
                failure = _work(run, slot, workers, ends=options.stop.until_now or options.stop.until_lsn is not None)
                return Copied(run.rows, len(job.tables), source.position, run.batches, failure, tuple(state.left))
        finally:
            if state is not None:
                state.close()


def _work(run: InitialCopy, slot: InitialSlot, workers: Workers, *, ends: bool) -> str | None:
    """Copy, with a slot that stays; return why the copy ended early, if the stream can go on, or None.

    Args:
        run: the copy.
        slot: of the stream.
        workers: the processes that read.
        ends: whether the stream will end by itself, perhaps before it has read what is left.

    Raises:
        Error: the stream cannot go on.
    """
    try:
        run.work(workers)
        slot.check()
    except (Error, KeyboardInterrupt) as exc:
        with suppress(Error):
            run.save()
        if not isinstance(exc, Error) or ends or not (run.can_be_completed or is_transient(exc)):
            raise
        with suppress(Unreachable):
            slot.check()
        return exc.message
    run.save()
    return None


@contextmanager
def _saying(slot: InitialSlot, warn: Callable[[str], None]) -> Iterator[None]:
    """Say what an error or Ctrl-C leaves behind."""
    try:
        yield
    except (SlotInvalidated, AlreadyExists, InUse):
        raise  # they say it
    except Error as exc:
        if slot.what_is_left != exc.hint:
            exc.hint = "; ".join(part for part in (exc.hint, slot.what_is_left) if part)
        raise
    except KeyboardInterrupt:
        warn(slot.what_is_left)
        raise


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
        whole = snapshot_tables.without_key(control, job.tables)
        if job.checked.in_recovery:
            reason = "the server is a standby"
        elif whole and not keeps_table_order(options):
            reason = f"table {whole[0].name} has no key, and --partition-by spreads its rows"
        owner = table_store.owner_of(control, options.slot_name)
        store = table_store.open_store(place, owner, job.target)
        try:
            state = InitialState(store, options.slot_name, job.tables, ranges, whole=whole, goes_on=reason is None)
        except SinkFailed as exc:
            if place != FilePlace():
                raise
            reason = f"{exc.message}; {exc.hint}"
    if reason is not None:
        warn(f"a copy that ends early begins again from the start: {reason}")
    return state


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
        wanted = options.tables
        found = snapshot_tables.ls(control, checked.publications, wanted.wants)
        if missing := wanted.unmatched([table.full_name for table in found]):
            raise NotFound(
                f"--table {', '.join(missing)}: no published table to copy",
                hint="correct the name, or omit it; the slot was not created",
            )
        snapshot_tables.require_readable(control, found)
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
