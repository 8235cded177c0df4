"""How the target gets the changes of the source, and how to wait until it has applied them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, LiteralString, Protocol

if TYPE_CHECKING:
    from rdsrepl.lsn import Lsn
    from rdsrepl.postgres.connection import Connection

_INSERTED: Final = "SELECT pg_catalog.pg_current_wal_insert_lsn()"
_CONFIRMED: Final = """
SELECT count(*) = %(count)s AND coalesce(bool_and(confirmed_flush_lsn >= %(lsn)s), true)
  FROM pg_catalog.pg_replication_slots WHERE slot_name = ANY (%(slots)s)
"""
# What a subscription has applied is visible there; it confirms it when it is flushed, up to 0.6 s later.
_APPLIED: Final = """
SELECT count(*) = %(count)s AND coalesce(bool_and(greatest(s.confirmed_flush_lsn, r.replay_lsn) >= %(lsn)s), true)
  FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid
 WHERE s.slot_name = ANY (%(slots)s)
"""
# A subscription with the name of a slot of this server may receive from another server that has such a slot.
_RECEIVED: Final = """
SELECT s.subname::text, max(w.received_lsn)
  FROM pg_catalog.pg_subscription s
  JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
  JOIN pg_catalog.pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL
 WHERE s.subname = ANY (%s) AND w.received_lsn IS NOT NULL
 GROUP BY 1
"""
_REPLAYED: Final = "SELECT coalesce(pg_catalog.pg_last_wal_replay_lsn() >= %s, true)"
# What the stream of this program does not pass on. It makes an idle server write, so that its consumers report.
_HEARTBEAT: Final = "SELECT pg_catalog.pg_logical_emit_message(true, 'rdsrepl.heartbeat', '')"
_POLL_SECONDS: Final = 0.02
_IDLE_SECONDS: Final = 0.5


class Link(Protocol):
    """How the target gets the changes of the source."""

    @property
    def description(self) -> str:
        """The link in words: ``subscription reports``."""

    def has_applied(self, lsn: Lsn) -> bool:
        """Return whether the target has applied every transaction that committed before LSN."""


class SlotLink:
    """Consumers, which confirm to slots of the source what they have stored."""

    def __init__(self, source: Connection, slots: Sequence[str]) -> None:
        self._source, self._slots = source, tuple(slots)

    @property
    def description(self) -> str:
        """The slots."""
        return f"slot {', '.join(self._slots)}"

    def has_applied(self, lsn: Lsn) -> bool:
        """Return whether all of them confirmed LSN."""
        return self._is_true(_CONFIRMED, lsn)

    def _is_true(self, query: LiteralString, lsn: Lsn) -> bool:
        wanted = {"count": len(self._slots), "lsn": lsn, "slots": list(self._slots)}
        row = self._source.execute(query, wanted).fetchone()
        return row is not None and bool(row[0])


class SubscriptionLink(SlotLink):
    """Subscriptions of the target, which report to the source what they have applied (``pg_stat_replication``).

    A role that may not see the reports of others waits for what they have flushed as well, and confirmed. The target
    must have received the same: the slot may belong to the subscription of another database with the same name.
    """

    def __init__(self, source: Connection, target: Connection, names: Sequence[str], slots: Sequence[str]) -> None:
        super().__init__(source, slots)
        self._target, self._names = target, tuple(names)

    @property
    def description(self) -> str:
        """The subscriptions."""
        return f"subscription {', '.join(self._names)}"

    def has_applied(self, lsn: Lsn) -> bool:
        """Return whether all of them applied everything before LSN."""
        if not self._is_true(_APPLIED, lsn):
            return False
        received = self._received()
        return len(received) == len(self._names) and min(received.values()) >= lsn

    def from_elsewhere(self) -> str | None:
        """Return a subscription that has received what the source has not written: its publisher is another server."""
        received = self._received()
        end = inserted_lsn(self._source)
        return next((name for name, lsn in sorted(received.items()) if lsn > end), None)

    def _received(self) -> dict[str, Lsn]:
        return dict(self._target.execute(_RECEIVED, (list(self._names),)).fetchall())


class StandbyLink:
    """The target is a standby of the source."""

    description = "physical replication"

    def __init__(self, target: Connection) -> None:
        self._target = target

    def has_applied(self, lsn: Lsn) -> bool:
        """Return whether the standby replayed LSN; after its promotion nothing more arrives."""
        row = self._target.execute(_REPLAYED, (lsn,)).fetchone()
        return row is not None and bool(row[0])


class NoChanges:
    """Neither side changes, and no change waits to be applied."""

    description = "none; neither side changes"

    def has_applied(self, lsn: Lsn) -> bool:  # noqa: ARG002 - the interface
        """Return True."""
        return True


def wait_until_applied(source: Connection, link: Link, deadline: float) -> bool:
    """Wait until the target has applied everything that is visible on the source now; return whether it has.

    An idle source writes nothing that its consumers could confirm; after half a second it gets a heartbeat message.

    Args:
        source: the source, a primary.
        link: how the target gets the changes.
        deadline: when to stop waiting, of the monotonic clock.
    """
    if isinstance(link, NoChanges):
        return True
    return wait_for(source, link, inserted_lsn(source), deadline)


def inserted_lsn(source: Connection) -> Lsn:
    """Return the end of the WAL of a primary: whatever commits later commits behind it."""
    row = source.execute(_INSERTED).fetchone()
    assert row is not None
    lsn: Lsn = row[0]
    return lsn


def wait_for(source: Connection, link: Link, lsn: Lsn, deadline: float) -> bool:
    """Wait until the target has applied everything before LSN; return whether it has."""
    nudge_at = time.monotonic() + _IDLE_SECONDS
    while not link.has_applied(lsn):
        now = time.monotonic()
        if now >= deadline:
            return False
        if now >= nudge_at:
            source.execute(_HEARTBEAT)
            nudge_at = now + 10 * _IDLE_SECONDS
        time.sleep(_POLL_SECONDS)
    return True
