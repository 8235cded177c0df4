"""The slot of a stream that begins with a copy of its tables.

It is a copy of the temporary slot that exports the snapshot, so it begins at the snapshot's position. Until the stream
reads it, nothing else may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rdsrepl.errors import AlreadyExists, ConnectionLost, InUse, NotFound, SlotInvalidated, SlotsExhausted
from rdsrepl.postgres import server_identity, slots
from rdsrepl.postgres.error_mapping import translating
from rdsrepl.snapshot.exported_snapshot import ExportedSnapshot
from rdsrepl.state import streamed_slots
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

_COPY: Final = "SELECT lsn FROM pg_catalog.pg_copy_logical_replication_slot(%s, %s, false)"
_ABOUT: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = %(slot)s),
       EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = %(temporary)s AND active_pid = %(pid)s)
"""
_FREE: Final = """
SELECT setting::integer - (SELECT count(*) FROM pg_catalog.pg_replication_slots) FROM pg_catalog.pg_settings
 WHERE name = 'max_replication_slots'
"""
# The temporary slot of a copy, and the slot that was created from it and that nothing has read.
_COPIED: Final = """
SELECT t.active_pid FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_replication_slots t
    ON t.temporary AND t.active AND pg_catalog.starts_with(t.slot_name::text, 'rdsrepl_snapshot_')
   AND t.restart_lsn = s.restart_lsn AND t.confirmed_flush_lsn = s.confirmed_flush_lsn
 WHERE s.slot_name = %s AND NOT s.temporary
"""
_AGAIN: Final = "run the command again, with a new file: it copies all rows again"
_LIMITS: Final = {"idle_timeout": "idle_replication_slot_timeout"}


class InitialSlot:
    """The slot of the stream, from the snapshot to the beginning of the stream.

    Attributes:
        name: the slot.
        is_created: whether it is there.
    """

    def __init__(self, control: Connection, source: ExportedSnapshot, name: str) -> None:
        """Prepare; nothing is created.

        Args:
            control: a connection to the database.
            source: the snapshot with the temporary slot.
            name: the slot to create.
        """
        self._control, self._source, self.name = control, source, name
        self.is_created = False

    @property
    def what_is_left(self) -> str:
        """What a copy that ends now leaves behind, and what to do, for people."""
        if self.is_created:
            return (
                f"slot {self.name} is there and retains WAL: run the command again, which goes on with the tables that "
                f"are not complete, or drop it: {command('slot drop {}', self.name)}"
            )
        return f"no slot is left; {_AGAIN}"

    def require_possible(self) -> None:
        """Check that the slot can be created besides the temporary one: at the end is too late.

        Raises:
            AlreadyExists: it exists by now.
            SlotsExhausted: there is no slot left.
        """
        self._require_planned()
        row = self._control.execute(_FREE).fetchone()
        if row is None or row[0] < 1:
            raise SlotsExhausted(
                "all max_replication_slots are in use: a snapshot needs two slots, one of them until it ends",
                hint="drop a slot that is not needed (rdsrepl slot prune --dry-run), or raise max_replication_slots",
            )

    def create(self) -> None:
        """Create the slot at the position of the snapshot.

        Raises:
            AlreadyExists: another process created one with this name.
            Error: the server refused it.
        """
        try:
            with translating():
                self._control.execute(_COPY, (self._source.slot_name, self.name))
        except AlreadyExists:
            raise self._created_by_another() from None
        self.is_created = True
        # What an older slot of this name has delivered is no gap before this one.
        streamed_slots.delete(server_identity.system_identifier(self._control) or "", self.name)

    def check(self) -> None:
        """Check that the stream can begin at the position of the snapshot.

        Raises:
            ConnectionLost: the slot is not created, and the temporary slot is gone.
            AlreadyExists: the slot is not created, and another process has created one with its name.
            SlotInvalidated: the slot was invalidated or dropped.
            InUse: another process has read changes from it.
        """
        with translating():
            if self.is_created:
                self._require_unread()
            else:
                self._require_planned()

    def _require_planned(self) -> None:
        # The exporting connection does nothing that would show that it was lost.
        pid = self._source.exporting.info.backend_pid
        names = {"slot": self.name, "temporary": self._source.slot_name, "pid": pid}
        row = self._control.execute(_ABOUT, names).fetchone()
        assert row is not None
        exists, has_snapshot = row
        if exists:
            raise self._created_by_another()
        if not has_snapshot:
            raise ConnectionLost("the connection that holds the snapshot was lost", hint=self.what_is_left)

    def _created_by_another(self) -> AlreadyExists:
        return AlreadyExists(
            f"another process has created slot {self.name} since this command began",
            hint="run one command for each slot; another slot name makes a second copy",
        )

    def _require_unread(self) -> None:
        try:
            slot = slots.get(self._control, self.name)
        except NotFound:
            raise SlotInvalidated(f"slot {self.name} was dropped during the snapshot", hint=_AGAIN) from None
        drop = f"drop it ({command('slot drop {}', self.name)})"
        if slot.is_lost:
            raise SlotInvalidated(
                f"slot {self.name} is invalidated ({slot.lost_reason}): the changes since the snapshot are gone",
                hint=f"{drop}, raise {_LIMITS.get(slot.lost_reason or '', 'max_slot_wal_keep_size')}, and {_AGAIN}",
            )
        read = slot.confirmed_flush_lsn
        if read is None or read > self._source.position:
            raise InUse(
                f"another process has read slot {self.name} during the snapshot, up to {read}: this output would not "
                "have these changes",
                hint=f"end that process, {drop}, and {_AGAIN}",
            )


def require_not_copied(conn: Connection, slot_name: str) -> None:
    """Check that no process copies the tables of a slot at present: only that process may begin its stream.

    The temporary slot of a copy is at the position of the slot.

    Raises:
        InUse: one does.
    """
    row = conn.execute(_COPIED, (slot_name,)).fetchone()
    if row is not None:
        raise InUse(
            f"another process writes the rows of the tables of slot {slot_name}, and its stream begins after them",
            hint="wait until it ends; if it was lost, end its connection: "
            f"SELECT pg_catalog.pg_terminate_backend({row[0]})",
        )
