"""Eventual consistency: queued modifications, lagging describe calls, temporary refusals, reboots without a status."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rdsrepl import apply, errors
from rdsrepl.aws import instances, pending_modifications, reboots, session
from rdsrepl.config import Target
from rdsrepl.plan import AwsCall, Condition, Effect, Plan, Wait
from rdsrepl.sandbox.api.consistency import Consistency
from tests.fixtures.program import Result
from tests.fixtures.sandbox import Cloud, FakeClock, apply_with_clock

pytestmark = pytest.mark.usefixtures("delayed")

BUSY = "Instance cannot currently reboot due to an in-progress management operation."


@pytest.fixture
def name(cloud: Cloud) -> str:
    """A free name."""
    return f"k-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def tidy(cloud: Cloud) -> Iterator[Callable[..., None]]:
    """Register commands that run after the test, the last one first."""
    later: list[tuple[str, ...]] = []
    yield lambda *words: later.append(words)
    cloud.faults()
    cloud.delays()
    for words in reversed(later):
        done = cloud(*words)
        assert done.code == 0, done.err


def ok(done: Result) -> Result:
    assert done.code == 0, done.err
    return done


def fault(operation: str, code: str, message: str, times: int | None = 1) -> dict[str, Any]:
    return {"service": "rds", "operation": operation, "code": code, "status": 400, "message": message, "times": times}


def groups(cloud: Cloud) -> dict[str, str]:
    members = cloud("cluster", "show", "sandbox", "-o", "json").json["members"]
    return {member["instance_id"]: member["parameter_group_status"] for member in members}


def skipped(done: Result) -> list[str]:
    return [line for line in done.err.splitlines() if line.endswith("not needed")]


# The life of an instance.


def test_the_life_of_an_instance(
    cloud: Cloud, name: str, tidy: Callable[..., None], own_password: tuple[str, str]
) -> None:
    group, other, replica = f"{name}-g", f"{name}-o", f"{name}-r"
    for one, value in ((group, "40"), (other, "50")):
        words = ("--family", "postgres15", "--kind", "instance", "--set", f"max_wal_senders={value}", "--yes")
        ok(cloud("param-group", "create", one, *words))
        tidy("param-group", "delete", one, "--yes")
    base = ("--class", "db.r6g.large", "--yes")
    # The instance is not found and the call is refused for a moment: both are retried.
    cloud.faults(fault("CreateDBInstance", "InvalidDBInstanceState", BUSY, 2))
    made = ("--storage", "20", "--engine-version", "15", "--multi-az", "--param-group", group)
    ok(cloud("instance", "create", name, *base, *made, *own_password))
    tidy("instance", "delete", name, "--skip-final-snapshot", "--confirm", name)
    ok(cloud("slot", "create", "kept", "--instance", name, "--yes"))

    # AWS refuses a group at the creation of a replica; it is attached afterwards.
    done = ok(cloud("instance", "create", replica, *base, "--replica-of", name, "--param-group", other, "-o", "json"))
    tidy("instance", "delete", replica, "--skip-final-snapshot", "--confirm", replica)
    calls = [step["operation"] for step in done.json["steps"] if "operation" in step]
    assert calls == ["CreateDBInstanceReadReplica", "ModifyDBInstance", "RebootDBInstance"]
    shown = cloud("instance", "show", replica, "-o", "json").json["instance"]
    assert (shown["parameter_group"], shown["parameter_group_status"]) == (other, "in-sync")
    assert show(cloud, replica, "max_wal_senders") == "50", "and it is in force"
    # The replica is reached with the login of its source.
    refused = cloud("slot", "pairs", "--instance", name, "--with", replica)
    assert refused.code == 4 and "is PostgreSQL 15: a standby has logical slots since" in refused.err, refused.err

    # Queued modifications are shown, stay queued, and block a reboot.
    cloud.delays()
    cloud.client("rds").modify_db_instance(DBInstanceIdentifier=replica, DBInstanceClass="db.r6g.xlarge")
    cloud.client("rds").get_waiter("db_instance_available").wait(
        DBInstanceIdentifier=replica, WaiterConfig={"Delay": 0.1, "MaxAttempts": 100}
    )
    shown = cloud("instance", "show", replica, "-o", "json").json["instance"]
    assert shown["pending_modifications"] == {"DBInstanceClass": "db.r6g.xlarge"}
    assert "DBInstanceClass db.r6g.xlarge" in cloud("instance", "show", replica).out
    for words in (("param-group", "attach", group, "--instance", replica, "--reboot"), ("instance", "reboot", replica)):
        refused = cloud(*words, "--yes")
        assert refused.code == 4 and "DBInstanceClass db.r6g.xlarge" in refused.err, refused.err
        assert f"aws rds modify-db-instance --db-instance-identifier {replica} --apply-immediately" in refused.err
        assert "--with-pending" in refused.err
    attached = ok(cloud("param-group", "attach", group, "--instance", replica, "--yes", "-o", "json"))
    assert any("stay queued" in warning for warning in attached.json["warnings"])
    shown = cloud("instance", "show", replica, "-o", "json").json["instance"]
    assert (shown["instance_class"], shown["parameter_group"]) == ("db.r6g.large", group)
    assert shown["pending_modifications"] == {"DBInstanceClass": "db.r6g.xlarge"}

    # A failover applies no pending parameters, and the slots exist before and after.
    cloud.delays(lag_seconds=0.4, busy_seconds=0.4)
    ok(cloud("param-group", "set", group, "max_wal_senders=45", "--yes"))
    cloud.faults(fault("RebootDBInstance", "InvalidDBInstanceState", BUSY, 2))
    failed_over = ok(cloud("instance", "failover", name, "--yes", "--timeout", "30s", "-o", "json"))
    assert any("stay pending" in warning for warning in failed_over.json["warnings"])
    *_, back, proof = failed_over.json["steps"]
    assert back["returned"]["restarted"].startswith("the server started at ")
    assert set(proof["returned"]) == {"kept"}
    assert "before: slot kept at " in failed_over.err and "after: slot kept at " in failed_over.err
    assert "retrying: RebootDBInstance: " + BUSY.rstrip(".") in failed_over.err or "done: reboot" in failed_over.err
    assert cloud("instance", "show", name, "-o", "json").json["instance"]["parameter_group_status"] == "pending-reboot"
    assert show(cloud, name, "max_wal_senders") == "40"
    # A permanent refusal is not retried.
    cloud.faults(fault("RebootDBInstance", "InvalidDBInstanceState", "Instance is in state stopped", None))
    stopped = cloud("instance", "reboot", name, "--yes")
    assert stopped.code == 4 and "stopped" in stopped.err and "retrying" not in stopped.err
    cloud.faults()
    ok(cloud("instance", "reboot", name, "--yes", "--timeout", "30s"))
    assert show(cloud, name, "max_wal_senders") == "45"
    # Calls on a group that just lost its last user, or was just changed, are refused for a moment.
    ok(cloud("param-group", "reset", group, "max_wal_senders", "--yes"))
    ok(cloud("param-group", "reset", group, "--all", "--yes"))
    ok(cloud("slot", "drop", "kept", "--instance", name, "--yes"))
    # A promotion is refused for a moment; its source goes on running, and a second one has nothing to do.
    cloud.faults(fault("PromoteReadReplica", "InvalidDBInstanceState", BUSY, 2))
    promote = ("instance", "promote", replica, "--backup-retention", "3", "--yes", "-o", "json")
    assert cloud(*promote[:-3], "--check").code == 7
    promoted = ok(cloud(*promote, "--timeout", "60s"))
    assert f"{name} goes on running" in promoted.json["warnings"][0]
    calls = [step["parameters"] for step in promoted.json["steps"] if "operation" in step]
    assert calls == [{"DBInstanceIdentifier": replica, "BackupRetentionPeriod": 3}]
    shown = cloud("instance", "show", replica, "-o", "json").json["instance"]
    assert (shown["replica_of"], shown["status"]) == (None, "available")
    assert cloud(*promote).json["status"] == "unchanged"
    members = cloud("cluster", "show", "sandbox", "-o", "json").json["members"]
    writer = next(one["instance_id"] for one in members if one["role"] == "writer")
    member = cloud("instance", "promote", writer, "--yes")
    assert member.code == 4 and "cluster failover sandbox" in member.err
    assert cloud("instance", "promote", replica, "--backup-window", "3-4").code == 2


def show(cloud: Cloud, instance: str, parameter: str) -> str:
    shown = ok(cloud("psql", "--instance", instance, "--", "-d", "postgres", "-Atc", f"SHOW {parameter}"))
    return shown.out.strip()


# The members of a cluster.


def test_the_members_of_a_cluster(cloud: Cloud, name: str, tidy: Callable[..., None]) -> None:
    """Some members are in-sync, some only report it; each is rebooted and verified, one at a time."""
    cluster = ("--cluster", "sandbox", "--reboot", "--yes", "--timeout", "20s", "-o", "json")
    shown = cloud("cluster", "show", "sandbox", "-o", "json").json
    default = shown["cluster"]["parameter_group"]
    family, members = default.removeprefix("default."), [one["instance_id"] for one in shown["members"]]
    words = ("--family", family, "--kind", "cluster", "--yes")
    for group in (f"{name}-d", f"{name}-s"):
        made = ("param-group", "create", group, "--description", group, *words)
        ok(cloud(*made))
        tidy("param-group", "delete", group, "--yes")
    tidy("-t", "sandbox", "param-group", "attach", default, *cluster)
    ok(cloud("param-group", "reset", f"{name}-d", "--all", "--yes"))
    ok(cloud("param-group", "set", f"{name}-d", "wal_sender_timeout=20000", "--yes"))

    done = ok(cloud("-t", "sandbox", "param-group", "attach", f"{name}-d", *cluster))
    assert set(groups(cloud).values()) == {"in-sync"}, "dynamic differences are applied at once"
    assert len(skipped(done)) == len(members), "and nothing is rebooted for them"

    cloud.delays(lag_seconds=0.4, busy_seconds=0.4, hide_pending=True)
    done = ok(cloud("-t", "sandbox", "param-group", "attach", f"{name}-s", *cluster))
    assert skipped(done) == [], "the servers themselves say that they need it"
    assert done.json["steps"][-1]["returned"]["wal_level"] == "logical"
    assert one_at_a_time(cloud, members) >= len(members)
    again = ok(cloud("-t", "sandbox", "param-group", "attach", f"{name}-s", *cluster))
    assert again.json["status"] == "unchanged"
    ok(cloud("param-group", "set", f"{name}-s", "max_wal_senders=60", "--yes"))
    assert set(groups(cloud).values()) == {"in-sync"}
    ok(cloud("-t", "sandbox", "param-group", "attach", f"{name}-s", *cluster))
    dsn = f"host=127.0.0.1 port={cloud.report['port']} dbname=app user=dbadmin"
    words = ("--dsn", dsn, "psql", "--", "-Atc", "SHOW max_wal_senders")
    assert ok(cloud(*words, env={"PGPASSFILE": cloud.report["passfile"]})).out == "60\n"

    # Without SQL access, the events of RDS are the proof.
    cloud.delays(lag_seconds=0.6, busy_seconds=0.4)
    done = ok(cloud("cluster", "reboot", "sandbox", "--yes", "--timeout", "20s", "-o", "json"))
    proofs = [step["returned"]["restarted"] for step in done.json["steps"] if "operation" not in step]
    assert len(proofs) == len(members) and all(re.match(r"RDS event .*DB instance restarted", one) for one in proofs)
    one_at_a_time(cloud, members)


def one_at_a_time(cloud: Cloud, members: list[str]) -> int:
    """Check with the events of RDS that no member was shut down while another was down; return how many were."""
    rds = cloud.client("rds")
    events = [
        (event["Date"], event["Message"], member)
        for member in members
        for event in rds.describe_events(SourceType="db-instance", SourceIdentifier=member)["Events"]
        if event["Message"] in ("DB instance shutdown", "DB instance restarted")
    ]
    down: set[str] = set()
    for _, message, member in sorted(events, key=lambda event: (event[0], event[1].endswith("shutdown"))):
        if message == "DB instance shutdown":
            assert down == set(), "two at once"
            down.add(member)
        else:
            down.discard(member)
    return len(events) // 2


# A new object is not found yet; a deletion in progress is not repeated.


def test_a_deletion_that_is_run_again_converges(cloud: Cloud, name: str) -> None:
    words = ("--engine", "aurora-postgresql", "--class", "db.r6g.large", "--yes", "-o", "json")
    ok(cloud("cluster", "create", name, *words))
    delete = ("cluster", "delete", name, "--skip-final-snapshot", "--confirm", name, "-o", "json")
    # The plan still contains the member that is being deleted.
    cloud.delays(lag_seconds=60.0)
    cloud.client("rds").delete_db_instance(DBInstanceIdentifier=f"{name}-2")
    late = cloud(*delete, "--timeout", "0.01s")
    assert late.code == 6, late.err
    assert late.error["done"][-2:] == [f"delete instance {name}-1", f"delete cluster {name}"]
    cloud.delays()
    again = cloud(*delete)
    assert again.code in (0, 3), again.err  # 3: it was gone already
    if again.code == 0:
        assert [step for step in again.json["steps"] if "operation" in step] == []
    assert cloud("cluster", "show", name).code == 3


# The mechanisms alone, with a clock that only advances when the code sleeps.


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Turn off the retries of botocore, which use another clock."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")
    session._client.cache_clear()
    yield
    session._client.cache_clear()


def call(operation: str, **parameters: str) -> AwsCall:
    effect: Effect = "create" if operation.startswith("Create") else "drop"
    return AwsCall(operation, "rds", operation, parameters, effect=effect)


@pytest.mark.parametrize(
    ("code", "message", "passes"),
    [
        ("InvalidDBInstanceState", BUSY, True),
        ("InvalidDBInstanceStateFault", "Database instance is not in available state.", True),
        ("InvalidDBClusterStateFault", "Db Cluster is not available for modification with status backing-up", True),
        ("InvalidDBParameterGroupState", "Parameter group x has pending changes", True),
        ("InvalidDBParameterGroupState", "One or more database instances are still members of this group", True),
        ("InvalidDBInstanceState", "Instance x is in state stopped", False),
        ("InvalidDBInstanceState", "Instance x is incompatible-parameters", False),
        ("InvalidDBInstanceState", "Automated backups are not enabled for this database instance: x", False),
        ("InvalidDBClusterStateFault", "Cluster x is in inaccessible-encryption-credentials-recoverable state", False),
        ("InvalidParameterValue", "in-progress management operation", False),
        ("AccessDenied", "not authorized", False),
        ("DBInstanceNotFound", "DBInstance x not found", False),
    ],
)
def test_temporary_refusals(cloud: Cloud, code: str, message: str, passes: bool) -> None:
    clock = FakeClock()
    cloud.faults(fault("RebootDBCluster", code, message, None))
    with pytest.raises(errors.Error) as caught:
        apply_with_clock(Plan("reboot", (call("RebootDBCluster", DBClusterIdentifier="sandbox"),)), cloud, clock)
    assert caught.value.aws_code == code
    assert (clock.now >= 600) is passes and clock.now < 620, "minutes, or at once"
    assert ("refused for 10m" in caught.value.message) is passes


def test_a_status_that_needs_a_repair_ends_the_retries(cloud: Cloud) -> None:
    cloud.delays(statuses={"sandbox": "stopped"})
    clock = FakeClock()
    cloud.faults(fault("RebootDBCluster", "InvalidDBClusterStateFault", "not now", None))
    with pytest.raises(errors.NotAvailable, match="sandbox is stopped, which needs a repair"):
        apply_with_clock(Plan("reboot", (call("RebootDBCluster", DBClusterIdentifier="sandbox"),)), cloud, clock)
    assert clock.now == 0


def test_an_object_created_by_the_plan_is_not_found_yet(cloud: Cloud, name: str) -> None:
    made = call(
        "CreateDBParameterGroup", DBParameterGroupName=name, DBParameterGroupFamily="postgres16", Description="x"
    )
    delete = call("DeleteDBParameterGroup", DBParameterGroupName=name)
    modify = AwsCall(
        "reset",
        "rds",
        "ResetDBParameterGroup",
        {"DBParameterGroupName": name, "ResetAllParameters": True},
        effect="change",
    )
    cloud.faults(fault("ResetDBParameterGroup", "DBParameterGroupNotFound", "not found", 3))
    outcomes, states_seen = apply_with_clock(Plan("both", (made, modify)), cloud, FakeClock())
    assert len(outcomes) == 2 and len([one for one in states_seen if "retrying" in one]) == 3
    cloud.delays()
    apply_with_clock(Plan("delete", (delete,)), cloud, FakeClock())
    with pytest.raises(errors.NotFound):
        apply_with_clock(Plan("alone", (modify,)), cloud, FakeClock())
    outcomes, _ = apply_with_clock(Plan("alone", (delete,)), cloud, FakeClock())
    assert outcomes[0].skipped, "an object that does not exist is not deleted"


@pytest.mark.usefixtures("one_attempt")
def test_a_wait_ignores_not_found_and_throttled_polls(cloud: Cloud) -> None:
    def probe(where: Target) -> Condition:
        return Condition(True, instances.get(where.aws, "sandbox-instance-1").status)

    wait = Wait("wait", probe, 3600, confirmations=3)
    cloud.faults(
        fault("DescribeDBInstances", "DBInstanceNotFound", "not found", 4),
        fault("DescribeDBInstances", "Throttling", "Rate exceeded", 4),
    )
    clock = FakeClock()
    _, states_seen = apply_with_clock(Plan("wait", (wait,)), cloud, clock)
    assert states_seen.count("not found yet") == 4 and any("Rate exceeded" in one for one in states_seen)
    assert states_seen[-2:] == ["available"] * 2, "three polls in a row"
    throttled = call("DescribeDBParameterGroups")
    cloud.faults(fault("DescribeDBParameterGroups", "Throttling", "Rate exceeded", 3))
    _, states_seen = apply_with_clock(Plan("call", (throttled,)), cloud, FakeClock())
    assert len(states_seen) == 3, "a throttled call was not executed"
    cloud.faults(fault("DescribeDBInstances", "DBInstanceNotFound", "not found", None))
    clock = FakeClock()
    with pytest.raises(errors.NotFound):
        apply_with_clock(Plan("wait", (wait,)), cloud, clock)
    assert 300 <= clock.now < 320


def test_a_condition_must_hold_in_consecutive_polls(cloud: Cloud) -> None:
    polls = iter([True, True, False, True, True, True])
    clock = FakeClock()
    outcomes, states_seen = apply_with_clock(
        Plan("wait", (Wait("wait", lambda where: Condition(next(polls), "so"), 60, confirmations=3),)), cloud, clock
    )
    assert len(outcomes) == 1 and next(polls, None) is None and len(states_seen) == 5


def test_the_poll_interval_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDSREPL_POLL_INTERVAL", "500ms")
    pauses = apply.RetryTiming.from_environment().pauses()
    assert max(next(pauses) for _ in range(20)) == 0.5
    for text in ("soon", "0s", "-1s"):
        monkeypatch.setenv("RDSREPL_POLL_INTERVAL", text)
        with pytest.raises(errors.UsageError, match="RDSREPL_POLL_INTERVAL"):
            apply.RetryTiming.from_environment()


def test_all_queued_modifications_are_read_and_no_password_is_shown() -> None:
    given = {
        "EngineVersion": "17.2",
        "MultiAZ": True,
        "MasterUserPassword": "****",
        "SomethingNew": {"a": [1]},
        "Iops": None,
    }
    found = pending_modifications.parse(given)
    assert found == {
        "EngineVersion": "17.2",
        "MultiAZ": "true",
        "MasterUserPassword": "********",
        "SomethingNew": '{"a": [1]}',
    }
    assert pending_modifications.parse({}) == pending_modifications.parse(None) == {}
    assert pending_modifications.check_reboot({"instance a": {}}, allowed=False) == ()
    with pytest.raises(errors.Refused, match=r"cluster c: EngineVersion 17\.2") as caught:
        pending_modifications.check_reboot({"instance a": {}, "cluster c": found}, allowed=False)
    assert "aws rds modify-db-cluster --db-cluster-identifier c --apply-immediately" in str(caught.value.hint)
    (warning,) = pending_modifications.check_reboot({"cluster c": found}, allowed=True)
    assert "EngineVersion 17.2" in warning


def test_a_lost_response_does_not_cause_a_second_reboot(cloud: Cloud) -> None:
    """The first attempt was executed and its response lost; the refusal of the next one is not final."""
    started = iter(["before", "after"])

    class Restarted:
        def started(self, target: Target) -> str:  # noqa: ARG002 - the protocol's
            return next(started)

        def needs_restart(self, target: Target) -> bool:  # noqa: ARG002 - the protocol's
            return False

    cloud.faults(fault("RebootDBInstance", "InvalidDBInstanceState", BUSY, 1))
    steps = reboots.steps("sandbox-instance-2", timeout_seconds=60, server=Restarted())
    outcomes, states_seen = apply_with_clock(Plan("reboot", steps[:1]), cloud, FakeClock())
    assert outcomes[0].skipped and len(states_seen) == 1


def test_the_sandbox_delays_changes_and_new_objects() -> None:
    clock = FakeClock()
    sandbox = Consistency(lambda: clock.now)
    sandbox.configure({"lag_seconds": 5, "not_found_seconds": 9, "busy_seconds": 2})
    member = {"DBClusterIdentifier": "c", "DBInstanceStatus": "available"}
    before: dict[Any, Any] = {("cluster", "c"): {"Status": "available"}, ("instance", "m"): member}
    after = {**before, ("instance", "m"): {**member, "DBInstanceStatus": "rebooting"}, ("instance", "n"): member}
    sandbox.changed(before, after)
    sandbox.mark_busy("instance", ["m"])
    assert sandbox.shown("instance", "m", after["instance", "m"]) == member and sandbox.is_busy("instance", "m")
    assert sandbox.shown("instance", "n", member) is None and sandbox.known("instance") == {"m", "n"}
    assert sandbox.shown("cluster", "c", {"Status": "rebooting"}) == {"Status": "available"}
    clock.now = 6
    assert sandbox.shown("instance", "m", after["instance", "m"]) == after["instance", "m"]
    assert sandbox.shown("instance", "n", member) is None and not sandbox.is_busy("instance", "m")
    clock.now = 10
    assert sandbox.shown("instance", "n", member) == member
    for wrong in ({"lag": 1}, {"lag_seconds": -1}, {"lag_seconds": True}, {"hide_pending": 1}, {"busy_seconds": "1"}):
        with pytest.raises(ValueError, match=r"switch|seconds|true or false"):
            sandbox.configure(wrong)
