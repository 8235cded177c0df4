"""The state of slot pairs, and how far a follower may be advanced."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from rdsrepl.failover import slot_pairs
from rdsrepl.failover.slot_pairs import PairState, pair_of, server_problem
from rdsrepl.lsn import Lsn
from rdsrepl.postgres.server_slots import ServerSlots
from tests.fixtures.builders import GIB, NOW, slot, wal
from tests.workloads.pair_model import interleave


def primary(*slots: Any, **columns: Any) -> ServerSlots:
    return ServerSlots("db-1", wal(**{"version": 16, "system_identifier": "7", **columns}), slots)


def standby(*slots: Any, **columns: Any) -> ServerSlots:
    fields = {"version": 16, "in_recovery": True, "started_at": NOW, "system_identifier": "7", **columns}
    return ServerSlots("db-2", wal(**fields), slots)


def at(lsn: int, **columns: Any) -> Any:
    return slot("s", confirmed_flush_lsn=Lsn(lsn), **columns)


def test_the_follower_is_advanced_to_what_the_consumer_confirmed() -> None:
    pair = pair_of("s", primary(at(500, active=True)), standby(at(300)))
    assert (pair.state, pair.target_lsn, pair.repeat_bytes) == (PairState.ready, 500, 200)


def test_the_follower_is_never_advanced_beyond_its_server() -> None:
    pair = pair_of("s", primary(at(500, active=True)), standby(at(300), lsn=Lsn(400)))
    assert pair.target_lsn == 400
    assert "replayed only" in pair.reason


def test_a_consumer_that_has_not_reached_the_follower_makes_the_pair_pending() -> None:
    pair = pair_of("s", primary(at(200, active=True)), standby(at(300)))
    assert (pair.state, pair.target_lsn, pair.gap_bytes) == (PairState.pending, None, 100)
    stopped = pair_of("s", primary(at(200)), standby(at(300)))
    assert "no consumer is connected" in stopped.reason


def test_many_repeats_are_behind() -> None:
    pair = pair_of("s", primary(at(5 * GIB, active=True)), standby(at(1 * GIB)))
    assert (pair.state, pair.target_lsn) == (PairState.behind, 5 * GIB)
    assert slot_pairs.advanced(pair, Lsn(5 * GIB)).state is PairState.ready


def test_a_leader_that_is_not_in_use_is_not_certain() -> None:
    """The slot with the higher position may be the follower: the consumer's own must not be moved to it."""
    assert pair_of("s", primary(at(500)), standby(at(300))).target_lsn is None
    assert pair_of("s", primary(at(500)), standby(at(300)), leader_at="here").target_lsn == 500


def test_the_consumer_may_be_on_the_standby() -> None:
    here, there = primary(at(300)), standby(at(500, active=True), lsn=Lsn(600))
    assert pair_of("s", here, there).state is PairState.broken  # only --leader says that this is the consumer
    pair = pair_of("s", here, there, leader_at="there")
    assert (pair.leader_role, pair.follower_role, pair.state, pair.target_lsn) == (
        "standby",
        "primary",
        PairState.ready,
        500,
    )


def test_it_does_not_matter_from_which_server_one_looks() -> None:
    pair = pair_of("s", standby(at(300)), primary(at(500, active=True)))
    assert (pair.leader_at, pair.leader_role, pair.target_lsn) == ("there", "primary", 500)


