"""Whether the logical slots of a primary survive a failover to a standby, with the reason for each that does not. Pure.

A failover slot (17 and later) is protected by the copy that the standby itself synchronizes; any slot of 16 and later
by a slot of the same name on the standby, which ``slot sync`` keeps in step (``slot_pairs.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rdsrepl.failover import remedies, server_rules, slot_pairs
from rdsrepl.failover.findings import Finding, Level, worst
from rdsrepl.failover.slot_pairs import PairState, SlotPair
from rdsrepl.postgres import versions
from rdsrepl.postgres.failover_servers import FailoverServer
from rdsrepl.postgres.server_slots import ServerSlots
from rdsrepl.postgres.slots import Slot
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.postgres.subscriptions import Publisher

#: a copy that is further behind is reported, because its consumer would get that much again.
MAX_REPEAT_BYTES: Final = slot_pairs.MAX_REPEAT_BYTES

_PAIR_LEVELS: Final = {PairState.behind: Level.warning}

Protection = Literal["failover", "pair", "own"]


@dataclass(frozen=True, slots=True)
class SlotReadiness:
    """What a failover to one standby means for the consumer of one slot.

    Attributes:
        standby: the label of the standby.
        protected_by: ``failover`` (a synchronized copy), ``pair`` (a slot of the same name on the standby), ``own``
            (the same, and its consumer reads there); None for a slot that is not protected.
        ready: whether the consumer can continue after the failover without losing a change.
        confirmed_flush_lsn: how far the consumer is on the primary.
        copy_lsn: where it would continue.
        repeat_bytes: WAL whose changes it would get again; None where that is not known.
    """

    slot_name: str
    standby: str
    protected_by: Protection | None
    ready: bool
    confirmed_flush_lsn: str | None = None
    copy_lsn: str | None = None
    repeat_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """The result of a check.

    Attributes:
        level: the worst finding; None without findings.
        ready: no finding is critical.
        slots: every slot of the primary for each standby.
        findings: the most severe first.
    """

    primary: str
    standbys: tuple[str, ...]
    level: Level | None
    ready: bool
    slots: tuple[SlotReadiness, ...]
    findings: tuple[Finding, ...]


def assess(
    primary: FailoverServer,
    standbys: Sequence[FailoverServer],
    *,
    max_repeat_bytes: int = MAX_REPEAT_BYTES,
    subscriptions: Sequence[Publisher] = (),
) -> Readiness:
    """Return what a failover from a primary to each of its standbys would do to the logical slots.

    Args:
        primary: read before its standbys.
        standbys: of each ``server_rules.different_servers`` is None.
        max_repeat_bytes: a copy that is further behind its slot is reported.
        subscriptions: of the subscribers, read before the standbys.
    """
    findings = [*server_rules.decoding(primary), *server_rules.waiting_for_standbys(primary)]
    rows: list[SlotReadiness] = []
    names = [slot for slot in primary.slots if slot.slot_type == "logical" and not slot.temporary]
    for slot in names:
        findings += _slot_itself(slot, primary)
    for standby in standbys:
        findings += server_rules.decoding(standby)
        if any(not _has_pair(slot, standby) for slot in names):
            findings += server_rules.synchronization(standby)
        else:
            findings += server_rules.feedback(standby)
        findings += server_rules.streaming(primary, standby)
        findings += server_rules.capacity(primary, standby)
        findings += server_rules.promoted_standby_waits(primary, standby)
        for slot in names:
            if slot.is_table_copy:
                continue
            problems = list(_protection(slot, primary, standby, max_repeat_bytes))
            findings += problems
            rows.append(_row(slot, standby, is_ready=not _critical(problems) and not slot.is_lost))
        findings += _ahead(names, primary, standby)
        findings += _subscriptions_ahead(subscriptions, primary, standby)
    findings.sort(key=lambda finding: -finding.level.rank)
    level = worst(findings)
    labels = tuple(standby.label for standby in standbys)
    return Readiness(primary.label, labels, level, not _critical(findings), tuple(rows), tuple(findings))


def _critical(findings: Sequence[Finding]) -> bool:
    return worst(findings) is Level.critical


def _row(slot: Slot, standby: FailoverServer, *, is_ready: bool) -> SlotReadiness:
    copy = standby.slot(slot.slot_name)
    at = slot.confirmed_flush_lsn
    copied = None if copy is None else copy.confirmed_flush_lsn
    protected_by: Protection | None = None
    if slot.failover:
        protected_by = "failover" if copy is None or copy.synced else None
    elif copy is not None and copy.slot_type == "logical":
        protected_by = "own" if copy.active else "pair"
    return SlotReadiness(
        slot.slot_name,
        standby.label,
        protected_by,
        is_ready,
        None if at is None else str(at),
        None if copied is None else str(copied),
        None if at is None or copied is None else max(at - copied, 0),
    )


def _has_pair(slot: Slot, standby: FailoverServer) -> bool:
    copy = standby.slot(slot.slot_name)
    return not slot.failover and copy is not None and not copy.synced


def _slot_itself(slot: Slot, primary: FailoverServer) -> Iterator[Finding]:
    """Find a slot that is no longer usable on the primary, or that exists only for a moment."""
    if slot.is_lost:
        yield Finding(
            "slot_lost",
            Level.critical,
            primary.label,
            slot.slot_name,
            f"it is invalidated on the primary ({slot.lost_reason}): its changes are gone, with and without a failover",
            f"drop it ({remedies.on(primary, 'slot drop {}', slot.slot_name)}), create it and copy the tables again",
        )
    elif slot.is_table_copy:
        yield Finding(
            "table_copy",
            Level.warning,
            primary.label,
            slot.slot_name,
            "a subscription copies a table through it: a failover ends the copy, and the table must be copied again",
            "wait until the copy is done: SELECT * FROM pg_catalog.pg_subscription_rel on the subscriber",
        )


def _protection(
    slot: Slot, primary: FailoverServer, standby: FailoverServer, max_repeat_bytes: int
) -> Iterator[Finding]:
    """Find why a slot of the primary does not survive a failover to a standby."""
    copy = standby.slot(slot.slot_name)
    if slot.failover:
        if copy is None:
            yield _missing_copy(slot, standby)
        elif not copy.synced:
            yield _name_taken(slot, standby)
        else:
            yield from _copy(slot, copy, primary, standby, max_repeat_bytes)
    elif copy is None:
        yield _unprotected(slot, primary, standby)
    elif not copy.active:
        yield from _follower(slot, primary, standby, max_repeat_bytes)


def _unprotected(slot: Slot, primary: FailoverServer, standby: FailoverServer) -> Finding:
    name = slot.slot_name
    pair = remedies.on(primary, "slot sync {} --with {} --create", name, _to(standby))
    if primary.version >= versions.FAILOVER_SLOTS_SINCE:
        remedy = remedies.on(primary, "slot alter {} --failover", name)
    elif primary.version >= versions.STANDBY_DECODING_SINCE:
        remedy = f"make it one of a pair: {pair}"
    else:
        remedy = (
            f"PostgreSQL {primary.version} cannot protect it: fence the writers, let the consumer finish, and create "
            "the slot on the promoted server before applications write there; or upgrade"
        )
    return Finding(
        "unprotected",
        Level.critical,
        primary.label,
        name,
        f"it is not a failover slot, and {standby.label} has no slot of this name: a promoted standby does not have it"
        if primary.version >= versions.FAILOVER_SLOTS_SINCE
        else f"{standby.label} has no slot of this name: a promoted standby does not have it",
        remedy,
    )


def _follower(slot: Slot, primary: FailoverServer, standby: FailoverServer, max_repeat_bytes: int) -> Iterator[Finding]:
    """Find why the slot of the same name on the standby could not take over: the state of the pair."""
    if primary.wal is None or standby.wal is None:
        return
    here, there = (ServerSlots(one.label, one.wal, one.slots) for one in (primary, standby) if one.wal is not None)
    pair = slot_pairs.pair_of(slot.slot_name, here, there, max_repeat_bytes=max_repeat_bytes)
    if pair.state is PairState.ready:
        return
    yield Finding(
        f"pair_{pair.state}",
        _PAIR_LEVELS.get(pair.state, Level.critical),
        standby.label,
        slot.slot_name,
        f"the pair of slots is {pair.state}: {pair.reason}" + _meaning(pair),
        _pair_remedy(pair, primary, standby),
    )


def _meaning(pair: SlotPair) -> str:
    if pair.state is PairState.behind:
        return ""
    return "; after a failover now its consumer would miss changes"


def _pair_remedy(pair: SlotPair, primary: FailoverServer, standby: FailoverServer) -> str:
    name = pair.slot_name
    sync = remedies.on(primary, "slot sync {} --with {}", name, _to(standby))
    if pair.state is PairState.pending:
        return f"let its consumer confirm; on an idle database: {sync} --nudge"
    if pair.state is PairState.behind:
        return f"{sync}; run it every 10 s, or with --every"
    drop = remedies.on(standby, "slot drop {}", name)
    return f"make the slot on the standby again: {drop}, then {sync} --create"


def _to(standby: FailoverServer) -> str:
    return standby.selectors[1] if len(standby.selectors) == 2 else standby.label


def _missing_copy(slot: Slot, standby: FailoverServer) -> Finding:
    return Finding(
        "copy_missing",
        Level.critical,
        standby.label,
        slot.slot_name,
        "the standby has no copy of this failover slot yet",
        "correct the other findings about this standby; if there are none, wait: a new copy can take 30 s",
    )


def _name_taken(slot: Slot, standby: FailoverServer) -> Finding:
    return Finding(
        "name_taken",
        Level.critical,
        standby.label,
        slot.slot_name,
        "the standby has a slot of this name that is not a copy: it stops the synchronization of every slot",
        f"drop it there: {remedies.on(standby, 'slot drop {}', slot.slot_name)}",
    )


def _copy(
    slot: Slot, copy: Slot, primary: FailoverServer, standby: FailoverServer, max_repeat_bytes: int
) -> Iterator[Finding]:
    """Find why the synchronized copy of a failover slot could not be used after a failover."""
    name = slot.slot_name
    if copy.is_lost:
        yield Finding(
            "copy_invalidated",
            Level.critical,
            standby.label,
            name,
            f"the copy is invalidated ({copy.lost_reason}): it cannot be used after a failover",
            "wait: the standby replaces a copy that is invalidated only there; if this finding stays, check that "
            "hot_standby_feedback is on and raise max_slot_wal_keep_size there",
        )
    elif copy.temporary:
        yield Finding(
            "copy_temporary",
            Level.critical,
            standby.label,
            name,
            "the copy is not ready: it vanishes when the standby is promoted",
            _move(slot, primary),
        )
    elif (repeats := _repeats(slot, copy)) > max_repeat_bytes:
        yield Finding(
            "copy_behind",
            Level.warning,
            standby.label,
            name,
            f"the copy is behind: after a failover the changes of {format_size(repeats)} of WAL are sent again",
            "wait until the standby has synchronized it; if it stays behind, check the log of the standby",
        )


def _move(slot: Slot, primary: FailoverServer) -> str:
    """Return how to move a slot to where the standby can decode: behind a snapshot of the running transactions.

    The server logs one every 15 s while there are writes; RDS documents no right to log one at another time.
    """
    snapshot = "" if primary.is_managed else " and SELECT pg_catalog.pg_log_standby_snapshot()"
    advance = remedies.on(primary, "slot advance {} --to-current", slot.slot_name)
    return (
        f"on the primary, in database {slot.database}: {remedies.NUDGE}{snapshot}; its consumer confirms that; repeat "
        f"it after 20 s until the copy is ready; a slot without a consumer also needs: {advance}"
    )


def _repeats(slot: Slot, copy: Slot) -> int:
    if slot.confirmed_flush_lsn is None or copy.confirmed_flush_lsn is None:
        return 0
    return slot.confirmed_flush_lsn - copy.confirmed_flush_lsn


def _ahead(names: Sequence[Slot], primary: FailoverServer, standby: FailoverServer) -> Iterator[Finding]:
    """Find consumers that have changes which the standby does not have yet."""
    if standby.lsn is None:
        return
    received = max(standby.received_lsn or standby.lsn, standby.lsn)  # a promotion replays what was received
    for slot in names:
        at = slot.confirmed_flush_lsn
        if at is None or at <= received or slot.is_lost:
            continue
        yield Finding(
            "consumer_ahead",
            Level.warning,
            primary.label,
            slot.slot_name,
            f"its consumer has changes that the standby has not received ({format_size(at - received)} of WAL): "
            "after a failover now the new primary would not have them",
            _hold_back(slot, primary, standby),
        )


def _subscriptions_ahead(
    subscriptions: Sequence[Publisher], primary: FailoverServer, standby: FailoverServer
) -> Iterator[Finding]:
    """Find subscriptions that have applied changes which the standby does not have yet.

    A subscription continues after what it applied, also on the new primary, which assigns these positions again.
    """
    for one in subscriptions:
        slot = primary.slot(one.slot)
        if slot is None or slot.slot_type != "logical":
            continue
        if not one.knows_applied:
            yield Finding(
                "subscriber_unknown",
                Level.info,
                primary.label,
                one.subname,
                "how far this subscription has applied changes is not known: this role may not read "
                "pg_replication_origin_status of the subscriber",
                "compare, on the subscriber: SELECT * FROM pg_catalog.pg_replication_origin_status",
            )
        elif one.applied_lsn is not None and standby.lsn is not None:
            received = max(standby.received_lsn or standby.lsn, standby.lsn)
            if one.applied_lsn <= received:
                continue
            yield Finding(
                "subscriber_ahead",
                Level.warning,
                primary.label,
                one.subname,
                f"this subscription has applied changes that the standby has not received "
                f"({format_size(one.applied_lsn - received)} of WAL): after a failover now it would leave out what the "
                "new primary writes in their place",
                _hold_back(slot, primary, standby)
                if slot.failover
                else "disable the subscription before a failover, and enable it when the standby has what it applied",
            )


def _hold_back(slot: Slot, primary: FailoverServer, standby: FailoverServer) -> str:
    physical = standby.settings.get("primary_slot_name")
    named = server_rules.standby_names(primary)
    if slot.failover and physical in named:
        return "wait: synchronized_standby_slots names this standby, so no further change is sent before it has it"
    if slot.failover and physical:
        return remedies.change(primary, "synchronized_standby_slots", ",".join([*named, physical]))
    tail = remedies.on(primary, "slot tail {} --behind {}", slot.slot_name, _to(standby))
    return f"deliver only what the standby has: {tail}"
