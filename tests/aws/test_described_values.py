"""Unusual values of AWS: version suffixes, other engines, statuses, formulas, sources, secrets without a value."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl import errors
from rdsrepl.aws import clusters, engines, instances, release_support, session, statuses
from rdsrepl.aws.parameter_groups import Parameter
from rdsrepl.aws.release_support import Release
from rdsrepl.cli import rds_options
from rdsrepl.config import Aws
from rdsrepl.doctor import capacity, configuration, slots
from rdsrepl.doctor.facts import Facts, Member
from rdsrepl.doctor.facts import RdsResource as KnownCloud
from rdsrepl.parameters import formulas, rollout, sizing
from rdsrepl.parameters.instance_classes import hardware
from rdsrepl.plan import Plan
from tests.doctor.test_doctor import slot
from tests.fixtures.program import Result
from tests.fixtures.sandbox import Cloud, FakeClock, apply_with_clock

SUFFIX = "-rds.20260224"


# Versions.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16.4", (16, 4, 1)),
        ("16", (16, 0, 1)),
        ("15.3-R2", (15, 3, 2)),
        ("14.8.R2", (14, 8, 2)),
        ("13.23-rds.20260224", (13, 23, 1)),
        ("14.8-R2-rds.20260224", (14, 8, 2)),
        ("16.9-limitless", (16, 9, 1)),
        ("18.3.3", (18, 3, 1)),
        ("19beta1", (19, 0, 1)),
        ("17.4 (Debian 17.4-1.pgdg120+2)", (17, 4, 1)),
        ("next", None),
        ("", None),
        ("-1.2", None),
        ("99999999999.1", None),
        ("١٦.٤", None),
    ],
)
def test_versions(text: str, expected: tuple[int, int, int] | None) -> None:
    assert Release.parse(text) == (None if expected is None else Release(*expected))


@given(st.text(max_size=40))
def test_an_unknown_version_is_no_error(text: str) -> None:
    for kind in ("instance", "multi_az_cluster", "aurora"):
        support = release_support.logical_replication(kind, text)
        assert support.words and (support.supported is not None or "cannot be read" in support.words)


def test_a_suffix_does_not_change_support() -> None:
    assert release_support.logical_replication("multi_az_cluster", "15.2-rds.20260224").supported is False
    assert release_support.logical_replication("multi_az_cluster", "15.3-R2-rds.20260224").supported is True
    assert release_support.logical_replication("instance", "13.23-rds.20260224").supported is True
    assert release_support.logical_replication("instance", "next").supported is None


def known(**given: Any) -> Facts:
    fields: dict[str, Any] = {
        "identifier": "orders",
        "kind": "instance",
        "topology": "instance",
        "engine_version": "16.4",
        "status": "available",
        "parameter_group": "g",
        "members": (Member("orders", True, "available", "in-sync", "db.r6g.large"),),
    }
    return Facts("orders", rds=KnownCloud(**{**fields, **given}))


def test_checks_of_a_version_that_cannot_be_read() -> None:
    facts = known(engine_version="next", is_reader=True)
    for check in (configuration.engine_version, configuration.writer_endpoint):
        with pytest.raises(configuration.NotApplicable, match="could not read the engine version"):
            list(check(facts))
    assert list(configuration.engine_version(known(engine_version="13.23-rds.20260224"))) == []


# Other engines.


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mysql", "MySQL"),
        ("mariadb", "MariaDB"),
        ("docdb", "DocumentDB"),
        ("neptune", "Neptune"),
        ("aurora-mysql", "Aurora MySQL"),
        ("aurora", "Aurora MySQL"),
        ("oracle-se2", "Oracle"),
        ("db2-ae", "Db2"),
        ("sqlserver-web", "SQL Server"),
        ("new-engine", "new-engine"),
    ],
)
def test_other_engines_are_refused_by_name(name: str, label: str) -> None:
    row = {"Engine": name}
    assert not engines.is_postgres(row)
    with pytest.raises(errors.Refused, match=f"^instance shop is {label}, not PostgreSQL$"):
        engines.require_postgres(row, "instance", "shop")


# Formulas.


@pytest.mark.parametrize(
    ("text", "expected", "spelled"),
    [
        ("GREATEST($DBInstanceVCPU/2,8)", 8, "GREATEST({DBInstanceVCPU/2},40)"),
        ("${DBInstanceVCPU*2}", 16, "GREATEST(${DBInstanceVCPU*2},40)"),
        ("SUM(DBInstanceClassMemory/12038,-50003)", 5658542, None),
        ("LEAST(GREATEST(DBInstanceClassMemory/32185783296,16),32)", 16, None),
        ("GREATEST({log(DBInstanceClassMemory/21474836480)*600},200)", 1006, None),
        ("GREATEST(log(DBInstanceClassMemory/805306368)*45,1000)", 1000, None),
        ("DBInstanceVCPU", 8, "GREATEST({DBInstanceVCPU},40)"),
        ("GREATEST(DBInstanceVCPU*2,SUM($DBInstanceVCPU,-3))", 16, None),
        ("8", 8, "GREATEST(8,40)"),
        ("GREATEST({AllocatedStorage/2},8)", None, "GREATEST({AllocatedStorage/2},40)"),
    ],
)
def test_formulas_as_aws_prints_them(text: str, expected: int | None, spelled: str | None) -> None:
    what = hardware("db.r6g.2xlarge")
    assert formulas.is_readable(text)
    assert formulas.read(text, what) == expected
    raised = formulas.raise_floor(text, 40)
    assert spelled in (None, raised)
    # Formulas that are sent to AWS have the notation of the user guide.
    formulas.variables(raised)
    if expected is not None:
        assert formulas.evaluate(raised, what) == max(40, expected)


UNREADABLE = ["IF({TrueIfReplica},1,0)", "{DBInstanceVCPU+1}", "GREATEST({Cores*2},8)", "log()", "log(0)", "on"]


@pytest.mark.parametrize("text", [*UNREADABLE, "{" * 99, "9" * 5000, "log(-1)", "log(1,2)", "", "\x1b[2J"])
def test_an_unreadable_formula_is_unknown(text: str) -> None:
    assert formulas.read(text, hardware("db.m5.large")) is None


@given(st.text("0123456789{}$(),*/- DBInstanceVCPUlogGREATESTSUM", max_size=60))
def test_reading_never_fails(text: str) -> None:
    formulas.read(text, hardware("db.m5.large"))
    if formulas.is_readable(text) and text.strip():
        assert formulas.variables(formulas.raise_floor(text, 5)) <= formulas.VARIABLES


def default(value: str | None) -> sizing.Default:
    return sizing.Default(value, "static", "0-262143", True, "integer")


@pytest.mark.parametrize("text", UNREADABLE)
def test_an_unreadable_default_does_not_fail_create(text: str) -> None:
    names = [name for name in sizing.SIZED_PARAMETERS if name.startswith("max_") and name != "max_slot_wal_keep_size"]
    names += ["autovacuum_max_workers", "max_parallel_workers"]
    on = {"rds.logical_replication": sizing.Default("0", "static", "0,1", True, "boolean")}
    demand = sizing.SizingRequest("postgres", "instance", 18, 4, 2, 1, hardware("db.r6g.large"), 100, {})
    for name in names:
        sized = sizing.propose(demand, {**on, **{other: default("20") for other in names}, name: default(text)})
        assert all(one.value is None for one in sized.proposals if one.name == name)
        assert any(note.startswith(f"{name}: could not read its default {text}") for note in sized.notes), name
    asked = replace(demand, overrides={"max_wal_senders": "60"})
    sized = sizing.propose(asked, {**on, **{other: default(text) for other in names}})
    assert {one.name: one.value for one in sized.proposals}["max_wal_senders"] == "60"


def test_checks_take_formulas_as_aws_prints_them() -> None:
    for value, expected in (("GREATEST($DBInstanceVCPU*2,8)", 8), ("-1", -1), ("-x", None), ("IF(1,2,3)", None)):
        row = Parameter("p", value, "static", "", "integer", None, True, "system", "", None)
        assert capacity._in_group(replace(known(), parameters={"p": row}), "p") == expected


# Blue/green deployments, and upgrades of aurora.


@pytest.mark.parametrize("topology", ["instance", "aurora"])
def test_slots_block_blue_green_and_upgrades(topology: Any) -> None:
    consumed = slot("orders_cdc", lag_bytes=0)
    facts = replace(known(topology=topology, engine_version="17.4"), slots=(consumed,))
    (found,) = slots.upgrade_slots(facts)
    assert "AWS does not create a blue/green deployment" in found.message and "slot drop" in found.remedy
    assert ("the Aurora guide differ" in found.message and "or upgrade" in found.remedy) is (topology == "aurora")


# Statuses.


def test_statuses() -> None:
    assert statuses.is_usable("storage-optimization") and statuses.is_usable("storage-initialization")
    assert statuses.is_usable("storage-config-upgrade") and not statuses.is_usable("modifying")
    assert not statuses.is_dead_end("backing-up") and not statuses.is_dead_end("something-new")
    assert not statuses.USABLE & statuses._REMEDIES.keys()
    for status in statuses._REMEDIES:
        for kind in ("cluster", "instance"):
            remedy = statuses.remedy(status, kind, "a b")
            assert "{" not in remedy and f"--source-type db-{kind} --source-identifier 'a b'" in remedy
    assert "aws rds start-db-cluster --db-cluster-identifier orders;" in statuses.remedy("stopped", "cluster", "orders")
    for check, words in (("stopped", "start-db-instance"), ("inaccessible-encryption-credentials", "KMS key")):
        (problem,) = configuration.availability(known(status=check))
        assert words in problem.remedy
    assert list(configuration.availability(known(status="storage-optimization"))) == []


def test_reboot_order() -> None:
    members = (clusters.Member("w", True, "in-sync"), clusters.Member("r", False, "in-sync"))
    made = clusters.Cluster("c", "aurora", "aurora-postgresql", "16.4", "available", members=members)

    def order(cluster: clusters.Cluster, *, raised: tuple[str, ...] = (), lowered: tuple[str, ...] = ()) -> str:
        changes = rollout.MemoryChanges(raised, lowered)
        steps = rollout.reboot_cluster(cluster, changes, only_needed=False, timeout_seconds=1, servers={})
        names = "".join(step.summary.rpartition(" ")[2] for step in steps if step.summary.startswith("reboot"))
        assert (
            "writer first" in changes.reboot_order(cluster) or "primary first" in changes.reboot_order(cluster)
        ) is (names[0] == "w")
        return names

    assert order(made) == "wr", "as Aurora's guide says"
    assert order(made, raised=("max_connections",)) == "rw"
    assert order(made, lowered=("max_connections",)) == "wr"
    multi_az = replace(made, kind="multi_az_cluster")
    assert rollout.MemoryChanges((), ()).writer_first(multi_az) is False


def test_requested_storage() -> None:
    new = clusters.NewCluster("c", "multi_az_cluster", "db.r6gd.large", storage_type="gp3")
    assert rds_options.storage_request(new).startswith("storage type gp3 is sent without Iops; if AWS requires")
    words = rds_options.storage_request(replace(new, storage_type="io1", iops=3000))
    assert words == "storage type io1 with Iops=3000 is sent"


@pytest.mark.parametrize(
    ("code", "text", "kind", "hint"),
    [
        ("ResourceExistsException", "the secret a already exists", errors.AlreadyExists, "another name"),
        ("ResourceInUseException", "Stream a under account 1 already exists", errors.InUse, "stream list"),
        ("InsufficientDBInstanceCapacity", "no capacity", errors.NotAvailable, "--class"),
        ("InsufficientDBClusterCapacityFault", "no capacity", errors.NotAvailable, "--class"),
        ("ResourceNotFoundException", "can't find the specified secret.", errors.NotFound, ""),
        (
            "ResourceNotFoundException",
            "can't find the specified secret value for staging label: AWSCURRENT",
            errors.NotAvailable,
            "no value yet",
        ),
    ],
)
def test_hints(code: str, text: str, kind: type[errors.Error], hint: str) -> None:
    found, words = session._classify(code, text, "secretsmanager:GetSecretValue", Aws(region="eu-west-1"))
    assert found is kind and hint in (words or "")


# End to end, with unusual values of AWS.


@pytest.fixture
def unusual(cloud: Cloud) -> Iterator[None]:
    """Versions with a suffix, other engines in the account, formulas without braces."""
    cloud.delays(version_suffix=SUFFIX, other_engines=True, printed_formulas=True)
    yield
    cloud.delays()


def ok(done: Result) -> Result:
    assert done.code == 0, done.err
    return done


@pytest.mark.usefixtures("unusual")
def test_other_engines_in_the_account(cloud: Cloud) -> None:
    for noun in ("instance", "cluster"):
        rows = ok(cloud(noun, "list", "-o", "json")).json
        assert rows and {row["engine"] for row in rows} <= set(engines.POSTGRES)
    ok(cloud("param-group", "list", "--defaults"))
    mysql, docdb = "other-mysql", "other-docdb"
    refused = [
        ("instance", "show", mysql),
        ("instance", "reboot", mysql, "--yes"),
        ("instance", "failover", mysql, "--yes"),
        ("instance", "delete", mysql, "--skip-final-snapshot", "--confirm", mysql),
        ("doctor", "--instance", mysql),
        ("slot", "list", "--instance", mysql),
        ("slot", "lag", "--instance", mysql),
        ("param-group", "create", "g", "--instance", mysql, "--yes"),
        ("param-group", "attach", "g", "--instance", mysql, "--yes"),
        ("cluster", "show", docdb),
        ("cluster", "reboot", docdb, "--yes"),
        ("cluster", "failover", docdb, "--yes"),
        ("cluster", "delete", docdb, "--skip-final-snapshot", "--confirm", docdb),
        ("cluster", "create", docdb, "--class", "db.r6gd.large", "--storage", "100", "--yes"),
        ("doctor", "--cluster", docdb),
    ]
    for words in refused:
        done = cloud(*words)
        what = f"instance {mysql} is MySQL" if mysql in words else f"cluster {docdb} is DocumentDB"
        assert done.code == 4 and f"{what}, not PostgreSQL" in done.err, (words, done.code, done.err)


@pytest.mark.usefixtures("unusual")
def test_versions_formulas_and_sources(cloud: Cloud) -> None:
    shown = ok(cloud("cluster", "show", "sandbox", "-o", "json")).json
    assert shown["cluster"]["engine_version"].endswith(SUFFIX) and shown["logical_replication"]["supported"] is True
    ok(cloud("instance", "show", shown["members"][0]["instance_id"]))
    found = cloud("doctor", "--cluster", "sandbox", "--only", "engine_version", "-o", "json")
    assert found.code == 0, found.err
    name = f"v-{uuid.uuid4().hex[:8]}"
    make = ("param-group", "create", name, "--cluster", "sandbox", "--subscriptions", "30", "--yes", "-o", "json")
    made = ok(cloud(*make, "--set", "max_wal_senders=60")).json
    changes = {change["name"]: change for change in made["changes"]}
    assert re.match(r"GREATEST\(\$DBInstanceVCPU\*2,8\)", changes["max_worker_processes"]["default"])
    assert re.fullmatch(r"GREATEST\(\{DBInstanceVCPU\*2\},\d+\)", changes["max_worker_processes"]["value"])
    assert ok(cloud(*make, "--set", "max_wal_senders=60")).json["status"] == "unchanged"
    # AWS does not report source user for a value that equals the default; the value is still read back.
    first = next(row for row in rows(cloud, name) if row["name"] == "max_wal_senders")
    base = parameter_default(cloud, name)
    assert first["source"] == "user" and first["value"] == "60" != base
    ok(cloud("param-group", "set", name, f"max_wal_senders={base}", "--yes"))
    after = next(row for row in rows(cloud, name) if row["name"] == "max_wal_senders")
    assert (after["source"], after["value"]) == ("system", base)
    assert ok(cloud("param-group", "set", name, f"max_wal_senders={base}", "--yes", "-o", "json")).json["status"] == (
        "unchanged"
    )
    differing = {row["name"] for row in ok(cloud("param-group", "diff", name, "-o", "json")).json}
    assert "max_wal_senders" not in differing and "max_worker_processes" in differing
    ok(cloud("param-group", "delete", name, "--yes"))


def rows(cloud: Cloud, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ok(cloud("param-group", "show", name, "-o", "json")).json["parameters"]
    return found


def parameter_default(cloud: Cloud, name: str) -> str:
    group = ok(cloud("param-group", "show", name, "-o", "json")).json["group"]
    pages = cloud.client("rds").get_paginator("describe_engine_default_cluster_parameters")
    for page in pages.paginate(DBParameterGroupFamily=group["family"]):
        for row in page["EngineDefaults"]["Parameters"]:
            if row["ParameterName"] == "max_wal_senders":
                return str(row["ParameterValue"])
    raise AssertionError("no default")


def test_statuses_of_the_cluster(cloud: Cloud, unusual: None) -> None:
    members = cloud("cluster", "show", "sandbox", "-o", "json").json["members"]
    reader = next(one["instance_id"] for one in members if one["role"] == "reader")
    waits = Plan("wait", (clusters.wait_available("sandbox", 1200), instances.wait_available(reader, 1200)))
    plan = ("cluster", "reboot", "sandbox", "--dry-run")
    cloud.delays(statuses={"sandbox": "storage-optimization", reader: "storage-initialization"})
    clock = FakeClock()
    assert len(apply_with_clock(waits, cloud, clock)[0]) == 2 and clock.now < 60
    ok(cloud(*plan))
    assert cloud("doctor", "--cluster", "sandbox", "--only", "availability").code == 0
    # A wait ends at once if the cluster or a member needs a repair.
    for name, status, remedy in (
        ("sandbox", "stopped", "aws rds start-db-cluster --db-cluster-identifier sandbox"),
        ("sandbox", "inaccessible-encryption-credentials-recoverable", "enable its KMS key"),
        (reader, "insufficient-capacity", "another class or zone"),
        (reader, "restore-error", "restore again"),
    ):
        cloud.delays(statuses={name: status})
        clock = FakeClock()
        with pytest.raises(errors.Error, match=f"{name} is {status}") as caught:
            apply_with_clock(waits, cloud, clock)
        assert clock.now < 60 and remedy in (caught.value.hint or ""), caught.value.hint
    cloud.delays(statuses={"sandbox": "stopped"})
    done = cloud(*plan)
    assert done.code == 4 and "cluster sandbox is stopped" in done.err and "start-db-cluster" in done.err, done.err


def test_a_secret_without_a_value(cloud: Cloud) -> None:
    secret = f"s-{uuid.uuid4().hex[:8]}"
    api = cloud.client("secretsmanager")
    api.create_secret(Name=secret)
    # The error text of moto differs from that of Secrets Manager.
    nothing = {
        "service": "secretsmanager",
        "operation": "GetSecretValue",
        "code": "ResourceNotFoundException",
        "message": "Secrets Manager can't find the specified secret value for staging label: AWSCURRENT",
    }
    cloud.faults(nothing, nothing)
    target = ("--dsn", f"host=127.0.0.1 port={cloud.report['port']} dbname=app user=dbadmin")
    done = cloud("instance", "create", "x", "--class", "db.r6g.large", "--storage", "20", "--master-secret", secret)
    assert done.code == 4 and f"secret {secret} has no value yet" in done.err, done.err
    assert f"put-secret-value --secret-id {secret}" in done.err
    role = f"r_{uuid.uuid4().hex[:8]}"
    env = {"PGPASSFILE": cloud.report["passfile"]}
    words = ("role", "password", role, "--generate-password", "--secret", secret, "--yes")
    ok(cloud(*target, "role", "create", role, "--generate-password", "--yes", env=env))
    ok(cloud(*target, *words, env=env))
    value = json.loads(api.get_secret_value(SecretId=secret, VersionStage="AWSCURRENT")["SecretString"])
    assert value["username"] == role and value["password"]
    ok(cloud(*target, "role", "drop", role, "--yes", env=env))
    api.delete_secret(SecretId=secret, ForceDeleteWithoutRecovery=True)
