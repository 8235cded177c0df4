"""Which slots may be dropped, and why not the others. Pure: no I/O, no clock.

Every rule that keeps a slot is looked at for every slot, so that a person sees all of them at once. What bends a rule
is an option that names the slot itself. Nothing bends these: a slot in use, a temporary one, a copy that a standby
keeps in step, and RDS's own are never dropped.
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
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_duration, format_size

#: a consumer that reconnects after a failover is away for less.
MIN_IDLE_SECONDS: Final = 60.0
DEFAULT_IDLE_SECONDS: Final = 3600.0
_GLOB: Final = re.compile(r"[*?\[]")

Rule = Literal[
    "not_selected", "active", "temporary", "rds", "synced", "physical", "protected", "named_only", "too_small",
    "not_lost", "not_idle",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Criteria:
    """What the options say.

    Attributes:
        patterns: names and shell patterns; empty is every logical slot.
        idle_seconds: for how long a slot must be proven to be idle.
        retaining_over_bytes: only slots that hold more.
        lost: only slots the server has given up.
        include_physical: physical slots, too.
        protected: patterns of the config file.
        unprotected: names that are taken out of it.
        in_use_elsewhere: slots that a subscription names, with its name in words.
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
    """A rule that keeps a slot, and the reason in words."""

    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True)
class PruneDecision:
    """One slot, judged; without obstacles it is a candidate.

    Attributes:
        holding: what it holds back.
        owner: whose it is, by its name, its plugin or a subscription; None where nothing tells.
        idleness: what is known of that.
        last_consumer: who consumed it when an earlier look saw it active, and when.
        obstacles: what keeps it.
        recreate: the command that makes such a slot again, empty.
    """

    retention: SlotRetention
    owner: str | None
    idleness: Idleness
    last_consumer: str | None
    blockers: tuple[Blocker, ...]
    recreate: str

    @property
    def slot(self) -> Slot:
        """The slot."""
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
    """Return a verdict on every slot of the server, in the order of what they hold.

    Args:
        server: what the slots retain.
        slots: all of them.
        history: what was seen before, oldest first.
        criteria: what the options say.
    """
    holdings = {retention.slot.slot_name: retention for retention in server.holdings}
    decisions = []
    for slot in slots:
        # A temporary slot is none of retention's: it goes with its connection.
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
    """Say whether the patterns mean a slot; without any they mean every logical one."""
    if not criteria.patterns:
        return slot.slot_type == "logical" or criteria.include_physical
    return any(fnmatchcase(slot.slot_name, pattern) for pattern in criteria.patterns)


def matches_all_slots(criteria: Criteria, slots: Iterable[Slot]) -> bool:
    """Say whether patterns, and not names, mean every logical slot there is; RDS's own are none of them."""
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
    """Make sure that the criteria make sense.

    Raises:
        BadValue: a pattern is empty, or the time is shorter than a failover takes.
    """
    for pattern in criteria.patterns:
        if not pattern.strip():
            raise BadValue("--slot is empty", hint="name a slot, or a pattern such as 'old_*'")
    if criteria.idle_seconds < MIN_IDLE_SECONDS:
        raise BadValue(
            f"idle for {format_duration(criteria.idle_seconds)} proves nothing: after a failover a good consumer is "
            "away for that long",
            hint=f"at least {MIN_IDLE_SECONDS:g}s",
        )
    if criteria.lost and criteria.retaining_over_bytes is not None:
        raise BadValue(
            "--lost and --retaining-over exclude each other: a lost slot holds no WAL", hint="give one of them"
        )


def owner(slot: Slot, in_use_elsewhere: Mapping[str, str], consumer: str | None = None) -> str | None:
    """Return whose slot it is: by a subscription, by its name or plugin, or by its last consumer."""
    by_consumer = slot_owners.by_consumer(consumer) if consumer is not None else None
    return in_use_elsewhere.get(slot.slot_name) or slot.owner or by_consumer


def last_consumer(name: str, history: Sequence[Observation]) -> str | None:
    """Return who held a slot when an earlier look last saw it active, and when."""
    for one in reversed(history):
        seen = one.slot(name)
        if seen is not None and seen.active:
            return f"{seen.holder or 'somebody'}, seen at {one.at:%Y-%m-%d %H:%M:%S %Z}"
    return None


def recreate_command(slot: Slot) -> str:
    """Return the command that makes such a slot again; it begins with changes that are committed after that."""
    if slot.slot_type != "logical":
        return sql("SELECT pg_catalog.pg_create_physical_replication_slot({})", slot.slot_name)
    flags = [flag for flag, wanted in ((" --two-phase", slot.two_phase), (" --failover", slot.failover)) if wanted]
    again = command("slot create {} --plugin {}" + "".join(flags), slot.slot_name, slot.plugin or "PLUGIN")
    # Which database a slot belongs to is the connection's to say, and no option's. The comment ends with its line.
    return again + (f"  # connected to database {shown(slot.database)}" if slot.database else "")


def missing_sample_seconds(decisions: Iterable[PruneDecision], version: int, idle_seconds: float) -> float:
    """Return for how long the slots must be watched before idleness alone keeps none of them; 0 where none needs it.

    From 17 on watching proves nothing that the server does not say itself, unless its clock cannot be trusted.
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
        yield Blocker("not_selected", "it is not among those asked for")
    if slot.active:
        yield Blocker("active", f"in use by {slot.holder}")
    if slot.temporary:
        yield Blocker("temporary", "it is temporary, and goes with its connection")
    if name.startswith("rds"):
        yield Blocker("rds", "it is RDS's own: delete the replica, and it goes with it")
    if slot.synced and wal.in_recovery:
        yield Blocker("synced", "this standby keeps it in step with its primary: drop it there")
    if slot.slot_type != "logical" and not criteria.include_physical:
        yield Blocker("physical", "it is physical: a standby or a backup may live on it (--include-physical)")
    if name not in criteria.unprotected:
        pattern = next((one for one in criteria.protected if fnmatchcase(name, one)), None)
        if pattern is not None:
            yield Blocker("protected", f"the config file protects {pattern} (--unprotect {name})")
    if not named:
        if owner_name is not None and not name.startswith("rds"):
            yield Blocker("named_only", f"it is the slot of {owner_name}: name it yourself (--slot {name})")
        elif slot.failover:
            yield Blocker("named_only", f"it is a failover slot: name it yourself (--slot {name})")
    if criteria.lost and not slot.is_lost:
        yield Blocker("not_lost", "the server has not given it up")
    over = criteria.retaining_over_bytes
    if over is not None and (slot.retained_bytes or 0) <= over:
        yield Blocker("too_small", f"it holds {format_size(slot.retained_bytes or 0)}, not over {format_size(over)}")
    if not slot.active and not idleness.is_proven:
        watch = f"; --observe {format_duration(criteria.idle_seconds)} watches it without a break"
        yield Blocker("not_idle", idleness.text + watch)
    elif not slot.active and idleness.proof != "lost" and idleness.seconds < criteria.idle_seconds:
        yield Blocker("not_idle", f"{idleness.text}, not for {format_duration(criteria.idle_seconds)}")
