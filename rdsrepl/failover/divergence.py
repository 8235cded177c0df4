"""What a failover lost: where two servers diverge, and which slots of the old primary still show what only it has.

Every transaction whose commit record begins at or after the fork exists on the old primary only. A slot that is at or
before the fork shows all of them; one whose consumer confirmed more shows only those after its position. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import BadValue, NotFound, NotPrimary, Refused, Unsupported
from rdsrepl.lsn import Lsn
from rdsrepl.text.commands import command
from rdsrepl.text.escapes import shown
from rdsrepl.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from datetime import datetime

    from rdsrepl.postgres.slots import Slot
    from rdsrepl.tail.timelines import Timelines

_READABLE: Final = ("wal2json", "pgoutput")


@dataclass(frozen=True, slots=True)
class ServerHistory:
    """A server and the history of its WAL (IDENTIFY_SYSTEM, TIMELINE_HISTORY).

    Attributes:
        label: the server in messages.
        system_identifier: a promoted standby has the same one as its primary.
        timelines: the timeline that it writes, and its ancestors; None if the storage has no timelines (Aurora).
        in_recovery: it is a standby.
        lsn: the end of its WAL.
        started_at: when it started.
    """

    label: str
    system_identifier: str
    timelines: Timelines | None
    in_recovery: bool
    lsn: Lsn
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Fork:
    """Where the new primary's history leaves that of the old primary.

    Attributes:
        lsn: a commit record that begins here or later is on the old primary only.
        old_timeline: the timeline of the old primary.
        new_timeline: the timeline of the new primary.
        old_lsn: the end of the old primary's WAL.
    """

    lsn: Lsn
    old_timeline: int
    new_timeline: int
    old_lsn: Lsn

    @property
    def old_bytes(self) -> int:
        """How much WAL only the old primary has."""
        return max(self.old_lsn - self.lsn, 0)


@dataclass(frozen=True, slots=True)
class SlotAtFork:
    """A logical slot of the old primary, compared with the fork.

    Attributes:
        sent_bytes: WAL after the fork that its consumer confirmed: what is in it never was, on the new primary.
        is_read: the lost transactions of its database are read through it.
        hidden_bytes: of the slot that is read: WAL after the fork that it does not show, because it is behind it.
        reason: why it cannot be read; None if it can.
    """

    slot_name: str
    database: str
    plugin: str
    confirmed_flush_lsn: Lsn
    sent_bytes: int
    is_read: bool = False
    hidden_bytes: int = 0
    reason: str | None = None


@dataclass(slots=True)
class TableChanges:
    """How many rows of a table a transaction changed; ``truncates`` counts TRUNCATE."""

    schema: str
    table: str
    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    truncates: int = 0


@dataclass(slots=True)
class LostTransaction:
    """A transaction that only the old primary has.

    Attributes:
        database: where it was committed.
        timeline, commit_lsn: where its commit record begins; they identify its changes in a consumer's copy.
        commit_time: ISO 8601.
        changes: how many rows and messages it wrote, in the tables that the slot shows.
        confirmed_by: the slots whose consumers confirmed it: they have what never was, on the new primary.
    """

    database: str
    xid: int | None
    timeline: int
    commit_lsn: Lsn
    commit_time: str | None
    changes: int = 0
    tables: list[TableChanges] = field(default_factory=list)
    confirmed_by: list[str] = field(default_factory=list)


def fork(old: ServerHistory, new: ServerHistory) -> Fork:
    """Return where NEW left the history of OLD.

    Raises:
        BadValue: both are one server, or they are named in the wrong order.
        Refused: they have no common history, or neither has been promoted.
        NotPrimary: one is a standby.
        Unsupported: the storage has no timelines.
    """
    if old.system_identifier != new.system_identifier:
        raise Refused(
            f"{old.label} and {new.label} are different database systems ({old.system_identifier}, "
            f"{new.system_identifier}): neither is a copy of the other",
            hint="name the primary before the failover with --old, and the promoted replica with --new",
        )
    if old.timelines is None or new.timelines is None:
        raise Unsupported(
            "Aurora has no timelines: its servers share the storage, and a failover loses no committed transaction",
            hint="nothing to compare",
        )
    if old.started_at == new.started_at and old.timelines == new.timelines and old.in_recovery == new.in_recovery:
        raise BadValue(f"{old.label} and {new.label} are the same server", hint="name two servers with --old and --new")
    for server, option, remedy in (
        (new, "--new", "promote it first: rdsrepl instance promote ID"),
        (old, "--old", "the lost transactions are on the server that was the primary before the failover"),
    ):
        if server.in_recovery:
            raise NotPrimary(f"{option}: {server.label} is a standby, so there is no fork", hint=remedy)
    if old.timelines.current != new.timelines.current and old.timelines.end_of(new.timelines.current) is not None:
        raise BadValue(
            f"{old.label} is the newer server: its timeline {old.timelines.current} began on timeline "
            f"{new.timelines.current} of {new.label}",
            hint="exchange --old and --new",
        )
    end = old.timelines.common_end(new.timelines)
    if old.timelines == new.timelines or end is None:
        raise Refused(
            f"{old.label} and {new.label} have no fork: timeline {old.timelines.current} and "
            f"{new.timelines.current} have no common ancestor in the history of the servers"
            if end is None
            else f"{old.label} and {new.label} are both on timeline {old.timelines.current}: there is no fork",
            hint="name the primary before the failover with --old, and the promoted replica with --new",
        )
    return Fork(Lsn(end), old.timelines.current, new.timelines.current, old.lsn)


def choose_slots(
    slots: Iterable[Slot], at: Fork, *, wanted: Sequence[str] = (), hold_back: str = ""
) -> list[SlotAtFork]:
    """Compare the logical slots of the old primary with the fork, and choose one for each database to read.

    The choice: a slot at or before the fork, wal2json before pgoutput because it shows unpublished tables as well, and
    the one that has to decode least; without one, the slot that hides least.

    Args:
        slots: the slots of the old primary.
        at: the fork.
        wanted: the slots that the user named; empty chooses.
        hold_back: ``synchronized_standby_slots``: a failover slot sends nothing while such a standby is away.

    Raises:
        NotFound: a named slot does not exist, or there is no logical slot.
        Refused: no slot can be read, or a named one cannot.
    """
    logical = [slot for slot in slots if slot.slot_type == "logical" and not slot.temporary]
    names = [slot.slot_name for slot in logical]
    if missing := sorted(set(wanted) - set(names)):
        raise NotFound(
            f"the old primary has no logical slot {', '.join(missing)}",
            hint=did_you_mean(missing[0], names, otherwise="omit --slot: the command then chooses the slots"),
        )
    if not logical:
        raise NotFound(
            "the old primary has no logical slot, so no WAL can be decoded",
            hint="compare the tables of both servers; a slot that exists before a failover shows what it loses",
        )
    compared = [_compared(slot, at, hold_back) for slot in logical]
    if wanted and (refused := [one for one in compared if one.slot_name in wanted and one.reason]):
        raise Refused(f"slot {refused[0].slot_name} cannot be read: {refused[0].reason}", hint=_remedy(refused[0]))
    chosen: dict[str, SlotAtFork] = {}
    for one in compared:
        if one.reason is not None or (wanted and one.slot_name not in wanted):
            continue
        best = chosen.get(one.database)
        if best is None or _preference(one, at) > _preference(best, at):
            chosen[one.database] = one
    if not chosen:
        reasons = "; ".join(f"{one.slot_name}: {one.reason}" for one in compared)
        raise Refused(f"no slot of the old primary can be read: {reasons}", hint=_remedy(compared[0]))
    return [
        SlotAtFork(
            one.slot_name,
            one.database,
            one.plugin,
            one.confirmed_flush_lsn,
            one.sent_bytes,
            is_read=one in chosen.values(),
            hidden_bytes=one.sent_bytes if one in chosen.values() else 0,
            reason=one.reason,
        )
        for one in compared
    ]


def without_hidden(slots: Iterable[SlotAtFork]) -> list[SlotAtFork]:
    """Return the slots when it is proven that the old primary committed nothing after the fork.

    A consumer confirms the end of the WAL, also of records that belong to no transaction.
    """
    return [replace(one, sent_bytes=0, hidden_bytes=0) for one in slots]


def mark_confirmed(transaction: LostTransaction, slots: Iterable[SlotAtFork]) -> None:
    """Record which consumers confirmed a lost transaction; a commit record before the slot's position is confirmed."""
    transaction.confirmed_by = [
        one.slot_name
        for one in slots
        if one.database == transaction.database and transaction.commit_lsn < one.confirmed_flush_lsn
    ]