@pytest.mark.parametrize(
    ("leader", "follower", "state", "reason"),
    [
        ({}, None, PairState.missing, "db-2 has no slot s"),
        (None, {}, PairState.missing, "db-1 has no slot s"),
        ({}, {"plugin": "wal2json"}, PairState.broken, "plugin differs: pgoutput on db-1, wal2json on db-2"),
        ({}, {"database": "b"}, PairState.broken, "database differs: app on db-1, b on db-2"),
        ({}, {"two_phase": True}, PairState.broken, "two_phase differs"),
        ({}, {"temporary": True}, PairState.broken, "s on db-2 is temporary"),
        ({}, {"slot_type": "physical"}, PairState.broken, "s on db-2 is physical"),
        ({}, {"active": True, "active_pid": 7}, PairState.broken, "also in use by PID 7"),
        ({}, {"total_bytes": 9}, PairState.broken, "may belong to another consumer"),
        ({}, {"wal_status": "lost"}, PairState.lost, "the follower is invalidated: its WAL was removed"),
        ({}, {"conflicting": True}, PairState.lost, "conflicted with recovery"),
        ({}, {"invalidation_reason": "wal_removed"}, PairState.lost, "wal_removed"),
        ({"wal_status": "lost"}, {}, PairState.lost, "the leader is invalidated"),
        ({"failover": True}, {"synced": True}, PairState.broken, "PostgreSQL itself synchronizes s to db-2"),
        ({}, {"confirmed_flush_lsn": None}, PairState.pending, "the follower is being created"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_advanced(
    leader: dict[str, Any] | None, follower: dict[str, Any] | None, state: PairState, reason: str
) -> None:
    here = primary() if leader is None else primary(replace(at(500, active=True), **leader))
    there = standby() if follower is None else standby(replace(at(300), **follower))
    pair = pair_of("s", here, there)
    assert pair.state is state
    assert reason in pair.reason
    assert pair.target_lsn is None


def test_the_named_leader_must_exist() -> None:
    pair = pair_of("s", primary(), standby(at(300)), leader_at="here")
    assert (pair.state, pair.reason) == (PairState.broken, "db-1 has no slot s; db-2 has one")


def test_naming_the_leader_accepts_a_follower_that_was_read() -> None:
    pair = pair_of("s", primary(at(500)), standby(at(300, total_bytes=9)), leader_at="here")
    assert pair.target_lsn == 500


@pytest.mark.parametrize(
    ("here", "there", "reason"),
    [
        (primary(), replace(standby(), is_aurora=True), "db-2 is Aurora"),
        (primary(), standby(system_identifier="8"), "different database systems"),
        (primary(), standby(system_identifier=None), "not readable"),
        (standby(), standby(), "both standbys"),
        (primary(), replace(primary(started_at=NOW + timedelta(1)), label="db-2"), "both primaries: the standby was"),
        (primary(), replace(primary(), label="db-2"), "are the same server"),
        (primary(version=15), standby(version=15), "db-1 is PostgreSQL 15"),
        (primary(), replace(standby(), wal_level="replica"), "wal_level of db-2 is replica"),
    ],
)
def test_two_servers_that_cannot_have_pairs(here: ServerSlots, there: ServerSlots, reason: str) -> None:
    assert server_problem(primary(), standby()) is None
    assert reason in str(server_problem(here, there))


def test_all_leaves_out_what_cannot_be_paired() -> None:
    here = primary(
        slot("a"),
        slot("phys", slot_type="physical"),
        slot("native", failover=True),
        slot("pg_16394_sync_16385_7304", active=True),
        slot("t", temporary=True),
    )
    assert slot_pairs.names(here, standby(slot("b"), slot("native", synced=True))) == ["a", "b"]


def test_a_follower_never_passes_the_consumer_nor_its_server() -> None:
    """Any order of confirmations, replay, passes, restarts and a promotion; the benchmark runs more of them."""
    models = [interleave(seed) for seed in range(1500)]
    seen = {state for model in models for state in model.states}
    assert seen >= {PairState.missing, PairState.pending, PairState.ready, PairState.behind}
    assert sum(model.was_advanced for model in models) > 300
    assert sum(model.promoted for model in models) > 300


def test_the_model_detects_a_naive_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advancing to where the standby is, as scripts on the web do, is caught."""
    monkeypatch.setattr(
        "tests.workloads.pair_model.pair_of",
        lambda name, here, there, **_: replace(
            pair_of(name, here, there), target_lsn=there.wal.lsn if there.slots else None
        ),
    )
    with pytest.raises(AssertionError):
        for seed in range(200):
            interleave(seed)
