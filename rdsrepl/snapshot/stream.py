"""Let a running tail write the snapshots that are requested in its stream; the command line calls ``opener``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rdsrepl.errors import BadValue, Error
from rdsrepl.postgres import connection, versions
from rdsrepl.snapshot import table_store
from rdsrepl.snapshot.chunk_reader import ChunkReader
from rdsrepl.snapshot.incremental import IncrementalSnapshots
from rdsrepl.snapshot.initial_slot import require_not_copied
from rdsrepl.snapshot.initial_state import is_initial
from rdsrepl.snapshot.state import FilePlace, Place, SnapshotState, Status, Store
from rdsrepl.snapshot.transitions import Allowed
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.options import FormatName, TailOptions
from rdsrepl.tail.pipeline import snapshot_format
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted
from rdsrepl.units import parse_boolean

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.tail.formats.base import Format
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.progress import Observer

_FORMATS = (FormatName.json, FormatName.debezium, FormatName.wal2json)


class StreamSnapshots(IncrementalSnapshots):
    """The snapshots of a stream, with the thread that reads them."""

    def __init__(
        self,
        target: Target,
        options: TailOptions,
        checked: PreflightResult,
        store: Store,
        observer: Observer,
        replica: Callable[[str], Target],
        *,
        allowed: Allowed,
        needs_state: bool,
    ) -> None:
        def make_format(catalog: Catalog) -> Format:
            by = None if options.kinesis is None else options.kinesis.partition_by
            return snapshot_format(
                checked, options.format, catalog, partition_by=by, debezium=options.debezium, is_incremental=True
            )

        self._warn = observer.warn
        self._own_catalog = Catalog(target, observer.warn)
        fmt = make_format(self._own_catalog)
        super().__init__(
            options.slot_name,
            store,
            self._own_catalog,
            fmt.dialect,
            observer.note,
            allowed=allowed,
            is_plain=options.format is not FormatName.debezium,
            needs_state=needs_state,
        )
        wants = options.tables.wants
        self._reader = ChunkReader(
            self.shared,
            target,
            checked,
            make_format,
            wants,
            replica,
            observer.note,
            keeps_table_order=keeps_table_order(options),
        )

    def start(self) -> None:
        """Start the thread; it begins to work with the first connection of the stream."""
        self._reader.start()

    def stop(self) -> None:
        """Stop the thread, save how far the snapshots are, and release the state."""
        self._reader.stop()
        self._own_catalog.close()
        self.close()
        try:
            self.shared.close()
        except Error as exc:
            # Nothing is lost: the chunks behind the saved cursor come again.
            self._warn(f"could not save how far the snapshots are: {exc.message}")


def opener(
    target: Target,
    options: TailOptions,
    observer: Observer,
    place: Place,
    replica: Callable[[str], Target],
    *,
    allowed: Allowed,
    is_given: bool,
    was_copied: bool = False,
) -> Callable[[PreflightResult], StreamSnapshots | None]:
    """Return what ``tail.run`` calls to let snapshots take part in its stream.

    Args:
        target: the database.
        options: of the stream.
        observer: takes notes and warnings.
        place: where the state is.
        replica: returns the server that a request names.
        allowed: what requests may ask for.
        is_given: whether the user named a place for the state, or allowed something.
        was_copied: whether the slot, if it exists, was created by an initial copy.
    """

    def open_snapshots(checked: PreflightResult) -> StreamSnapshots | None:
        """Return the snapshots of a stream; None if this stream cannot have any.

        Raises:
            BadValue: the user asked for snapshots, and this stream cannot have any.
            BadState: the state is damaged, or of another slot, database or server.
            InUse: another process copies the tables of the slot at present.
        """
        if (reason := unsupported(options, checked)) is not None:
            if is_given:
                raise BadValue(f"--state and --allow-snapshot-… do not fit: {reason}", hint="omit them")
            return None
        with connection.open(target) as conn:
            require_not_copied(conn, options.slot_name)
            owner = table_store.owner_of(conn, options.slot_name)
            found = table_store.read(conn, place, owner)
        if not checked.is_planned:
            _say(found, options.slot_name, observer, was_copied=was_copied)
        return StreamSnapshots(
            target,
            options,
            checked,
            table_store.open_store(place, owner, target),
            observer,
            replica,
            allowed=allowed,
            needs_state=place != FilePlace(),
        )

    return open_snapshots


def _say(found: tuple[SnapshotState, ...] | None, slot_name: str, observer: Observer, *, was_copied: bool) -> None:
    """Say which snapshots go on, and that it is not known whether the initial copy is complete."""
    for one in found or ():
        if one.status in (Status.requested, Status.running):
            left = sum(not table.is_done for table in one.tables)
            observer.note(f"snapshot {one.request.id} goes on: {counted(left, 'table')} of {len(one.tables)} to read")
    if was_copied and not any(is_initial(one.request.id) for one in found or ()):
        observer.warn(
            f"slot {slot_name} exists, and this state does not have its --snapshot: if that did not end, rows are "
            "missing. Use the state of that run (--state), or read the tables again "
            f"({command('snapshot start --slot {} --table TABLE', slot_name)})"
        )


def keeps_table_order(options: TailOptions) -> bool:
    """Return whether the output keeps the order of a table's changes, also of a table without a key."""
    return options.kinesis is None or options.kinesis.partition_by in ("key", "table")


def unsupported(options: TailOptions, checked: PreflightResult) -> str | None:
    """Return why a stream cannot have snapshots; None if it can."""
    if checked.slot.plugin != "pgoutput":
        return f"snapshots need a slot with the plugin pgoutput, and this one has {checked.slot.plugin}"
    if checked.version < versions.PGOUTPUT_MESSAGES_SINCE:
        return f"snapshots need PostgreSQL {versions.PGOUTPUT_MESSAGES_SINCE} or later"
    if checked.slot.two_phase:
        return "the slot decodes prepared transactions when they are prepared"
    if options.format not in _FORMATS:
        return f"snapshots are not supported with --format {options.format.value}"
    if not options.confirm:
        return "--no-confirm reads changes again"
    if parse_boolean(options.plugin_options.get("messages", "true")) is not True:
        return "--plugin-option messages is off"
    return None
