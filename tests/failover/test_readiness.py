"""``failover check``: its rules, and what they find on real servers."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.failover import readiness, server_rules
from rdsrepl.failover.findings import Level
from rdsrepl.lsn import Lsn
from rdsrepl.postgres.failover_servers import FailoverServer
from rdsrepl.postgres.subscriptions import Publisher
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.builders import wal
from tests.fixtures.failover import FailoverPair, failover_pair
from tests.fixtures.hints import wrong_commands
from tests.fixtures.postgres import Servers
from tests.fixtures.program import Program, Result
from tests.fixtures.readiness import CRITICAL, PHYSICAL, WARNINGS, Pair, ready_pair, setting, with_slot, without_slot
from tests.fixtures.waiting import wait_until


def assess(pair: Pair) -> readiness.Readiness:
    return readiness.assess(pair[0], (pair[1],))


# --- the rules


def test_a_pair_that_is_ready_has_no_finding() -> None:
    result = assess(ready_pair())
    assert (result.findings, result.ready, result.level) == ((), True, None)
    (row,) = result.slots
    assert (row.slot_name, row.protected_by, row.ready, row.repeat_bytes) == ("orders", "failover", True, 0)


@pytest.mark.parametrize("name", CRITICAL)
def test_each_critical_finding_alone(name: str) -> None:
    result = assess(CRITICAL[name](ready_pair()))
    check = name.partition(" ")[0]
    assert {one.check for one in result.findings if one.level is Level.critical} == {check}
    assert (result.level, result.ready) == (Level.critical, False)


@pytest.mark.parametrize("name", WARNINGS)
def test_each_warning_alone(name: str) -> None:
    result = assess(WARNINGS[name](ready_pair()))
    assert [(one.check, one.level) for one in result.findings] == [(name, Level.warning)]
    assert (result.level, result.ready) == (Level.warning, True)
    assert all(row.ready for row in result.slots)


@pytest.mark.parametrize(
    ("more", "knows", "checks"),
    [
        (-8, True, []),
        (0, True, []),
        (8, True, ["subscriber_ahead"]),
        (None, True, []),
        (None, False, ["subscriber_unknown"]),
    ],
)
def test_a_subscription_that_has_applied_more_than_the_standby_has(
    more: int | None, knows: bool, checks: list[str]
) -> None:
    primary, standby = ready_pair()
    assert standby.lsn is not None
    applied = None if more is None else Lsn(standby.lsn + more)
    found = [
        Publisher("s", "app", slot, "host=orders", applied, knows_applied=knows)
        for slot in ("orders", "a slot of another publisher", PHYSICAL)
    ]
    result = readiness.assess(primary, (standby,), subscriptions=found)
    assert [one.check for one in result.findings] == checks and result.ready


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize("name", [*CRITICAL, *WARNINGS])
def test_the_commands_of_every_remedy_run_when_they_are_pasted(name: str, managed: bool) -> None:
    known = {"is_managed": True, "parameter_group": "orders-logical", "instance_id": "orders"} if managed else {}
    for table in (CRITICAL, WARNINGS):
        if name in table:
            for finding in assess(table[name](ready_pair(**known))).findings:
                assert finding.remedy and wrong_commands(finding.remedy) == []
                assert not (managed and "ALTER SYSTEM" in finding.remedy), "RDS refuses ALTER SYSTEM"


@given(st.lists(st.sampled_from(sorted(CRITICAL) + [f"w:{name}" for name in sorted(WARNINGS)]), max_size=5))
def test_more_problems_never_hide_a_critical_one(names: list[str]) -> None:
    """No combination makes a failover look ready that a single critical problem forbids.

    A later change can undo an earlier one, so each is looked for only if it is still there.
    """
    pair = ready_pair()
    for name in names:
        pair = WARNINGS[name[2:]](pair) if name.startswith("w:") else CRITICAL[name](pair)
    primary, standby = pair
    result = assess(pair)
    copy, slot = standby.slot("orders"), primary.slot("orders")
    assert slot is not None
    usable = copy is not None and not copy.temporary and not copy.is_lost and not slot.is_lost
    row = next(one for one in result.slots if one.slot_name == "orders")
    if slot.failover:
        assert row.ready is bool(usable and copy is not None and copy.synced)
    else:
        assert usable or not row.ready
    assert not result.ready or row.ready
    assert result.ready is not any(one.level is Level.critical for one in result.findings)
    ranks = [one.level.rank for one in result.findings]
    assert ranks == sorted(ranks, reverse=True)


def test_a_replica_with_the_group_of_its_source_needs_its_own() -> None:
    known = {"is_managed": True, "parameter_group": "shared", "instance_id": "orders-replica"}
    primary, standby = ready_pair(**known)
    (finding,) = assess((primary, setting(standby, synchronized_standby_slots=PHYSICAL))).findings
    assert "param-group create orders-replica-logical" in finding.remedy
    assert "param-group reset shared" not in finding.remedy, "that would change the primary, too"


def test_walsenders_that_wait_are_the_proof() -> None:
    primary, standby = ready_pair()
    primary = replace(setting(primary, synchronized_standby_slots="gone"), waiting_slots=("orders",))
    (finding,) = assess((primary, standby)).findings
    assert "the consumers of orders wait now" in finding.message


def test_the_state_of_another_standby_does_not_hide_a_finding() -> None:
    primary, good = ready_pair()
    bad = replace(without_slot(good, "orders"), label="second")
    result = readiness.assess(primary, (good, bad))
    assert [(one.check, one.server) for one in result.findings] == [("copy_missing", "second")]
    assert [(row.standby, row.ready) for row in result.slots] == [(good.label, True), ("second", False)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p, s: (s, p), "is a standby: name its primary"),
        (lambda p, s: (p, p), "same server"),
        (lambda p, s: (p, replace(s, in_recovery=False)), "was promoted"),
        (lambda p, s: (p, replace(s, wal=wal(system_identifier="8"))), "standby of another primary"),
        (lambda p, s: (p, replace(s, wal=wal(system_identifier=None))), "not readable"),
        (lambda p, s: (replace(p, is_aurora=True), s), "Aurora"),
    ],
)
def test_servers_that_are_no_pair(change: object, reason: str) -> None:
    assert callable(change)
    primary, standby = ready_pair()
    assert server_rules.different_servers(primary, standby) is None
    assert reason in str(server_rules.different_servers(*change(primary, standby)))


def test_before_17_only_a_slot_of_the_same_name_protects() -> None:
    primary, standby = (
        replace(with_slot(one, "orders", failover=None, synced=None), version=16) for one in ready_pair()
    )
    alone: FailoverServer = without_slot(standby, "orders")
    (finding,) = assess((primary, alone)).findings
    assert finding.check == "unprotected" and "slot sync orders --with orders-replica --create" in finding.remedy


# --- real servers


@pytest.fixture(scope="module")
def pair(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailoverPair]:
    """A primary and a standby of 18; the failover slot ``fo`` has a synchronized copy."""
    directory = tmp_path_factory.mktemp("readiness")
    with failover_pair(servers, Program(directory), directory, "id int") as made:
        made.standby.settings["wal_receiver_status_interval"] = "1s"
        made.standby.reload()
        made.wait_until_synced(ADVANCE)
        yield made


ADVANCE = "SELECT pg_replication_slot_advance('fo', pg_current_wal_lsn())"


@pytest.fixture
def checked(pair: FailoverPair, rdsrepl: Program) -> Callable[..., Result]:
    """Run ``failover check`` for the pair, which sends its feedback again after a test that switched it off."""
    feedback = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'standby' AND catalog_xmin IS NOT NULL"
    wait_until(lambda: run(pair.primary, feedback), "the standby sends its feedback")

    def check(*words: str) -> Result:
        return rdsrepl("-o", "json", "failover", "check", "--to", pair.standby.dsn(), *words, dsn=pair.primary.dsn())

    return check


def found(result: Result) -> set[str]:
    return {one["check"] for one in result.json["findings"] if one["level"] != "info"}


@contextmanager
def with_settings(server: PostgresServer, **values: str) -> Iterator[None]:
    """Reload a server with other settings, and then with its own again."""
    own = dict(server.settings)
    server.settings |= values
    server.reload()
    try:
        yield
    finally:
        server.settings = own
        server.reload()


def run(server: PostgresServer, *statements: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    with closing(server.connect()) as conn:
        for statement in statements:
            cursor = conn.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
    return rows


def drop(server: PostgresServer, name: str) -> None:
    run(server, f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'")


def test_a_standby_with_synchronized_slots_is_ready(pair: FailoverPair, checked: Callable[..., Result]) -> None:
    worker = "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'slotsync worker'"
    wait_until(lambda: run(pair.standby, worker), "the worker runs")  # after an error it is started again after 10 s
    result = checked()
    assert (result.json["ready"], result.json["level"], result.json["findings"]) == (True, None, [])
    (row,) = result.json["slots"]
    assert row["slot_name"] == "fo" and row["protected_by"] == "failover" and row["ready"]
    plugin = checked("--nagios")
    assert (plugin.code, plugin.out) == (0, "FAILOVER OK - 1 slot ready | slots=1 unready=0\n")


@pytest.mark.parametrize(
    ("check", "values"),
    [
        ("sync_replication_slots", {"sync_replication_slots": "off"}),
        ("hot_standby_feedback", {"hot_standby_feedback": "off"}),
        ("primary_slot_name", {"primary_slot_name": ""}),
        ("physical_slot", {"primary_slot_name": "another"}),
        ("synchronized_standby_slots_of_standby", {"synchronized_standby_slots": "standby"}),
    ],
)
def test_settings_of_a_real_standby(
    pair: FailoverPair, checked: Callable[..., Result], check: str, values: dict[str, str]
) -> None:
    with with_settings(pair.standby, **values):
        wait_until(lambda: check in found(checked()), f"{check} is found")
        result = checked("--nagios")
        assert result.code == 2 and result.out.startswith("FAILOVER CRITICAL - ")


def test_a_standby_that_cannot_connect(pair: FailoverPair, checked: Callable[..., Result]) -> None:
    cut_off = pair.standby.settings["primary_conninfo"].replace(f"port='{pair.primary.port}'", "port='1'")
    with with_settings(pair.standby, primary_conninfo=cut_off.replace("dbname='postgres'", "dbname='gone'")):
        wait_until(lambda: {"not_streaming", "sync_database"} <= found(checked()), "both are found")
        run(pair.primary, "INSERT INTO public.t VALUES (1)", ADVANCE)
        wait_until(lambda: "consumer_ahead" in found(checked()), "the consumer is ahead of the standby")
    wait_until(lambda: "not_streaming" not in found(checked()), "it streams again")


def test_a_slot_that_is_not_protected_and_a_name_that_is_taken(
    pair: FailoverPair, checked: Callable[..., Result]
) -> None:
    make = "SELECT pg_create_logical_replication_slot('more', 'pgoutput')"
    run(pair.primary, make)
    try:
        result = checked()
        assert result.code == 9 and found(result) - {"consumer_ahead", "sync_worker"} == {"unprotected"}
        # A slot of the same name that is made on the standby protects it, and is in the way when it is altered.
        with closing(pair.standby.connect()) as conn:
            maker = threading.Thread(target=conn.execute, args=(make,))
            maker.start()
            wait_until(
                lambda: run(pair.primary, "SELECT pg_log_standby_snapshot()") and not maker.is_alive(), "it is made"
            )
        with closing(pair.primary.connect(replication=True)) as conn:
            conn.execute('ALTER_REPLICATION_SLOT "more" (FAILOVER true)')
        result = checked()
        assert result.code == 9 and "name_taken" in found(result)
    finally:
        drop(pair.standby, "more")
        drop(pair.primary, "more")


def test_a_copy_that_is_not_ready_vanishes(pair: FailoverPair, checked: Callable[..., Result]) -> None:
    """A copy stays temporary until the slot of the primary needs no older catalog than the standby still has."""
    run(pair.primary, "SELECT pg_create_logical_replication_slot('late', 'pgoutput')")
    try:
        xmin = "SELECT catalog_xmin::text::int FROM pg_replication_slots WHERE slot_name = '{}'"
        ((late,),) = run(pair.primary, xmin.format("late"))

        def other_copy_is_newer() -> bool:
            run(pair.primary, "INSERT INTO public.t VALUES (2)", "SELECT pg_log_standby_snapshot()", ADVANCE)
            return bool(run(pair.standby, xmin.format("fo"))[0][0] > late)

        wait_until(other_copy_is_newer, "the standby holds only newer rows of the catalog")
        with closing(pair.primary.connect(replication=True)) as conn:
            conn.execute('ALTER_REPLICATION_SLOT "late" (FAILOVER true)')
        wait_until(lambda: "copy_missing" not in found(checked()), "it is copied")
        result = checked()
        (finding,) = [one for one in result.json["findings"] if one["subject"] == "late"]
        assert result.code == 9 and finding["check"] == "copy_temporary"
        # The remedy: its position moves behind a snapshot.
        advance = ADVANCE.replace("'fo'", "'late'")
        statements = re.findall(r"SELECT pg_catalog[^;]*?\)(?= and|;)", finding["remedy"])
        assert len(statements) == 2

        def is_ready() -> bool:
            run(pair.primary, *statements, advance)
            return "copy_temporary" not in found(checked())

        wait_until(is_ready, "the copy is persistent")
    finally:
        drop(pair.primary, "late")


def test_names_for_which_decoding_waits(pair: FailoverPair, checked: Callable[..., Result]) -> None:
    with with_settings(pair.primary, synchronized_standby_slots="gone"):
        wait_until(lambda: "synchronized_standby_slots" in found(checked()), "the name is found")
        (finding,) = [one for one in checked().json["findings"] if one["check"] == "synchronized_standby_slots"]
        assert (finding["subject"], finding["level"]) == ("gone", "critical")


def test_servers_that_cannot_be_checked(
    pair: FailoverPair, pg16: PostgresServer, rdsrepl: Program, checked: Callable[..., Result]
) -> None:
    def refused(primary: str, standby: str) -> Any:
        result = rdsrepl("-o", "json", "failover", "check", "--to", standby, dsn=primary)
        assert result.code in (2, 4, 5) and result.out == ""
        return result.error["message"]

    here, there = pair.primary.dsn(), pair.standby.dsn()
    assert "is a standby: name its primary" in refused(there, here)
    assert "same server" in refused(here, here)
    assert "not a standby" in refused(here, pg16.dsn()) or "standby of another" in refused(here, pg16.dsn())
    assert "--to" in refused(here, there.replace(str(pair.standby.port), "1"))
    assert "empty" in refused(here, "")
    assert "password" in refused(here, f"{there} password=secret")
    plugin = rdsrepl("failover", "check", "--to", here, "--nagios", dsn=there)
    assert plugin.code == 3 and "UNKNOWN" in plugin.out


# --- pairs of slots


@pytest.mark.parametrize(
    ("follower", "check"),
    [
        pytest.param({}, None, id="in-step"),
        pytest.param({"confirmed_flush_lsn": Lsn(9 << 30)}, "pair_behind", id="behind"),
        pytest.param({"confirmed_flush_lsn": Lsn(11 << 30)}, "pair_pending", id="pending"),
        pytest.param({"conflicting": True}, "pair_lost", id="lost"),
        pytest.param({"plugin": "wal2json"}, "pair_broken", id="another-plugin"),
        pytest.param({"active": True, "active_pid": 7}, None, id="its-consumer-reads-there"),
    ],
)
def test_a_slot_of_the_same_name_on_the_standby_protects(follower: dict[str, Any], check: str | None) -> None:
    primary, standby = (
        replace(with_slot(one, "orders", failover=None, synced=None, invalidation_reason=None), version=16)
        for one in ready_pair()
    )
    result = assess((primary, with_slot(standby, "orders", **follower)))
    assert [one.check for one in result.findings] == ([] if check is None else [check])
    (row,) = result.slots
    assert row.ready is (check in (None, "pair_behind"))
    assert row.protected_by == ("own" if "active" in follower else "pair")
    for finding in result.findings:
        assert wrong_commands(finding.remedy) == []