def _compared(slot: Slot, at: Fork, hold_back: str) -> SlotAtFork:
    reason = None
    if slot.is_lost:
        reason = f"it is invalidated ({slot.lost_reason})"
    elif slot.plugin not in _READABLE:
        reason = f"its plugin {shown(slot.plugin or 'unknown')} is not {' or '.join(_READABLE)}"
    elif slot.active:
        reason = f"it is in use by {slot.holder}: a consumer still reads the old primary"
    elif slot.failover and hold_back:
        reason = f"it waits for the standbys in synchronized_standby_slots ({shown(hold_back)})"
    confirmed = slot.confirmed_flush_lsn
    if confirmed is None:
        reason, confirmed = reason or "its creation is not complete", Lsn(0)
    return SlotAtFork(
        slot.slot_name,
        slot.database or "",
        slot.plugin or "",
        confirmed,
        max(confirmed - at.lsn, 0),
        reason=reason,
    )


def _preference(one: SlotAtFork, at: Fork) -> tuple[bool, bool, int]:
    shows_all = one.confirmed_flush_lsn <= at.lsn
    return shows_all, shows_all and one.plugin == "wal2json", -abs(one.confirmed_flush_lsn - at.lsn)


def _remedy(one: SlotAtFork) -> str:
    if one.reason is not None and "in use" in one.reason:
        return "stop that consumer, then run the command again"
    if one.reason is not None and "synchronized_standby_slots" in one.reason:
        return "set synchronized_standby_slots to an empty value on the old primary, then run the command again"
    return f"list the slots there: {command('slot list')}; compare the tables of both servers"
