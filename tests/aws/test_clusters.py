"""``cluster`` and ``instance`` on the sandbox: output, refusals, waits, and confirmations."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.fixtures.sandbox import Cloud
from tests.fixtures.waiting import wait_until

pytestmark = pytest.mark.usefixtures("delayed")


@pytest.fixture
def name(cloud: Cloud) -> Iterator[str]:
    """A free name; an instance or cluster with this name is deleted after the test."""
    made = f"c-{uuid.uuid4().hex[:8]}"
    yield made
    cloud.faults()
    for kind in ("instance", "cluster"):
        if cloud(kind, "show", made).code == 0:
            deleted = cloud(kind, "delete", made, "--skip-final-snapshot", "--confirm", made)
            assert deleted.code == 0, deleted.err


def test_list_and_show(cloud: Cloud) -> None:
    rows = {row["cluster_id"]: row for row in cloud("cluster", "list", "-o", "json").json}
    assert rows["sandbox"]["kind"] == "multi_az_cluster" and rows["sandbox"]["status"] == "available"
    shown = cloud("cluster", "show", "sandbox", "-o", "json").json
    assert [member["role"] for member in shown["members"]] == ["writer", "reader"]
    assert shown["logical_replication"]["supported"] is True
    text = cloud("cluster", "show", "sandbox").out
    for word in ("writer endpoint", "parameter group", "sandbox-instance-1", "in-sync", "logical replication"):
        assert word in text
    members = {row["instance_id"] for row in cloud("instance", "list", "-o", "json").json}
    assert {"sandbox-instance-1", "sandbox-instance-2"} <= members
    instance = cloud("instance", "show", "sandbox-instance-1").out
    assert "cluster sandbox" in instance and "default.postgres" in instance


@pytest.mark.parametrize(
    ("words", "code", "expected_text"),
    [
        (("cluster", "create", "x", "--class", "db.r6gd.large"), 2, "--storage"),
        (("cluster", "create", "x", "--class", "large", "--storage", "100"), 2, "db.r6gd.large"),
        (("cluster", "create", "x--y", "--class", "db.r6gd.large", "--storage", "100"), 2, "hyphen"),
        (("cluster", "create", "x" * 53, "--class", "db.r6gd.large", "--storage", "100"), 2, "52"),
        (("cluster", "create", "x", "--class", "db.r6gd.large", "--engine", "aurora-postgresql", "--storage", "9"), 2,
         "omit --storage"),
        (("cluster", "create", "x", "--class", "db.r6gd.large", "--storage", "100", "--engine-version", "99"), 2,
         "Cannot find version"),
        (("cluster", "create", "x", "--class", "db.r6gd.large", "--storage", "100", "--param-group", "nope"), 3,
         "param-group list"),
        (("cluster", "create", "x", "--class", "db.r6gd.large", "--storage", "100", "--subnet-group", "nope"), 3,
         "--region"),
        (("cluster", "create", "x", "--class", "db.r6gd.large", "--storage", "100", "--master-secret", "nope"), 3, ""),
        (("cluster", "create", "sandbox", "--class", "db.r6gd.large", "--storage", "100"), 4, "another name"),
        (("cluster", "failover", "nope"), 3, "cluster list"),
        (("cluster", "failover", "sandbox", "--to", "nope"), 3, "sandbox-instance-2"),
        (("cluster", "failover", "sandbox", "--to", "sandbox-instance-1"), 4, "already"),
        (("cluster", "reboot", "nope"), 3, "cluster list"),
        (("cluster", "delete", "sandbox"), 2, "--final-snapshot"),
        (("cluster", "delete", "sandbox", "--final-snapshot", "a", "--skip-final-snapshot"), 2, "--final-snapshot"),
        (("cluster", "delete", "sandbox", "--final-snapshot", "a_b"), 2, "hyphens"),
        (("cluster", "delete", "nope", "--skip-final-snapshot"), 3, "cluster list"),
        (("instance", "create", "x", "--class", "db.r6g.large"), 2, "--storage"),
        (("instance", "create", "x", "--class", "db.r6g.large", "--replica-of", "a", "--in-cluster", "b"), 2,
         "cannot be used together"),
        (("instance", "create", "x", "--class", "db.r6g.large", "--replica-of", "a", "--dbname", "b"), 2, "source"),
        (("instance", "create", "x", "--class", "db.r6g.large", "--replica-of", "nope"), 3, "instance list"),
        (("instance", "create", "x", "--class", "db.r6g.large", "--in-cluster", "b", "--multi-az"), 2, "cluster's"),
        (("instance", "failover", "sandbox-instance-1"), 4, "cluster failover sandbox"),
        (("instance", "reboot", "nope"), 3, "instance list"),
        (("instance", "delete", "nope", "--skip-final-snapshot"), 3, "instance list"),
        (("instance", "delete", "sandbox-instance-2", "--final-snapshot", "a"), 2, "omit --final-snapshot"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_bad_input(cloud: Cloud, words: tuple[str, ...], code: int, expected_text: str) -> None:
    failed = cloud(*words, *(["--yes"] if words[1] != "delete" else []))
    assert failed.code == code, failed.out + failed.err
    assert expected_text in failed.err and "Traceback" not in failed.err
    assert "hint: " in failed.err


def test_a_delete_needs_the_identifier_and_not_yes(cloud: Cloud) -> None:
    words = ("cluster", "delete", "sandbox", "--skip-final-snapshot")
    unconfirmed = cloud(*words, "--yes")
    assert unconfirmed.code == 4 and "--confirm sandbox" in unconfirmed.err
    assert "--yes does not confirm a permanent deletion, and stdin is not a terminal" in unconfirmed.err
    assert "the data is lost" in unconfirmed.err, "the plan and its cost are shown"
    wrong = cloud(*words, "--confirm", "sandbx")
    assert wrong.code == 4 and "not sandbox" in wrong.err
    planned = cloud(*words, "--dry-run", "-o", "json").json
    assert [step.get("operation") for step in planned["steps"]] == ["DeleteDBCluster", None]
    assert cloud("cluster", "show", "sandbox").code == 0


def test_the_identifier_is_typed_at_a_terminal(cloud: Cloud, name: str) -> None:
    create = ("instance", "create", name, "--class", "db.r6g.large", "--storage", "20", "--yes")
    creating = cloud.program.start(*create, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert creating.stderr is not None
    while not (line := creating.stderr.readline()).startswith(b"done: create instance"):
        assert line, "it ended"
    creating.send_signal(signal.SIGTERM)  # in the wait
    err = creating.communicate(timeout=60)[1].decode()
    assert creating.returncode == 130, err
    assert f"  done: create instance {name}" in err
    # It came between two steps, or in the wait.
    assert re.search(
        rf"not done: wait until instance {name} is available: (not started|interrupted); AWS continues", err
    )
    again = f"hint: run the command again, it plans only the missing steps: rdsrepl {shlex.join(create)}"
    assert err.splitlines()[-1] == again
    wait_until(lambda: cloud("instance", "show", name).code == 0, "the API shows what was created")
    made = cloud(*create)
    assert made.code == 0, made.err
    assert typed(cloud, name, "something else") == 4
    assert cloud("instance", "show", name).code == 0
    assert typed(cloud, name, name) == 0
    assert cloud("instance", "show", name).code == 3


def typed(cloud: Cloud, name: str, answer: str) -> int:
    """Run the deletion on a pseudo-terminal and answer its question; return the exit code."""
    ours, theirs = pty.openpty()
    words = [*cloud.program.command, "instance", "delete", name, "--skip-final-snapshot", "--yes"]
    process = subprocess.Popen(words, env=cloud.program.env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    expected_text, answered, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                expected_text += os.read(ours, 65536)
            except OSError:
                break
        if not answered and f": type {name} to confirm:".encode() in expected_text:
            os.write(ours, answer.encode() + b"\n")
            answered = True
    os.close(ours)
    assert answered, expected_text.decode()
    assert b"--yes does not confirm a permanent deletion" in expected_text
    return process.wait(120)


def test_an_instance_with_a_password_from_a_secret(cloud: Cloud, name: str) -> None:
    manager = cloud.client("secretsmanager")
    secret = manager.create_secret(Name=f"{name}-login", SecretString=json.dumps({"password": "from-the-secret"}))
    words = ("instance", "create", name, "--class", "db.r6g.large", "--storage", "20", "--master-secret", secret["ARN"])
    planned = cloud(*words, "--dry-run")
    assert "********" in planned.out and "from-the-secret" not in planned.out + planned.err
    as_json = cloud(*words, "--dry-run", "-o", "json")
    assert as_json.json["steps"][0]["parameters"]["MasterUserPassword"] == "********"
    assert "from-the-secret" not in as_json.out
    done = cloud(*words, "--yes", "-o", "json")
    assert done.code == 0 and "from-the-secret" not in done.out + done.err
    shown = cloud("psql", "--instance", name, "--", "-Atc", "SELECT current_user",
                  env={"PGPASSWORD": "from-the-secret"})  # fmt: skip
    assert shown.out == "dbadmin\n", shown.err
    manager.delete_secret(SecretId=secret["ARN"], ForceDeleteWithoutRecovery=True)


def test_a_reboot_is_verified(cloud: Cloud, name: str) -> None:
    cloud("instance", "create", name, "--class", "db.r6g.large", "--storage", "20", "--yes")
    started = "SELECT pg_postmaster_start_time()"
    before = cloud("psql", "--instance", name, "--", "-Atc", started).out
    done = cloud("instance", "reboot", name, "--yes", "-o", "json")
    assert done.code == 0, done.err
    assert cloud("psql", "--instance", name, "--", "-Atc", started).out > before


def test_a_cluster_is_rebooted_member_by_member(cloud: Cloud) -> None:
    started = {member: start_time(cloud, member) for member in ("sandbox-instance-1", "sandbox-instance-2")}
    done = cloud("-t", "sandbox", "cluster", "reboot", "sandbox", "--yes", "-o", "json")
    assert done.code == 0, done.err
    operations = [step["operation"] for step in done.json["steps"] if "operation" in step]
    assert operations == ["RebootDBInstance", "RebootDBCluster"], "the reader first, the writer through the cluster"
    for member, before in started.items():
        assert start_time(cloud, member) > before
    writer = cloud("cluster", "show", "sandbox", "-o", "json").json["members"][0]
    assert writer["role"] == "writer" and writer["instance_id"] == "sandbox-instance-1", "no failover"


def start_time(cloud: Cloud, member: str) -> str:
    """Return the start time of a member of the sandbox cluster, read at its own endpoint."""
    instance = cloud("instance", "show", member, "-o", "json").json["instance"]
    dsn = f"host={instance['endpoint']} port={instance['port']} dbname=app user=dbadmin"
    query = "SELECT pg_postmaster_start_time()"
    shown = cloud("--dsn", dsn, "psql", "--", "-Atc", query, env={"PGPASSFILE": cloud.report["passfile"]})
    assert shown.code == 0, shown.err
    return shown.out


def test_a_multi_az_instance_fails_over(cloud: Cloud, name: str) -> None:
    base = ("instance", "create", name, "--class", "db.r6g.large", "--storage", "20", "--yes")
    assert cloud(*base, "--multi-az").code == 0
    done = cloud("instance", "failover", name, "--yes", "-o", "json")
    assert done.code == 0, done.err
    assert done.json["steps"][0]["parameters"] == {"DBInstanceIdentifier": name, "ForceFailover": True}


def test_an_instance_without_a_standby_cannot_fail_over(cloud: Cloud, name: str) -> None:
    cloud("instance", "create", name, "--class", "db.r6g.large", "--storage", "20", "--yes")
    refused = cloud("instance", "failover", name, "--yes")
    assert refused.code == 4 and "only a Multi-AZ instance" in refused.err


def test_a_reboot_that_does_not_end_in_time(cloud: Cloud, name: str) -> None:
    cloud("instance", "create", name, "--class", "db.r6g.large", "--storage", "20", "--yes")
    cloud.delays()
    late = cloud("instance", "reboot", name, "--yes", "--timeout", "0.01s", "-o", "json")
    assert late.code == 6, late.out + late.err
    assert late.error["done"] == [f"reboot instance {name}"], "the error lists what was done"
    assert f"{name} rebooting" in late.error["message"] and "--timeout" in late.error["hint"]
    until_available(cloud, name)


def until_available(cloud: Cloud, name: str) -> None:
    deadline = time.monotonic() + 120
    while cloud("instance", "show", name, "-o", "json").json["instance"]["status"] != "available":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_operation_in_progress_is_refused(cloud: Cloud, name: str) -> None:
    cloud("instance", "create", name, "--class", "db.r6g.large", "--storage", "20", "--yes")
    cloud.delays()
    cloud.client("rds").reboot_db_instance(DBInstanceIdentifier=name)
    refused = cloud("instance", "reboot", name, "--yes")
    # It is refused, unless the machine was so slow that the first reboot had ended.
    assert refused.code in (0, 4)
    if refused.code == 4:
        assert "is rebooting, not available" in refused.err and f"instance show {name}" in refused.err
    until_available(cloud, name)


def test_a_protected_instance_is_not_deleted(cloud: Cloud, name: str) -> None:
    words = ("--class", "db.r6g.large", "--storage", "20", "--deletion-protection", "--yes")
    assert cloud("instance", "create", name, *words).code == 0
    refused = cloud("instance", "delete", name, "--skip-final-snapshot", "--confirm", name)
    assert refused.code == 4 and "no-deletion-protection" in refused.err
    cloud.delays()
    cloud.client("rds").modify_db_instance(DBInstanceIdentifier=name, DeletionProtection=False, ApplyImmediately=True)
    until_available(cloud, name)


def test_a_plan_that_fails_lists_what_was_done(cloud: Cloud, name: str) -> None:
    cloud.faults({"service": "rds", "operation": "CreateDBInstance", "code": "InstanceQuotaExceeded", "status": 400,
                  "message": "Cannot create more", "times": 5})  # fmt: skip
    words = ("--engine", "aurora-postgresql", "--class", "db.r6g.large", "--yes", "-o", "json")
    broken = cloud("cluster", "create", name, *words)
    assert broken.code == 6
    assert broken.error["done"] == [f"create cluster {name}"]
    assert broken.error["not_done"][0] == f"create instance {name}-1"
    cloud.faults()
    cloud.delays()  # else the cluster that was just made may not be found yet, and would be made again
    again = cloud("cluster", "create", name, *words)
    assert again.code == 0, again.err
    assert "already exists" in again.json["warnings"][0]
    members = cloud("cluster", "show", name, "-o", "json").json["members"]
    assert [(member["instance_id"], member["role"]) for member in members] == [
        (f"{name}-1", "writer"),
        (f"{name}-2", "reader"),
    ]
    complete = cloud("cluster", "create", name, *words)
    assert (complete.code, complete.json["status"]) == (0, "unchanged"), "and then there is nothing left to make"


def test_attach_reboots_replicas_first_and_verifies_it(cloud: Cloud, name: str, own_password: tuple[str, str]) -> None:
    """An instance with a read replica: refused alone, safe together, and lowered in the other order."""
    replica = f"{name}-r"
    big, small = f"{name}-big", f"{name}-small"
    version = "15"
    base = ("--class", "db.r6g.large", "--yes")
    words = ("--storage", "20", "--engine-version", version, *own_password)
    assert cloud("instance", "create", name, *base, *words).code == 0
    made = cloud("instance", "create", replica, *base, "--replica-of", name)
    assert made.code == 0, made.err
    try:
        for group, senders in ((big, "60"), (small, "30")):
            words = ("--family", f"postgres{version}", "--kind", "instance", "--set", f"max_wal_senders={senders}")
            assert cloud("param-group", "create", group, *words, "--yes").code == 0
        alone = cloud("param-group", "attach", big, "--instance", name, "--reboot", "--yes")
        assert alone.code == 4 and "--with-replicas" in alone.err and replica in alone.err
        both = ("--instance", name, "--with-replicas", "--reboot", "--yes", "-o", "json")
        up = cloud("param-group", "attach", big, *both)
        assert up.code == 0, up.err
        assert calls(up.json) == [replica, replica, name, name]
        proof = up.json["steps"][-1]["returned"]
        assert proof["wal_level"] == "logical" and proof["max_wal_senders"] == "60"
        again = cloud("param-group", "attach", big, *both)
        assert again.json["status"] == "unchanged"
        down = cloud("param-group", "attach", small, *both)
        assert down.code == 0, down.err
        assert calls(down.json) == [name, name, replica, replica]
        live = cloud("param-group", "diff", small, "--live", "--instance", name, "-o", "json").json
        assert not [row for row in live if row["name"] in ("max_wal_senders", "rds.logical_replication")]
        other = cloud("param-group", "create", f"{name}-16", "--family", "postgres16", "--kind", "instance", "--yes")
        assert other.code == 0
        misfit = cloud("param-group", "attach", f"{name}-16", "--instance", name, "--yes")
        assert misfit.code == 4 and "needs one for postgres15" in misfit.err
        used = cloud("param-group", "delete", small, "--yes")
        assert used.code == 4 and f"instance {name}" in used.err
        # As AWS does, for every engine but SQL Server.
        cloud.client("rds").modify_db_instance(DBInstanceIdentifier=name, ManageMasterUserPassword=True)
        wait_until(
            lambda: cloud("instance", "show", name, "-o", "json").json["instance"]["master_secret"], "RDS manages it"
        )
        managed = cloud("instance", "create", f"{name}-2", *base, "--replica-of", name)
        assert managed.code == 4 and "RDS manages the password of its master user" in managed.err
        assert f"modify-db-instance --db-instance-identifier {name} --no-manage-master" in managed.err
    finally:
        cloud("instance", "delete", replica, "--confirm", replica)
        cloud("instance", "delete", name, "--skip-final-snapshot", "--confirm", name)
        for group in (big, small, f"{name}-16"):
            cloud("param-group", "delete", group, "--yes")


def calls(document: dict[str, list[dict[str, object]]]) -> list[object]:
    """Return the instance of each call of a plan."""
    requests = [step["parameters"] for step in document["steps"] if "operation" in step]
    return [request["DBInstanceIdentifier"] for request in requests if isinstance(request, dict)]
