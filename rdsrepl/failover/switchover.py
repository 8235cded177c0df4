"""When a planned switchover may promote, and what it has to prove afterwards. Pure: no I/O, no clock.

Planned: the writers are fenced, every consumer confirms the marker (the position after the last transaction), the
standby has replayed it, and the copy of each slot is where its consumer is. Then a promotion loses and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdsrepl.failover import server_rules
from rdsrepl.failover.findings import Level
from rdsrepl.lsn import Lsn
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.postgres.failover_servers import FailoverServer
    from rdsrepl.postgres.slots import Slot
    from rdsrepl.postgres.write_activity import WriteActivity


@dataclass(frozen=True, slots=True)
class Marker:
    """The end of the WAL after the last transaction that wrote.

    Attributes:
        lsn: everything was committed before this position.
        next_xid, prepared: no transaction that wrote has ended while both are the same (``WriteActivity``).
    """

    lsn: Lsn
    next_xid: int
    prepared: tuple[int, ...] = ()

    def written_after(self, now: WriteActivity) -> str | None:
        """Return what was written after the marker, in words; None if nothing was."""
        if now.running:
            return now.text
        if not now.has_ended_since(self.next_xid, self.prepared):
            return None
        ended = now.next_xid - self.next_xid
        return counted(ended, "transaction") if ended else "a transaction was prepared, or a prepared one ended"


@dataclass(frozen=True, slots=True)
class Waiting:
    """What keeps a switchover from promoting.

    Attributes:
        reasons: one line for each slot or server; empty if nothing does.
        failed: what cannot become better by waiting.
    """

    reasons: tuple[str, ...] = ()
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class UnplannedSlot:
    """What an unplanned promotion means for one slot of the standby.

    Attributes:
        usable: whether the slot is there after the promotion.
        at: from where its consumer continues.
        repeat_bytes: what comes again, if the consumer confirmed it on the primary; None where that is not known.
        why: in words.
    """

    slot_name: str
    usable: bool
    at: Lsn | None
    repeat_bytes: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Unplanned:
    """What an unplanned promotion loses.

    Attributes:
        slots: those of the primary and of the standby.
        missing_bytes: WAL of the primary that the standby never got; None where the primary does not answer.
        received_lsn: the end of the WAL that the standby has.
    """

    slots: tuple[UnplannedSlot, ...]
    missing_bytes: int | None
    received_lsn: Lsn | None


def streamed(server: FailoverServer) -> list[Slot]:
    """Return the slots of a primary whose consumers have to continue on the promoted standby."""
    return [
        slot
        for slot in server.slots
        if slot.slot_type == "logical" and not slot.temporary and not slot.is_table_copy and not slot.is_lost
    ]


def moved(marker: Marker | None, now: WriteActivity) -> Marker:
    """Return the marker: a new one if a transaction that wrote has ended since."""
    if marker is not None and not now.has_ended_since(marker.next_xid, marker.prepared):
        return marker
    return Marker(now.lsn, now.next_xid, now.prepared)


def waiting_for(marker: Marker, now: WriteActivity, primary: FailoverServer, standby: FailoverServer) -> Waiting:
    """Return what has not reached the marker.

    Args:
        marker: what ``moved`` returned for NOW.
        now: the transactions of the primary, read before the slots.
        primary: read before the standby.
        standby: the server to promote.
    """
    if primary.in_recovery:
        return Waiting(failed=f"{primary.label} is a standby now")
    if not standby.in_recovery:
        return Waiting(failed=f"{standby.label} is not a standby any more: it was promoted meanwhile")
    if primary.system_identifier != standby.system_identifier:
        return Waiting(failed=f"{standby.label} is not a copy of {primary.label}")
    reasons: list[str] = []
    if now.running:
        reasons.append(f"still writing: {now.text}")
    if standby.lsn is None or standby.lsn < marker.lsn:
        behind = "" if standby.lsn is None else f", {format_size(marker.lsn - standby.lsn)} behind"
        reasons.append(f"{standby.label} has replayed {standby.lsn}{behind}")
    for slot in streamed(primary):
        if (reason := _slot(slot, standby.slot(slot.slot_name), marker)) is not None:
            reasons.append(f"{slot.slot_name}: {reason}")
    return Waiting(tuple(reasons))


def followers(primary: FailoverServer, standby: FailoverServer) -> tuple[str, ...]:
    """Return the slots of the primary with a follower on the standby, which only ``slot sync`` advances."""
    return tuple(
        slot.slot_name
        for slot in streamed(primary)
        if not slot.failover
        and (copy := standby.slot(slot.slot_name)) is not None
        and not (copy.synced or copy.active or copy.temporary)
    )


def positions(primary: FailoverServer, marker: Marker) -> dict[str, Lsn]:
    """Return where each consumer is, at most at the marker: nothing comes after it."""
    return {
        slot.slot_name: Lsn(min(slot.confirmed_flush_lsn, marker.lsn))
        for slot in streamed(primary)
        if slot.confirmed_flush_lsn is not None
    }


def unproven(expected: dict[str, Lsn], promoted: FailoverServer) -> Waiting:
    """Return why the promoted server does not continue every slot.

    Args:
        expected: what ``positions`` returned before the promotion.
        promoted: the server after it.
    """
    if promoted.in_recovery:
        return Waiting((f"{promoted.label} is still a standby",))
    problems: list[str] = []
    for name, at in expected.items():
        slot = promoted.slot(name)
        if slot is None or slot.temporary:
            problems.append(f"slot {name} does not exist")
        elif slot.is_lost:
            problems.append(f"slot {name} is invalidated ({slot.lost_reason})")
        elif slot.confirmed_flush_lsn is None or slot.confirmed_flush_lsn < at:
            problems.append(f"slot {name} is at {slot.confirmed_flush_lsn}, before {at}: changes come again")
    problems += [
        f"{shown(one.subject)}: {one.message}"
        for one in server_rules.waiting_for_standbys(promoted)
        if one.level is Level.critical
    ]
    return Waiting(failed="; ".join(problems) or None)


def unplanned(standby: FailoverServer, primary: FailoverServer | None) -> Unplanned:
    """Return what a promotion at this moment would lose.

    Args:
        standby: the server to promote.
        primary: its primary; None if that does not answer.
    """
    names = [slot.slot_name for slot in streamed(primary)] if primary is not None else []
    own = [slot.slot_name for slot in standby.slots if slot.slot_type == "logical"]
    slots = tuple(
        _unplanned(name, standby.slot(name), None if primary is None else primary.slot(name))
        for name in dict.fromkeys([*names, *own])
    )
    missing = None
    if primary is not None and primary.lsn is not None and standby.received_lsn is not None:
        missing = max(primary.lsn - standby.received_lsn, 0)
    return Unplanned(slots, missing, standby.received_lsn)


def consumers(server: FailoverServer, names: Iterable[str] | None = None) -> list[str]:
    """Return the consumers that read slots of a server, in words: they must be pointed to the new primary."""
    wanted: Sequence[str] | None = None if names is None else list(names)
    return [
        f"{slot.slot_name}: {slot.holder}"
        for slot in streamed(server)
        if slot.active and (wanted is None or slot.slot_name in wanted)
    ]


def _slot(slot: Slot, copy: Slot | None, marker: Marker) -> str | None:
    at = slot.confirmed_flush_lsn
    if copy is not None and copy.active:
        return None  # its consumer reads on the standby, so that the promotion changes nothing for it
    if at is None:
        return "it is being created"
    if slot.active and at < marker.lsn:
        return f"its consumer has confirmed {at}, {format_size(marker.lsn - at)} before the marker"
    if copy is None:
        return "the standby has no copy"
    if copy.is_lost:
        return f"its copy is invalidated ({copy.lost_reason})"
    if copy.temporary:
        return "its copy is not complete"
    both_at_marker = copy.confirmed_flush_lsn is not None and marker.lsn <= min(at, copy.confirmed_flush_lsn)
    if copy.confirmed_flush_lsn != at and not both_at_marker:
        return f"its copy is at {copy.confirmed_flush_lsn}, its consumer at {at}"
    return None


def _unplanned(name: str, copy: Slot | None, slot: Slot | None) -> UnplannedSlot:
    if copy is None:
        return UnplannedSlot(name, False, None, None, "the standby has no copy: its consumer must be set up again")
    at, confirmed = copy.confirmed_flush_lsn, None if slot is None else slot.confirmed_flush_lsn
    if copy.is_lost:
        why = f"its copy is invalidated ({copy.lost_reason}): its consumer must be set up again"
        return UnplannedSlot(name, False, None, None, why)
    if copy.temporary:
        return UnplannedSlot(name, False, None, None, "its copy is not complete, and vanishes at the promotion")
    repeats = None if at is None or confirmed is None else max(confirmed - at, 0)
    if at is not None and confirmed is not None and confirmed < at:
        gap = format_size(at - confirmed)
        return UnplannedSlot(name, True, at, 0, f"its copy starts {gap} after its consumer: these changes are lost")
    words = "how much comes again is not known" if repeats is None else f"{format_size(repeats)} of WAL comes again"
    return UnplannedSlot(name, True, at, repeats, words)
