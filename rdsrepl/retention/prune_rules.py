"""Decide which slots ``slot prune`` may drop, and why it keeps the others. Pure: no I/O, no clock.

Every rule is checked for every slot, so that a person sees all reasons at once. An option that names a slot can
override a rule. No option overrides these: a slot in use, a temporary slot, a slot that a standby synchronizes from its
primary, and a slot of RDS are never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

from rdsrepl.errors import BadValue
from rdsrepl.postgres import slot_owners, versions
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention.assessment import Retention, SlotRetention
from rdsrepl.retention.idleness import Idleness
from rdsrepl.state.slot_history import Observation
from rdsrepl.text.commands import command, sql
from rdsrepl.units import format_duration, format_size

#: A consumer reconnects after a failover within this time.
MIN_IDLE_SECONDS: Final = 60.0
DEFAULT_IDLE_SECONDS: Final = 3600.0
_GLOB: Final = re.compile(r"[*?\[]")

Rule = Literal[
    "not_selected", "active", "temporary", "rds", "synced", "physical", "protected", "named_only", "too_small",
    "not_lost", "not_idle",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Criteria:
    """The slots that the options of ``slot prune`` select.

    Attributes:
        patterns: names and shell patterns; empty selects every logical slot.
        idle_seconds: how long a slot must be proven idle.
        retaining_over_bytes: only slots that retain more WAL.
        lost: only invalidated slots.
        include_physical: also physical slots.
        protected: the patterns that the config file protects.
        unprotected: names to which these patterns do not apply.
        in_use_elsewhere: slots that a subscription uses, with a description of the subscription.
    """

    patterns: tuple[str, ...] = ()
    idle_seconds: float = DEFAULT_IDLE_SECONDS
    retaining_over_bytes: int | None = None
    lost: bool = False
    include_physical: bool = False
    protected: tuple[str, ...] = ()
    unprotected: frozenset[str] = frozenset()
    in_use_elsewhere: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Blocker:
    """A rule that keeps a slot, and the reason for a person."""

    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True)
class PruneDecision:
    """Whether one slot may be dropped: yes if nothing blocks it.

    Attributes:
        retention: what the slot retains.
        owner: the product or subscription that the slot belongs to; None if unknown.
        idleness: how long it is idle, with the proof.
        last_consumer: who consumed it when an earlier sample last found it active, and when.
        blockers: the rules that keep it.
        recreate: the command that creates such a slot again; the new slot is empty.
    """

    retention: SlotRetention
    owner: str | None
    idleness: Idleness
    last_consumer: str | None
    blockers: tuple[Blocker, ...]
    recreate: str

    @property
    def slot(self) -> Slot:
        """The slot's current state."""
        return self.retention.slot

    @property
    def is_candidate(self) -> bool:
        """Whether it may be dropped."""
        return not self.blockers


def evaluate(
    server: Retention,
    slots: Sequence[Slot],
    history: Sequence[Observation],
    criteria: Criteria,
) -> tuple[PruneDecision, ...]:
    """Return a decision for every slot of the server, the slot that retains the most WAL first.

    Args:
        server: what the slots retain.
        slots: all slots of the server.
        history: earlier samples, oldest first.
        criteria: what the options select.
    """
    holdings = {retention.slot.slot_name: retention for retention in server.holdings}
    decisions = []
    for slot in slots:
        # The assessment leaves out temporary slots: the server drops them with their session.
        retention = holdings.get(slot.slot_name) or SlotRetention(
            slot,
            slot.retained_bytes,
            slot.lag_bytes,
            None,
            None,
            None,
            None,
            Idleness(0.0, server.wal.at, "none"),
            None,
            (),
            0,
            None,
        )
        idleness = retention.idleness
        consumer = last_consumer(slot.slot_name, history)
        owner_name = owner(slot, criteria.in_use_elsewhere or {}, consumer)
        decisions.append(
            PruneDecision(
                retention,
                owner_name,
                idleness,
                consumer,
                tuple(_blockers(slot, owner_name, idleness, server.wal, criteria)),
                recreate_command(slot),
            )
        )
    return tuple(sorted(decisions, key=lambda one: (-(one.slot.retained_bytes or 0), one.slot.slot_name)))


def selects(criteria: Criteria, slot: Slot) -> bool:
    """Return whether the patterns select a slot; without patterns every logical slot is selected."""
    if not criteria.patterns:
        return slot.slot_type == "logical" or criteria.include_physical
    return any(fnmatchcase(slot.slot_name, pattern) for pattern in criteria.patterns)


def matches_all_slots(criteria: Criteria, slots: Iterable[Slot]) -> bool:
    """Return whether patterns, and not names, select every logical slot of the server; slots of RDS do not count."""
    logical = [
        slot
        for slot in slots
        if slot.slot_type == "logical" and not slot.temporary and not slot.slot_name.startswith("rds")
    ]
    named = {pattern for pattern in criteria.patterns if not _GLOB.search(pattern)}
    by_pattern = [slot for slot in logical if slot.slot_name not in named]
    globs = [pattern for pattern in criteria.patterns if _GLOB.search(pattern)]
    return bool(globs and by_pattern) and all(
        any(fnmatchcase(slot.slot_name, pattern) for pattern in globs) for slot in by_pattern
    )


