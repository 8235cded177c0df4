"""The decisions of a switchover: what stops it, what it waits for, what it must prove."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.apply.local_commands import run_command
from rdsrepl.aws.instances import Instance
from rdsrepl.config import Aws, Target
from rdsrepl.errors import BadValue, Denied, Error, Refused, StepFailed, TimedOut
from rdsrepl.failover import readiness, switchover
from rdsrepl.failover.switchover import Marker
from rdsrepl.lsn import Lsn
from rdsrepl.plan import LocalCommand
from rdsrepl.postgres import connection, failover_servers, subscriptions, write_activity
from rdsrepl.postgres.subscriptions import Publisher
from rdsrepl.postgres.write_activity import WriteActivity, end_of_record
from rdsrepl.switchover import planner
from rdsrepl.switchover.probes import Progress
from tests.fixtures.postgres import Database
from tests.fixtures.readiness import CRITICAL, WARNINGS, ready_pair, with_slot, without_slot
from tests.fixtures.waiting import wait_until

AT = Lsn(10 << 30)
NOW = WriteActivity((), 100, AT)
SERVERS = planner.Servers(Target("old"), Target("new"), "old", "new")


@pytest.mark.parametrize("name", CRITICAL)
def test_each_critical_finding_alone_stops_it(name: str) -> None:
    primary, standby = CRITICAL[name](ready_pair())
    with pytest.raises(Refused, match="nothing was changed"):
        planner.planned(SERVERS, planner.Options(), readiness.assess(primary, (standby,)))


@pytest.mark.parametrize("name", WARNINGS)
def test_each_warning_is_shown_with_the_plan(name: str) -> None:
    primary, standby = WARNINGS[name](ready_pair())
    found = readiness.assess(primary, (standby,))
    plan = planner.planned(SERVERS, planner.Options(), found)
    assert any(found.findings[0].message in warning for warning in plan.warnings)


def test_nothing_is_promoted_before_it_is_proven() -> None:
    plan = planner.planned(SERVERS, planner.Options(fence="true"), readiness.assess(*_one(ready_pair())))
    steps = [step.summary for step in plan.steps]
    promotion = steps.index("promote new")
    assert steps.index("fence the writers") == 0
    assert steps.index("verify that nothing was written after the marker") == promotion - 1


def _one(pair: Any) -> Any:
    return pair[0], (pair[1],)


def test_a_ready_pair_waits_for_nothing() -> None:
    primary, standby = ready_pair()
    assert switchover.waiting_for(Marker(AT, 100), NOW, primary, standby) == switchover.Waiting()
    assert switchover.positions(primary, Marker(AT, 100)) == {"orders": AT}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p, s: (with_slot(p, "orders", confirmed_flush_lsn=Lsn(AT - 10)), s), "before the marker"),
        (lambda p, s: (p, with_slot(s, "orders", confirmed_flush_lsn=Lsn(AT - 10))), "its copy is at"),
        (lambda p, s: (p, with_slot(s, "orders", temporary=True)), "its copy is not complete"),
        (lambda p, s: (p, with_slot(s, "orders", wal_status="lost")), "its copy is invalidated"),
        (lambda p, s: (p, without_slot(s, "orders")), "the standby has no copy"),
        (lambda p, s: (p, replace(s, wal=replace(s.wal, lsn=Lsn(AT - 10)))), "has replayed"),
    ],
)
def test_it_waits_for_consumers_copies_and_the_replay(change: Any, reason: str) -> None:
    primary, standby = change(*ready_pair())
    (found,) = switchover.waiting_for(Marker(AT, 100), NOW, primary, standby).reasons
    assert reason in found


def test_a_slot_without_a_consumer_needs_only_its_copy_in_step() -> None:
    primary, standby = ready_pair()
    behind = {"active": False, "active_pid": None, "confirmed_flush_lsn": Lsn(AT - 10)}
    marker = Marker(AT, 100)
    inactive = with_slot(primary, "orders", **behind)
    assert switchover.waiting_for(marker, NOW, inactive, with_slot(standby, "orders", **behind)).reasons == ()
    assert "its copy is at" in switchover.waiting_for(marker, NOW, inactive, standby).reasons[0], "a gap"


def test_a_transaction_after_the_marker_moves_it() -> None:
    marker = switchover.moved(None, NOW)
    assert switchover.moved(marker, NOW) is marker
    assert switchover.moved(marker, replace(NOW, next_xid=101, lsn=Lsn(AT + 8))) == Marker(Lsn(AT + 8), 101)
    running = switchover.waiting_for(marker, replace(NOW, running=("PID 7",)), *ready_pair())
    assert running.reasons == ("still writing: PID 7",)
    prepared = replace(NOW, prepared=(7,))
    held = switchover.moved(None, prepared)
    assert switchover.moved(held, prepared) is held, "it is on the standby, too"
    assert switchover.moved(held, NOW) == marker


def test_a_promotion_by_another_ends_the_wait() -> None:
    primary, standby = ready_pair()
    promoted = replace(standby, in_recovery=False)
    assert "promoted meanwhile" in str(switchover.waiting_for(Marker(AT, 1), NOW, primary, promoted).failed)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({}, None),
        ({"confirmed_flush_lsn": Lsn(AT - 1)}, "changes come again"),
        ({"wal_status": "lost"}, "is invalidated"),
        ({"temporary": True}, "does not exist"),
    ],
)
def test_the_proof_after_the_promotion(columns: dict[str, Any], problem: str | None) -> None:
    promoted = replace(with_slot(ready_pair()[1], "orders", **columns), in_recovery=False)
    failed = switchover.unproven({"orders": AT}, promoted).failed
    assert failed is None if problem is None else problem in str(failed)
    assert "does not exist" in str(switchover.unproven({"gone": AT}, promoted).failed)


def test_what_an_unplanned_promotion_loses() -> None:
    primary, standby = ready_pair()
    ahead = with_slot(replace(primary, wal=replace(primary.wal, lsn=Lsn(AT + 50))), "orders")
    found = switchover.unplanned(standby, ahead)
    assert (found.missing_bytes, found.slots[0].usable, found.slots[0].repeat_bytes) == (50, True, 0)
    alone = switchover.unplanned(with_slot(standby, "orders", temporary=True), None)
    assert (alone.missing_bytes, alone.slots[0].usable) == (None, False)


def replica_of(source: str) -> Instance:
    return Instance("orders-replica", "postgres", "18.4", "available", "db.r6g.large", replica_of=source)


@pytest.mark.parametrize("source", ["orders", "arn:aws:rds:eu-west-1:123456789012:db:orders"])
def test_a_replica_of_the_lost_instance_is_promoted(source: str) -> None:
    servers = replace(SERVERS, old=Target("old", aws=Aws(instance="Orders")), instance=replica_of(source))
    assert planner.unplanned(servers, planner.Options(), lost=(), slots={}, is_compared=False)


def test_a_replica_of_another_instance_is_not_promoted() -> None:
    """The primary does not answer, so that the servers themselves cannot be compared."""
    servers = replace(SERVERS, old=Target("old", aws=Aws(instance="orders")), instance=replica_of("billing"))
    with pytest.raises(Refused, match="new is a read replica of billing, not of orders") as refused:
        planner.unplanned(servers, planner.Options(), lost=(), slots={}, is_compared=False)
    assert refused.value.hint is not None and "instance promote orders-replica" in refused.value.hint


@pytest.mark.parametrize(
    ("host", "port", "warns"), [("r.example", "5432", False), ("R.example", "5432", False), ("127.0.0.1", "6432", True)]
)
def test_checks_at_another_address_than_the_instance_are_named(host: str, port: str, warns: bool) -> None:
    """A target can have a host of its own beside the instance: a tunnel, or a mistake."""
    instance = replace(replica_of("orders"), endpoint="r.example", port=5432)
    new = Target("new", keywords={"host": host, "port": port})
    plan = planner.unplanned(
        replace(SERVERS, new=new, instance=instance), planner.Options(), lost=(), slots={}, is_compared=True
    )
    assert any("make sure that this is the same server" in one for one in plan.warnings) is warns


def test_a_replica_of_rds_must_be_named_as_an_instance() -> None:
    """RDS does not let pg_promote be called: the plan would stop after the writers were stopped."""
    servers = replace(SERVERS, is_managed=True)
    with pytest.raises(BadValue, match="RDS runs new"):
        planner.planned(servers, planner.Options(), readiness.assess(*_one(ready_pair())))
    with pytest.raises(BadValue, match="RDS runs new"):
        planner.unplanned(servers, planner.Options(), lost=(), slots={}, is_compared=True)


@pytest.mark.parametrize("is_managed", [False, True])
def test_a_write_to_the_old_primary_during_the_promotion(db18: Database, is_managed: bool) -> None:
    """RDS writes every five minutes to a database of its own; elsewhere a write is a client's."""
    db18.run("CREATE TABLE t (id int)")
    progress = Progress(db18.target, db18.target, ("old", "new"), is_managed=is_managed)
    progress.reached(db18.target)
    db18.run("INSERT INTO t VALUES (1)")
    condition = progress.unwritten_since(db18.target)
    assert condition.met is is_managed
    assert ("failover diff" in condition.facts.get("old primary", "")) is is_managed


