"""The rules of ``slot prune`` on data."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.postgres.slots import Slot, Walsender
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention import assessment, idleness, prune_rules
from rdsrepl.retention.idleness import SampledIdle
from rdsrepl.retention.prune_rules import Criteria, PruneDecision
from rdsrepl.state.slot_history import Observation, SlotObservation
from tests.fixtures.builders import NOW, slot, wal

HOUR = 3600.0
DMS = "abcdefghijklmnop_00016402_1a2b3c4d_0000_1111_2222_1a2b3c4d5e6f"


def decide(
    one: Slot,
    criteria: Criteria,
    *,
    here: Wal | None = None,
    history: tuple[Observation, ...] = (),
    watched_seconds: float | None = None,
) -> PruneDecision:
    here = here or wal()
    sampled = {} if watched_seconds is None else {one.slot_name: SampledIdle(watched_seconds, NOW, 9, 0.3)}
    (decision,) = prune_rules.evaluate(
        assessment.assess(here, [one], history, sampled=sampled), [one], history, criteria
    )
    return decision


def rules(decision: PruneDecision) -> set[str]:
    return {blocker.rule for blocker in decision.blockers}


def seen(at: datetime, *, active: bool = False, lsn: int = 9 << 30, started: datetime | None = None, timeline: int = 1,
         holder: str | None = None) -> Observation:  # fmt: skip
    position = Lsn(lsn)
    started = started or NOW - timedelta(days=30)
    return Observation(
        at, started, timeline, Lsn(9 << 30), 900, (SlotObservation("old", active, position, position, 1, holder),)
    )


ACTIVE = {"active": True, "active_pid": 7, "inactive_since": None, "walsender": Walsender(7, "cdc", "x", "h:1", "s")}


def test_an_idle_slot_is_a_candidate() -> None:
    decision = decide(slot(), Criteria())
    assert decision.is_candidate and decision.idleness.proof == "server"
    assert decision.idleness.seconds == 10 * 24 * HOUR


@pytest.mark.parametrize(
    ("one", "here", "rule"),
    [
        (slot(**ACTIVE), wal(), "active"),
        (slot(temporary=True), wal(), "temporary"),
        (slot("rds_eu_west_1_db_x", slot_type="physical", plugin=None), wal(), "rds"),
        (slot("rdsanything"), wal(), "rds"),
        (slot(synced=True, failover=True), wal(in_recovery=True), "synced"),
        (slot(slot_type="physical", plugin=None, database=None), wal(), "physical"),
        (slot(failover=True), wal(), "named_only"),
        (slot(DMS), wal(), "named_only"),
        (slot("pgl_app_provider_sub"), wal(), "named_only"),
        (slot("debezium"), wal(), "named_only"),
        (slot("inventory_debezium_1"), wal(), "named_only"),
        (slot("any", plugin="decoderbufs"), wal(), "named_only"),
        (slot("electric_slot_default"), wal(), "named_only"),
        (slot("spk_app_n1_sub_n2n1"), wal(), "named_only"),
        (slot("pg_16394_sync_16385_7500000000000000000"), wal(), "named_only"),
        (slot(inactive_since=NOW - timedelta(minutes=30)), wal(), "not_idle"),
        (slot(), wal(started_at=NOW - timedelta(minutes=30)), "not_idle"),
        (slot(inactive_since=None), wal(version=15), "not_idle"),
    ],
)
def test_each_rule_that_keeps_a_slot(one: Slot, here: Wal, rule: str) -> None:
    assert rule in rules(decide(one, Criteria(), here=here))


NEVER = [slot(**ACTIVE), slot("rds_a"), slot("rds_b", slot_type="physical", plugin=None), slot(temporary=True)]


@given(
    number=st.integers(0, len(NEVER)),
    patterns=st.lists(st.sampled_from(["*", "old", "rds*", "rds_a", "rds_b", "o*"]), max_size=3),
    over=st.sampled_from([None, 0]),
    lost=st.booleans(),
    physical=st.booleans(),
    idle_seconds=st.sampled_from([60.0, HOUR]),
)
def test_no_option_drops_an_excluded_slot(
    number: int, patterns: list[str], over: int | None, lost: bool, physical: bool, idle_seconds: float
) -> None:
    here, one = (wal(), NEVER[number]) if number < len(NEVER) else (wal(in_recovery=True), slot(synced=True))
    criteria = Criteria(
        patterns=tuple(patterns),
        idle_seconds=idle_seconds,
        retaining_over_bytes=over,
        lost=lost,
        include_physical=physical,
        unprotected=frozenset({one.slot_name}),
    )
    assert not decide(one, criteria, here=here).is_candidate
    if one.wal_status != "lost":
        assert not decide(replace(one, wal_status="lost"), criteria, here=here).is_candidate


@given(
    pattern=st.sampled_from(["*", "old", "o?d", "prod_*", "old*"]),
    named=st.booleans(),
    excepted=st.booleans(),
)
def test_a_protected_slot_requires_unprotect(pattern: str, named: bool, excepted: bool) -> None:
    criteria = Criteria(
        patterns=("old",) if named else (),
        protected=(pattern,),
        unprotected=frozenset({"old"}) if excepted else frozenset({"o*", "other"}),
    )
    decision = decide(slot(), criteria)
    assert ("protected" in rules(decision)) == (fnmatchcase("old", pattern) and not excepted)


@pytest.mark.parametrize("one", [slot(failover=True), slot(DMS), slot("x", plugin="decoderbufs")])
def test_a_known_consumers_slot_requires_its_name_not_a_pattern(one: Slot) -> None:
    assert "named_only" in rules(decide(one, Criteria(patterns=("*",))))
    assert decide(one, Criteria(patterns=(one.slot_name,))).is_candidate


def test_a_slot_of_a_subscription_requires_its_name() -> None:
    used = {"old": "subscription s of other/app"}
    decision = decide(slot(), Criteria(in_use_elsewhere=used))
    assert rules(decision) == {"named_only"} and decision.owner == "subscription s of other/app"
    assert decide(slot(), Criteria(patterns=("old",), in_use_elsewhere=used)).is_candidate


def test_an_invalidated_slot_needs_no_proof_of_idleness() -> None:
    lost = slot(wal_status="lost", restart_lsn=None, retained_bytes=None, inactive_since=None)
    assert decide(lost, Criteria(lost=True), here=wal(version=15)).is_candidate
    assert rules(decide(slot(), Criteria(lost=True))) == {"not_lost"}


def test_retaining_over() -> None:
    assert decide(slot(), Criteria(retaining_over_bytes=(1 << 30) - 1)).is_candidate
    assert rules(decide(slot(), Criteria(retaining_over_bytes=1 << 30))) == {"too_small"}
    assert "too_small" in rules(decide(slot(retained_bytes=None), Criteria(retaining_over_bytes=0)))


# Proof of idleness before 17.


OLD = wal(version=15)
STILL = slot(inactive_since=None)


def test_samples_of_separate_runs_are_reported_but_prove_nothing() -> None:
    history = tuple(seen(NOW - timedelta(minutes=minutes)) for minutes in (90, 60, 30))
    decision = decide(STILL, Criteria(), here=OLD, history=history)
    assert rules(decision) == {"not_idle"} and decision.idleness.proof == "looks" and not decision.idleness.is_proven
    assert decision.idleness.seconds == 1.5 * HOUR and decision.idleness.looks == 4
    assert "--observe 1h00m" in decision.blockers[0].reason
    sampled = decide(STILL, Criteria(), here=OLD, history=history, watched_seconds=HOUR)
    assert sampled.is_candidate and sampled.idleness.proof == "observed" and sampled.idleness.seconds == HOUR
    assert rules(decide(STILL, Criteria(), here=OLD, watched_seconds=HOUR - 1)) == {"not_idle"}


@pytest.mark.parametrize(
    "between",
    [
        seen(NOW - timedelta(minutes=30), active=True),
        seen(NOW - timedelta(minutes=30), lsn=(9 << 30) - 1),
        replace(seen(NOW - timedelta(minutes=30)), slots=()),
        replace(
            seen(NOW - timedelta(minutes=30)),
            slots=(SlotObservation("old", False, Lsn(9 << 30), Lsn(9 << 30), 1, None, (0, 0, 0, 0, 0, 0, 0, 7, None)),),
        ),
    ],
    ids=["active", "moved", "absent", "read"],
)
def test_a_sample_with_activity_ends_the_proof(between: Observation) -> None:
    history = (seen(NOW - timedelta(hours=5)), between, seen(NOW - timedelta(minutes=10)))
    decision = decide(STILL, Criteria(), here=OLD, history=history)
    assert rules(decision) == {"not_idle"} and decision.idleness.seconds == 600


@given(
    minutes=st.lists(st.integers(1, 600), min_size=1, max_size=8, unique=True),
    up_minutes=st.integers(1, 600),
    inactive=st.one_of(st.none(), st.integers(0, 600)),
)
def test_idle_time_begins_at_the_servers_start_at_the_earliest(
    minutes: list[int], up_minutes: int, inactive: int | None
) -> None:
    here = wal(started_at=NOW - timedelta(minutes=up_minutes))
    history = tuple(seen(NOW - timedelta(minutes=n), started=here.started_at) for n in sorted(minutes, reverse=True))
    one = slot(inactive_since=None if inactive is None else NOW - timedelta(minutes=inactive))
    assert idleness.assess_idleness(one, history, here).seconds <= up_minutes * 60


LONG_UP = wal(started_at=NOW - timedelta(days=30), timeline=2)


@pytest.mark.parametrize(
    ("history", "promoted_minutes", "idle_minutes", "counted_from"),
    [
        ((), 30, 30, "the server's promotion"),
        ((), 60 * 24 * 20, 60 * 24 * 10, ""),
        ((), None, 0, "pg_monitor"),
        ((seen(NOW - timedelta(minutes=90), timeline=2),), None, 90, "pg_monitor"),
        ((seen(NOW - timedelta(minutes=90), timeline=1),), None, 0, "pg_monitor"),
        ((seen(NOW - timedelta(minutes=90), timeline=2, started=NOW - timedelta(days=1)),), None, 0, "pg_monitor"),
        ((seen(NOW - timedelta(minutes=20), active=True, timeline=1),), 30, 20, "in use"),
    ],
    ids=["promoted", "long ago", "unknown", "looked at since", "before it", "another server", "in use at the primary"],
)
def test_idle_time_begins_at_the_promotion_at_the_earliest(
    history: tuple[Observation, ...], promoted_minutes: int | None, idle_minutes: int, counted_from: str
) -> None:
    """A promoted standby is not restarted, and can have slots with an inactive_since before its promotion."""
    promoted = None if promoted_minutes is None else NOW - timedelta(minutes=promoted_minutes)
    found = idleness.assess_idleness(slot(), history, LONG_UP, promoted_at=promoted)
    assert found.seconds == idle_minutes * 60 and found.proof == "server"
    assert counted_from in found.text and (counted_from or not found.counted_from)


def test_a_server_without_a_promotion_has_no_such_limit() -> None:
    assert idleness.assess_idleness(slot(), (), wal()).seconds == 10 * 24 * HOUR
    assert idleness.assess_idleness(slot(), (), wal(in_recovery=True, timeline=None)).seconds == 10 * 24 * HOUR


@given(
    inactive=st.integers(0, 600),
    up=st.integers(0, 600),
    promoted=st.integers(0, 600),
    used=st.one_of(st.none(), st.integers(0, 600)),
    looks=st.lists(st.tuples(st.integers(0, 600), st.integers(1, 3)), max_size=5),
)
def test_idle_time_never_begins_before_any_limit(
    inactive: int, up: int, promoted: int, used: int | None, looks: list[tuple[int, int]]
) -> None:
    here = wal(started_at=NOW - timedelta(minutes=up), timeline=3)
    ages = [(minutes, False, timeline) for minutes, timeline in looks]
    ages += [] if used is None else [(used, True, 2)]
    history = tuple(
        seen(NOW - timedelta(minutes=minutes), active=active, timeline=timeline, started=here.started_at)
        for minutes, active, timeline in sorted(ages, reverse=True)
    )
    one = slot(inactive_since=NOW - timedelta(minutes=inactive))
    bound = min([inactive, up] + ([] if used is None else [used])) * 60
    promoted_at = NOW - timedelta(minutes=promoted)
    assert idleness.assess_idleness(one, history, here, promoted_at=promoted_at).seconds == min(bound, promoted * 60)
    since_promotion = max((minutes for minutes, _, timeline in ages if timeline == 3), default=0)
    assert idleness.assess_idleness(one, history, here).seconds == min(bound, since_promotion * 60)


@pytest.mark.parametrize(
    ("application", "who"),
    [("Debezium Streaming", "Debezium"), ("airbyte-source", "Airbyte"), ("psql", None), ("", None)],
)
def test_the_last_consumer_determines_the_owner(application: str, who: str | None) -> None:
    about = f"PID 7 (user debezium_reader, application {application}, client 10.0.0.1:5)"
    history = (seen(NOW - timedelta(days=20), active=True, holder=about if application else "PID 7"),)
    decision = decide(slot(), Criteria(), history=history)
    assert decision.owner == who and rules(decision) == ({"named_only"} if who else set())
    assert decide(slot(), Criteria(patterns=("old",)), history=history).is_candidate


def test_missing_sample_seconds() -> None:
    def decisions(*slots: Slot, here: Wal = OLD) -> list[PruneDecision]:
        history = (seen(NOW - timedelta(minutes=20)),)
        return [decide(one, Criteria(idle_seconds=1800.0), here=here, history=history) for one in slots]

    assert prune_rules.missing_sample_seconds(decisions(STILL), 15, 1800.0) == 1800, (
        "what was seen before counts for nothing"
    )
    assert prune_rules.missing_sample_seconds(decisions(STILL, slot("new", inactive_since=None)), 15, 1800.0) == 1800
    assert prune_rules.missing_sample_seconds(decisions(replace(STILL, **ACTIVE)), 15, 1800.0) == 0, (
        "watching would not help it"
    )
    assert prune_rules.missing_sample_seconds(decisions(slot(inactive_since=NOW), here=wal()), 18, 1800.0) == 0


def test_the_last_consumer_is_from_the_last_active_sample() -> None:
    history = (
        seen(NOW - timedelta(days=3), active=True, holder="PID 1 (user first)"),
        seen(NOW - timedelta(days=2), active=True, holder="PID 2 (user second)"),
        seen(NOW - timedelta(days=1)),
    )
    assert decide(slot(), Criteria(), history=history).last_consumer == (
        "PID 2 (user second), at 2026-11-19 12:00:00 UTC"
    )


# Patterns.


def test_a_pattern_that_matches_all_slots() -> None:
    slots = [slot("a"), slot("b"), slot("rds_x", slot_type="physical")]
    assert prune_rules.matches_all_slots(Criteria(patterns=("*",)), slots)
    assert prune_rules.matches_all_slots(Criteria(patterns=("[a-z]",)), slots)
    assert prune_rules.matches_all_slots(Criteria(patterns=("a", "?")), slots), "the name changes nothing"
    assert not prune_rules.matches_all_slots(Criteria(patterns=("a*",)), slots)
    assert not prune_rules.matches_all_slots(Criteria(patterns=("a", "b")), slots), "each is named"
    assert not prune_rules.matches_all_slots(Criteria(), slots)
    blue = [*slots, slot("rds_blue")]
    assert prune_rules.matches_all_slots(Criteria(patterns=("[!r]*",)), blue), "RDS's own are left out in any case"


@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(patterns=("",)),
        Criteria(patterns=(" ",)),
        Criteria(idle_seconds=59),
        Criteria(lost=True, retaining_over_bytes=1),
    ],
)
def test_invalid_criteria(criteria: Criteria) -> None:
    with pytest.raises(BadValue):
        prune_rules.check(criteria)


def test_command_to_recreate_a_slot() -> None:
    assert prune_rules.recreate_command(slot(two_phase=True, failover=True)) == (
        "rdsrepl slot create old --plugin pgoutput --two-phase --failover --dbname app"
    )
    assert (
        prune_rules.recreate_command(slot(slot_type="physical"))
        == "SELECT pg_catalog.pg_create_physical_replication_slot('old')"
    )