def check(criteria: Criteria) -> None:
    """Check the criteria.

    Raises:
        BadValue: a pattern is empty, the idle time is shorter than a failover, or two options exclude each other.
    """
    for pattern in criteria.patterns:
        if not pattern.strip():
            raise BadValue("--slot is empty", hint="give a name, or a pattern such as 'old_*'")
    if criteria.idle_seconds < MIN_IDLE_SECONDS:
        raise BadValue(
            f"an idle time of {format_duration(criteria.idle_seconds)} is too short: "
            "after a failover a consumer can be disconnected for that long",
            hint=f"give at least {MIN_IDLE_SECONDS:g}s",
        )
    if criteria.lost and criteria.retaining_over_bytes is not None:
        raise BadValue(
            "--lost and --retaining-over exclude each other: an invalidated slot retains no WAL",
            hint="give one of them",
        )


def owner(slot: Slot, in_use_elsewhere: Mapping[str, str], consumer: str | None = None) -> str | None:
    """Return whose slot it is: by a subscription, by its name or plugin, or by its last consumer."""
    by_consumer = slot_owners.by_consumer(consumer) if consumer is not None else None
    return in_use_elsewhere.get(slot.slot_name) or slot.owner or by_consumer


def last_consumer(name: str, history: Sequence[Observation]) -> str | None:
    """Return who held a slot in the last sample in which it was active, and when that was."""
    for one in reversed(history):
        seen = one.slot(name)
        if seen is not None and seen.active:
            return f"{seen.holder or 'an unknown session'}, at {one.at:%Y-%m-%d %H:%M:%S %Z}"
    return None


def recreate_command(slot: Slot) -> str:
    """Return the command that creates such a slot again; the new slot begins at the current position."""
    if slot.slot_type != "logical":
        return sql("SELECT pg_catalog.pg_create_physical_replication_slot({})", slot.slot_name)
    flags = [flag for flag, wanted in ((" --two-phase", slot.two_phase), (" --failover", slot.failover)) if wanted]
    template, values = "slot create {} --plugin {}" + "".join(flags), [slot.slot_name, slot.plugin or "PLUGIN"]
    if slot.database:
        template, values = f"{template} --dbname {{}}", [*values, slot.database]
    return command(template, *values)


def missing_sample_seconds(decisions: Iterable[PruneDecision], version: int, idle_seconds: float) -> float:
    """Return how long to sample the slots until no slot is kept only because it is not proven idle; 0 if not needed.

    Since 17 samples prove no more than ``inactive_since``, unless the server's clock is not reliable.
    """
    missing = any(
        one.blockers
        and all(blocker.rule == "not_idle" for blocker in one.blockers)
        and (version < versions.SLOT_INACTIVITY_SINCE or one.idleness.doubt)
        for one in decisions
    )
    return idle_seconds if missing else 0.0


def _blockers(
    slot: Slot, owner_name: str | None, idleness: Idleness, wal: Wal, criteria: Criteria
) -> Iterable[Blocker]:
    name = slot.slot_name
    named = name in criteria.patterns
    if not selects(criteria, slot):
        yield Blocker("not_selected", "not selected")
    if slot.active:
        yield Blocker("active", f"in use by {slot.holder}")
    if slot.temporary:
        yield Blocker("temporary", "temporary: the server drops it with its session")
    if name.startswith("rds"):
        yield Blocker("rds", "slot of RDS: it is dropped when its replica is deleted")
    if slot.synced and wal.in_recovery:
        yield Blocker("synced", "synchronized from the primary: drop it there")
    if slot.slot_type != "logical" and not criteria.include_physical:
        yield Blocker("physical", "physical: a standby or a backup may depend on it (--include-physical)")
    if name not in criteria.unprotected:
        pattern = next((one for one in criteria.protected if fnmatchcase(name, one)), None)
        if pattern is not None:
            yield Blocker("protected", f"protected by the config file: {pattern} (--unprotect {name})")
    if not named:
        if owner_name is not None and not name.startswith("rds"):
            yield Blocker("named_only", f"slot of {owner_name}: select it by name (--slot {name})")
        elif slot.failover:
            yield Blocker("named_only", f"failover slot: select it by name (--slot {name})")
    if criteria.lost and not slot.is_lost:
        yield Blocker("not_lost", "not invalidated")
    over = criteria.retaining_over_bytes
    if over is not None and (slot.retained_bytes or 0) <= over:
        yield Blocker("too_small", f"retains {format_size(slot.retained_bytes or 0)}, not over {format_size(over)}")
    if not slot.active and not idleness.is_proven:
        remedy = f"; --observe {format_duration(criteria.idle_seconds)} samples it without interruption"
        yield Blocker("not_idle", idleness.text + remedy)
    elif not slot.active and idleness.proof != "lost" and idleness.seconds < criteria.idle_seconds:
        yield Blocker("not_idle", f"{idleness.text}; {format_duration(criteria.idle_seconds)} required")
