"""The state of a pair of slots, and how far its follower may be advanced. Pure: no I/O, no clock.

A pair is two logical slots of the same name, one on a primary and one on a standby of it. The consumer reads the
**leader**; the **follower** stays at or behind the leader's confirmed position, so that after a promotion the consumer
continues with the follower, without a gap. PostgreSQL 17 and later have failover slots for this; on 16 and in the other
direction (the consumer on the standby) this is the way.

What must hold: the follower is never advanced beyond a confirmed position of the leader that was read before, nor
beyond what its own server has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from rdsrepl.lsn import Lsn
from rdsrepl.postgres import versions
from rdsrepl.text.counts import counted
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.postgres.server_slots import ServerSlots
    from rdsrepl.postgres.slots import Slot

Place = Literal["here", "there"]

MAX_REPEAT_BYTES: Final = 64_000_000
# Slots that subscriptions make for a moment (tablesync.c).
_TABLESYNC: Final = re.compile(r"pg_[0-9]+_sync_[0-9]+_[0-9]+\Z")


class PairState(StrEnum):
    """The state of a pair, and what a failover at this moment means for the consumer."""

    missing = "missing"  # no follower: gap
    pending = "pending"  # the consumer has not confirmed past the follower's start: gap
    ready = "ready"  # no gap; changes between the two positions come again
    behind = "behind"  # the same, with many repeats
    lost = "lost"  # a slot is invalidated: gap
    broken = "broken"  # the two slots are no pair


#: the exit code's rank: 0 fine, 1 warning, 2 critical.
RANKS: Final[Mapping[PairState, int]] = {
    PairState.ready: 0,
    PairState.pending: 1,
    PairState.behind: 1,
    PairState.missing: 2,
    PairState.lost: 2,
    PairState.broken: 2,
}


@dataclass(frozen=True, slots=True)
class SlotPair:
    """A pair as it was when both servers were read.

    Attributes:
        slot_name: the name of both slots.
        leader_at: where the leader is: ``here`` (the command's own server) or ``there``.
        leader_role, follower_role: ``primary`` or ``standby``: the servers' roles.
        leader, follower: the slots; None where the server has none.
        state: see ``PairState``.
        reason: why, in words; empty for a pair that is ready.
        target_lsn: how far a pass advances the follower; None if it does not.
        gap_bytes: WAL whose changes a failover now would lose; None where that is not known, or nothing is lost.
        repeat_bytes: WAL whose changes come again after a failover now.
        kept_bytes: WAL that the follower's server keeps for it.
    """

    slot_name: str
    leader_at: Place
    leader_role: str
    follower_role: str
    leader: Slot | None
    follower: Slot | None
    state: PairState
    reason: str = ""
    target_lsn: Lsn | None = None
    gap_bytes: int | None = None
    repeat_bytes: int | None = None
    kept_bytes: int | None = None

    @property
    def leader_lsn(self) -> Lsn | None:
        """The position that the consumer confirmed."""
        return None if self.leader is None else self.leader.confirmed_flush_lsn

    @property
    def follower_lsn(self) -> Lsn | None:
        """The position from which the follower would send."""
        return None if self.follower is None else self.follower.confirmed_flush_lsn

    @property
    def rank(self) -> int:
        """0 fine, 1 warning, 2 critical."""
        return RANKS[self.state]


@dataclass(frozen=True, slots=True)
class PairReport:
    """A pair for people and programs; docs/slot-pairs.md documents the fields.

    Attributes:
        slot_name, database, plugin: of the leader.
        state, reason: see ``PairState``.
        leader, follower: ``primary`` or ``standby``: the roles of their servers.
        leader_at: ``here``, the command's own server, or ``there``.
        leader_lsn: what the consumer confirmed.
        follower_lsn: from where the follower would send.
        gap_bytes, repeat_bytes, kept_bytes: see ``SlotPair``.
        consumer: the process that uses the leader.
    """

    slot_name: str
    state: PairState
    reason: str | None
    leader: str
    follower: str
    leader_at: Place
    leader_lsn: Lsn | None
    follower_lsn: Lsn | None
    gap_bytes: int | None
    repeat_bytes: int | None
    kept_bytes: int | None
    consumer: str | None
    database: str | None
    plugin: str | None

    @classmethod
    def of(cls, pair: SlotPair) -> PairReport:
        """Return the report of a pair."""
        slot = pair.leader or pair.follower
        return cls(
            pair.slot_name,
            pair.state,
            pair.reason or None,
            pair.leader_role,
            pair.follower_role,
            pair.leader_at,
            pair.leader_lsn,
            pair.follower_lsn,
            pair.gap_bytes,
            pair.repeat_bytes,
            pair.kept_bytes,
            pair.leader.holder if pair.leader is not None and pair.leader.active else None,
            None if slot is None else slot.database,
            None if slot is None else slot.plugin,
        )


def server_problem(here: ServerSlots, there: ServerSlots) -> str | None:
    """Return why two servers cannot have slot pairs; None if they can."""
    for one in (here, there):
        if one.is_aurora:
            return (
                f"{one.label} is Aurora: its readers do not decode, and a failover keeps the slots, because all "
                "instances share one volume"
            )
    if None in (here.wal.system_identifier, there.wal.system_identifier):
        return (
            "the system identifier of a server is not readable, so whether one is the standby of the other is unknown"
        )
    if here.wal.system_identifier != there.wal.system_identifier:
        return (
            f"{here.label} and {there.label} are different database systems (system identifiers "
            f"{here.wal.system_identifier} and {there.wal.system_identifier}): neither is a standby of the other"
        )
    if here.wal.in_recovery and there.wal.in_recovery:
        return f"{here.label} and {there.label} are both standbys: one of the two must be the primary"
    if not here.wal.in_recovery and not there.wal.in_recovery:
        if here.wal.started_at == there.wal.started_at:
            return f"{here.label} and {there.label} are the same server"
        return (
            f"{here.label} and {there.label} are both primaries: the standby was promoted, or this is a restored copy"
        )
    for one in (here, there):
        if one.wal.version < versions.STANDBY_DECODING_SINCE:
            return (
                f"{one.label} is PostgreSQL {one.wal.version}: a standby has logical slots since "
                f"PostgreSQL {versions.STANDBY_DECODING_SINCE}"
            )
        if one.wal_level != "logical":
            return f"wal_level of {one.label} is {one.wal_level}: a logical slot needs logical"
    return None


def pair_of(
    name: str,
    here: ServerSlots,
    there: ServerSlots,
    *,
    leader_at: Place | None = None,
    max_repeat_bytes: int = MAX_REPEAT_BYTES,
) -> SlotPair:
    """Return the state of the pair NAME.

    The leader is the slot of the primary, or the one on the only server that has it, unless ``leader_at`` names
    another one. A follower is advanced only if its leader is certain: it is in use, or ``leader_at`` names it. A wrong
    guess would move the slot that the consumer reads past changes that it has not received.

    Args:
        name: the slots.
        here: the command's own server.
        there: the other one; ``server_problem`` of the two is None.
        leader_at: where the leader is; None is the primary.
        max_repeat_bytes: a pair with more repeats is ``behind``.
    """
    mine, theirs = here.slot(name), there.slot(name)
    if leader_at is None:
        primary: Place = "there" if here.wal.in_recovery else "here"
        other: Place = "here" if primary == "there" else "there"
        present = {"here": mine, "there": theirs}
        at = other if present[primary] is None and present[other] is not None else primary
    else:
        at = leader_at
    (lead_server, leader), (follow_server, follower) = (
        ((here, mine), (there, theirs)) if at == "here" else ((there, theirs), (here, mine))
    )
    pair = SlotPair(
        name,
        at,
        lead_server.role,
        follow_server.role,
        leader,
        follower,
        PairState.ready,
        kept_bytes=None if follower is None else follower.retained_bytes,
    )
    problem = _problem(pair, lead_server, follow_server, is_named=leader_at is not None)
    if problem is not None:
        state, reason = problem
        return replace(pair, state=state, reason=reason)
    return _compared(pair, follow_server, max_repeat_bytes, is_certain=leader_at is not None or _is_active(leader))


def advanced(pair: SlotPair, end_lsn: Lsn, max_repeat_bytes: int = MAX_REPEAT_BYTES) -> SlotPair:
    """Return the pair after its follower was advanced."""
    assert pair.follower is not None
    follower = replace(pair.follower, confirmed_flush_lsn=end_lsn)
    moved = replace(pair, follower=follower, target_lsn=None, state=PairState.ready, reason="")
    assert pair.target_lsn is not None and pair.leader_lsn is not None
    return _with_repeats(moved, max_repeat_bytes, why=pair.reason if pair.target_lsn < pair.leader_lsn else "")


def broken(pair: SlotPair, reason: str) -> SlotPair:
    """Return the pair as it is when its servers are no pair of servers any more, or a pass could not advance it."""
    return replace(pair, state=PairState.broken, reason=reason, target_lsn=None)


def names(here: ServerSlots, there: ServerSlots) -> list[str]:
    """Return the slots that ``--all`` means: the logical slots of both servers.

    Temporary slots are left out, those of a subscription's initial copy, and failover slots, which the server itself
    synchronizes.
    """
    found: dict[str, bool] = {}
    for server in (here, there):
        for slot in server.slots:
            if slot.slot_type == "logical" and not slot.temporary and not _TABLESYNC.match(slot.slot_name):
                found[slot.slot_name] = found.get(slot.slot_name, False) or bool(slot.failover or slot.synced)
    return sorted(name for name, is_native in found.items() if not is_native)


def worst(pairs: Sequence[SlotPair]) -> int:
    """Return the highest rank of the pairs; 0 without pairs."""
    return max((pair.rank for pair in pairs), default=0)


def summary(pairs: Sequence[SlotPair]) -> str:
    """Return how many pairs have which state: ``20 pairs: 19 ready, 1 pending``."""
    states = [pair.state for pair in pairs]
    parts = [f"{states.count(state)} {state}" for state in PairState if state in states]
    return f"{counted(len(pairs), 'pair')}: {', '.join(parts) or 'none'}"


def _problem(pair: SlotPair, lead: ServerSlots, follow: ServerSlots, *, is_named: bool) -> tuple[PairState, str] | None:
    """Return the state and reason of a pair whose positions cannot be compared; None if they can."""
    leader, follower, name = pair.leader, pair.follower, pair.slot_name
    if leader is None:
        what = f"{lead.label} has no slot {name}" + ("" if follower is None else f"; {follow.label} has one")
        return PairState.broken, what
    for slot, server in ((leader, lead), (follower, follow)):
        if slot is None:
            continue
        if slot.slot_type != "logical" or slot.temporary:
            kind = "temporary" if slot.temporary else "physical"
            return PairState.broken, f"{name} on {server.label} is {kind}"
        if slot.synced and server.wal.in_recovery:
            return PairState.broken, f"PostgreSQL itself synchronizes {name} to {server.label} (a failover slot)"
    if leader.is_lost:
        return PairState.lost, f"the leader is invalidated: {leader.lost_reason}"
    if follower is None:
        return PairState.missing, f"{follow.label} has no slot {name}"
    for what, one, two in (
        ("plugin", leader.plugin, follower.plugin),
        ("database", leader.database, follower.database),
        ("two_phase", leader.two_phase, follower.two_phase),
    ):
        if one != two:
            return PairState.broken, f"{what} differs: {one} on {lead.label}, {two} on {follow.label}: not a follower"
    if follower.is_lost:
        return PairState.lost, f"the follower is invalidated: {follower.lost_reason}"
    if follower.active:
        also = "also " if leader.active else ""
        reason = f"the follower, on {follow.label}, is {also}in use by {follower.holder}"
        if not leader.active and not is_named:
            reason += "; if this is the consumer, name the leader with --leader"
        return PairState.broken, reason
    if follower.total_bytes and not is_named:
        # An advance is not counted; so this slot was read, and may be the slot of another consumer.
        return PairState.broken, (
            f"the slot on {follow.label} was read ({format_size(follower.total_bytes)} decoded), so it may belong to "
            "another consumer; if it is the follower, name the leader with --leader"
        )
    return None


def _compared(pair: SlotPair, follow: ServerSlots, max_repeat_bytes: int, *, is_certain: bool) -> SlotPair:
    """Return the pair with the state that follows from its positions."""
    consumer = "the consumer" if _is_active(pair.leader) else "no consumer is connected, and it"
    at, behind_at = pair.leader_lsn, pair.follower_lsn
    if at is None or behind_at is None:
        which = "leader" if at is None else "follower"
        return replace(pair, state=PairState.pending, reason=f"the {which} is being created")
    if at < behind_at:
        gap = behind_at - at
        reason = f"{consumer} has not confirmed {behind_at}, the follower's start: {format_size(gap)} to go"
        return replace(pair, state=PairState.pending, reason=reason, gap_bytes=gap)
    limit = min(at, follow.wal.lsn)
    why = ""
    if follow.wal.lsn < at:
        why = f"{follow.label} has replayed only {follow.wal.lsn}, {format_size(at - follow.wal.lsn)} less"
    elif behind_at < at and not is_certain:
        why = "no consumer reads the leader, so it is not certain: name it with --leader to advance the follower"
    target = Lsn(limit) if is_certain and behind_at < limit else None
    return _with_repeats(replace(pair, target_lsn=target), max_repeat_bytes, why=why)


def _with_repeats(pair: SlotPair, max_repeat_bytes: int, *, why: str) -> SlotPair:
    assert pair.leader_lsn is not None and pair.follower_lsn is not None
    repeats = max(pair.leader_lsn - pair.follower_lsn, 0)
    if repeats <= max_repeat_bytes:
        return replace(pair, repeat_bytes=repeats, reason=why)
    reason = why or f"a failover repeats {format_size(repeats)} of WAL"
    return replace(pair, repeat_bytes=repeats, state=PairState.behind, reason=reason)


def _is_active(slot: Slot | None) -> bool:
    return slot is not None and slot.active