def test_what_to_do_after_a_promotion_by_another(db18: Database) -> None:
    """A second operator was faster: what is left is to be done, and it is wrong that nothing was promoted."""
    primary = db18.target
    ended = Progress(primary, primary, ("old", "new")).reached(primary)
    assert ended.failed is not None and "promoted meanwhile" in ended.failed
    assert ended.remedy is not None and "does what is left" in ended.remedy


def test_a_role_that_may_not_promote_is_refused_before_anything(db18: Database) -> None:
    role = f"no_promote_{db18.name}"
    db18.run(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    target = db18.server.target(user=role, dbname=db18.name)
    target = replace(target, keywords={**target.keywords, "password": "x"})
    with connection.open(target) as plain, connection.open(db18.target) as administrator:
        assert failover_servers.read(plain, "x").may_promote is False
        assert failover_servers.read(administrator, "x").may_promote is True
    with pytest.raises(Denied, match="this role may not promote new"):
        planner.planned(replace(SERVERS, may_promote=False), planner.Options(), readiness.assess(*_one(ready_pair())))


# --- who writes


def test_a_running_writer_is_found_without_a_privilege(database: Database) -> None:
    role = f"plain_{database.name}"
    database.run("CREATE TABLE t (id int)", f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    target = database.server.target(user=role, dbname=database.name)
    target = replace(target, keywords={**target.keywords, "password": "x"})
    with connection.open(target) as plain, database.connect() as writer:
        before = write_activity.read(plain)
        assert not any(f"PID {writer.info.backend_pid}" in one for one in before.running)
        writer.execute("BEGIN")
        writer.execute("INSERT INTO t VALUES (1)")
        during = write_activity.read(plain)
        assert any(f"PID {writer.info.backend_pid}" in one for one in during.running)
        writer.execute("COMMIT")
        after = write_activity.read(plain)
    assert after.next_xid > during.next_xid and after.lsn > before.lsn


def test_the_end_of_a_prepared_transaction_is_a_write(database: Database) -> None:
    """It moves no limit: the transaction's number is older than others that have ended."""
    database.run("CREATE TABLE t (id int)")
    with connection.open(database.target) as conn:
        database.run("BEGIN; INSERT INTO t VALUES (1)", f"PREPARE TRANSACTION '{database.name}'")
        try:
            database.run("INSERT INTO t VALUES (2)")
            before = write_activity.read(conn)
            assert switchover.moved(None, before).written_after(write_activity.read(conn)) is None
        finally:
            database.run(f"COMMIT PREPARED '{database.name}'")
        after = write_activity.read(conn)
    assert after.has_ended_since(before.next_xid, before.prepared)
    assert "a prepared one ended" in str(switchover.moved(None, before).written_after(after))


@pytest.mark.parametrize(("lsn", "end"), [(8192 + 24, 8192), (40, 0), (8192 + 48, 8192 + 48), (500, 500)])
def test_the_header_of_an_empty_page_is_not_awaited(lsn: int, end: int) -> None:
    assert end_of_record(lsn) == end


# --- the user's command


def command(text: str, seconds: float = 30) -> LocalCommand:
    return LocalCommand("fence the writers", text, seconds, effect="change")


def child(mark: Path, first: str = "") -> str:
    """Return a command that starts a child, which writes its PID, and waits for it."""
    return f"sh -c '{first}echo $$ > {mark}.new; mv {mark}.new {mark}; exec sleep 300' & wait"


def is_running(mark: Path) -> bool:
    status = Path(f"/proc/{mark.read_text().strip()}/status")
    try:
        return "zombie" not in status.read_text()
    except OSError:
        return False


@pytest.mark.parametrize("first", ["", 'trap "" TERM; '], ids=["", "ignores SIGTERM"])
def test_a_command_that_does_not_end_is_ended_with_its_children(tmp_path: Path, first: str) -> None:
    mark = tmp_path / "pid"
    with pytest.raises(TimedOut, match="it was ended"):
        run_command(
            # So long that the child runs before, also where the machine is busy.
            command(child(mark, first), 4.0),
            lambda *given: wait_until(mark.exists, "the child runs"),
            end_seconds=0.5,
        )
    assert not is_running(mark)


def test_ctrl_c_ends_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    def interrupt(*given: object) -> None:
        wait_until(mark.exists, "the child runs")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command(command(child(mark, 'trap "" TERM; ')), interrupt, end_seconds=0.5)
    assert not is_running(mark)


@pytest.mark.parametrize(("text", "how"), [("exit 7", "code 7"), (f"kill -{int(signal.SIGKILL)} $$", "signal 9")])
def test_a_command_that_fails_says_how(text: str, how: str) -> None:
    with pytest.raises(StepFailed, match=how):
        run_command(command(text), lambda *given: None)


def test_a_command_gets_no_input() -> None:
    words = "from rdsrepl.apply.local_commands import run_command; from rdsrepl.plan import LocalCommand; "
    words += "run_command(LocalCommand('x', 'read a && exit 1; exit 0', 9, effect='change'), lambda *g: None)"
    assert subprocess.run([sys.executable, "-c", words], input="y\n", text=True, check=False).returncode == 0


# --- subscriptions


def test_a_subscription_follows_with_its_login_and_its_password_is_not_shown() -> None:
    one = Publisher("s'\"", "app", "orders", "host=old hostaddr=10.0.0.1 port=1 user=u password='geheim x' dbname=d")
    moved = subscriptions.at(str(one.conninfo), "new", "5432")
    assert subscriptions.address(moved) == ("new", "5432")
    assert "hostaddr" not in moved and "geheim x" in moved and "user=u" in moved
    step = subscriptions.repoint(one, moved, Target("subscriber"))
    assert "geheim" not in step.text and "geheim" in step.sql.as_string(None)
    assert step.sql.as_string(None).startswith('ALTER SUBSCRIPTION "s\'""" CONNECTION \'')
    assert "geheim" not in repr(one)


def test_errors_keep_their_remedies() -> None:
    primary, standby = CRITICAL[next(iter(CRITICAL))](ready_pair())
    with pytest.raises(Error) as failure:
        planner.planned(SERVERS, planner.Options(), readiness.assess(primary, (standby,)))
    assert failure.value.hint
