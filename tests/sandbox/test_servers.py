"""Clusters and instances of the sandbox on real servers, through boto3 and SQL."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from psycopg import pq
from psycopg.conninfo import make_conninfo

from rdsrepl.sandbox import credentials, directory, lifecycle, server_registry, state
from rdsrepl.sandbox.api import failover
from rdsrepl.sandbox.api.records import Cluster, Instance, Records
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.api.supervisor import Supervisor
from rdsrepl.sandbox.credentials import Credentials
from rdsrepl.sandbox.report import Report
from rdsrepl.sandbox.servers import binaries, processes
from tests.fixtures.background import running
from tests.fixtures.missing import missing
from tests.fixtures.sandbox import signed

PASSWORD = "open-sesame-1"
CLASS, AURORA_CLASS = "db.m5d.large", "db.r6g.large"
WAIT = {"Delay": 0.1, "MaxAttempts": 1500}
MAJORS = sorted({found.major for found in (*binaries.installed(), *binaries.from_wheel())})
EACH_MAJOR = [pytest.param(major, id=f"pg{major}") for major in MAJORS]


@dataclass
class Lab:
    """A sandbox with clients for its API."""

    report: Report

    @cached_property
    def credentials(self) -> Credentials:
        return credentials.read(directory.SandboxDirectory(Path(self.report.directory)))

    def client(self, service: str, **more: Any) -> Any:
        session = boto3.Session(
            aws_access_key_id=self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
            region_name=more.pop("region", self.report.region),
        )
        return session.client(service, endpoint_url=self.report.endpoint_url, **more)

    @cached_property
    def rds(self) -> Any:
        return self.client("rds")

    def cluster(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"][0]
        return found

    def instance(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.rds.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]
        return found

    def members(self, name: str) -> dict[str, str]:
        """Return the status of the cluster parameter group by member."""
        members = self.cluster(name)["DBClusterMembers"]
        return {member["DBInstanceIdentifier"]: member["DBClusterParameterGroupStatus"] for member in members}

    def writer(self, name: str) -> str:
        members = self.cluster(name)["DBClusterMembers"]
        return str(next(member["DBInstanceIdentifier"] for member in members if member["IsClusterWriter"]))

    def await_available(self, name: str) -> None:
        """Wait until a cluster, and then each of its members, is available."""
        self.rds.get_waiter("db_cluster_available").wait(DBClusterIdentifier=name, WaiterConfig=WAIT)
        for member in self.members(name):
            self.ready(member)

    def ready(self, name: str) -> None:
        self.rds.get_waiter("db_instance_available").wait(DBInstanceIdentifier=name, WaiterConfig=WAIT)

    def reboot_pending_members(self, name: str) -> None:
        """Reboot the members whose group is pending-reboot."""
        for member in (one for one, status in self.members(name).items() if status == "pending-reboot"):
            self.rds.reboot_db_instance(DBInstanceIdentifier=member)
            self.ready(member)
        assert set(self.members(name).values()) == {"in-sync"}

    def make_cluster(self, name: str, major: int, **more: Any) -> None:
        self.rds.create_db_cluster(**{**multi_az(name, major), **more})
        self.await_available(name)

    def make_group(self, name: str, family: str, kind: str = "cluster", **values: str) -> None:
        noun = "db_cluster" if kind == "cluster" else "db"
        parameter = "DBClusterParameterGroupName" if kind == "cluster" else "DBParameterGroupName"
        getattr(self.rds, f"create_{noun}_parameter_group")(
            **{parameter: name}, DBParameterGroupFamily=family, Description="a test's"
        )
        self.set(name, kind, **values)

    def set(self, name: str, kind: str = "cluster", **values: str) -> None:
        if not values:
            return
        noun = "db_cluster" if kind == "cluster" else "db"
        parameter = "DBClusterParameterGroupName" if kind == "cluster" else "DBParameterGroupName"
        described = getattr(self.rds, f"describe_{noun}_parameters")
        known = {
            one["ParameterName"]: one["ApplyType"]
            for page in self.rds.get_paginator(described.__name__).paginate(**{parameter: name})
            for one in page["Parameters"]
        }
        getattr(self.rds, f"modify_{noun}_parameter_group")(
            **{parameter: name},
            Parameters=[
                {
                    "ParameterName": key.replace("__", "."),
                    "ParameterValue": value,
                    "ApplyMethod": "immediate" if known[key.replace("__", ".")] == "dynamic" else "pending-reboot",
                }
                for key, value in values.items()
            ],
        )

    def connect(self, endpoint: dict[str, Any], **more: Any) -> psycopg.Connection[Any]:
        host, port = endpoint.get("Address", endpoint.get("Endpoint")), endpoint["Port"]
        options = {"user": "boss", "password": PASSWORD, "dbname": "postgres", "connect_timeout": 60, **more}
        return psycopg.connect(host=host, port=port, autocommit=True, **options)

    def query(self, endpoint: dict[str, Any], text: str, **more: Any) -> list[tuple[Any, ...]]:
        with self.connect(endpoint, **more) as conn:
            cursor = conn.execute(text)
            return cursor.fetchall() if cursor.description else []

    def value(self, endpoint: dict[str, Any], text: str) -> Any:
        return self.query(endpoint, text)[0][0]

    def act(self, name: str, **body: object) -> dict[str, Any]:
        url = f"{self.report.endpoint_url}/_sandbox/{name}"
        request = signed(self.credentials, url, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))

    def server(self, name: str) -> Any:
        status = lifecycle.status()
        assert status is not None
        return next(server for server in status.servers if server.name == name)


def multi_az(name: str, major: int) -> dict[str, Any]:
    return {
        "DBClusterIdentifier": name,
        "Engine": "postgres",
        "EngineVersion": str(major),
        "DBClusterInstanceClass": CLASS,
        "AllocatedStorage": 100,
        "StorageType": "io1",
        "Iops": 1000,
        "MasterUsername": "boss",
        "MasterUserPassword": PASSWORD,
    }


def single(name: str, major: int) -> dict[str, Any]:
    return {
        "DBInstanceIdentifier": name,
        "Engine": "postgres",
        "EngineVersion": str(major),
        "DBInstanceClass": CLASS,
        "AllocatedStorage": 20,
        "MasterUsername": "boss",
        "MasterUserPassword": PASSWORD,
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    tmp = tmp_path_factory.mktemp("servers")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PG", "RDSREPL_", "AWS_"))]:
            patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(tmp / "config"))
        patch.setenv("RDSREPL_SANDBOX_DIR", str(tmp / "sandbox"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        try:
            yield Lab(lifecycle.up(default_group=True))
        finally:
            status = lifecycle.status()
            lifecycle.down()
        assert status is not None and not Path(status.directory).exists()
        assert [pid for server in status.servers for pid in processes.orphaned_processes(Path(server.data_dir))] == []


@pytest.fixture(scope="module")
def newest(lab: Lab) -> str:
    """A Multi-AZ DB cluster of the newest version, with logical replication on and all members in sync."""
    major = MAJORS[-1]
    lab.make_group("newest", f"postgres{major}", rds__logical_replication="1")
    lab.make_cluster("newest", major, DBClusterParameterGroupName="newest")
    return "newest"


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


def fails(code: str, call: Callable[..., Any], **parameters: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    assert caught.value.response["Error"]["Code"] == code, caught.value
    return str(caught.value.response["Error"]["Message"])


# --- the first cluster


def test_the_first_cluster_with_the_default_group(lab: Lab) -> None:
    cluster = lab.cluster("sandbox")
    major = int(lab.report.version.partition(".")[0])
    assert cluster["Status"] == "available" and cluster["MultiAZ"] and cluster["Engine"] == "postgres"
    assert cluster["EngineVersion"] == lab.report.version
    assert cluster["DBClusterParameterGroup"] == f"default.postgres{major}"
    assert lab.members("sandbox") == {"sandbox-instance-1": "in-sync", "sandbox-instance-2": "in-sync"}
    assert (cluster["Endpoint"], cluster["Port"]) == (lab.report.host, lab.report.port)
    options = {"user": "dbadmin", "dbname": "app", "password": None, "passfile": lab.report.passfile}
    assert lab.query(cluster, "SHOW wal_level", **options) == [("replica",)]
    assert lab.query(cluster, "SHOW rds.logical_replication", **options) == [("off",)]
    if sys.platform == "linux":  # other systems have one loopback address, so the endpoints have different ports
        reader = {"Address": cluster["ReaderEndpoint"], "Port": cluster["Port"]}
        assert lab.query(reader, "SELECT pg_is_in_recovery()", **options) == [(True,)]
    for member in lab.members("sandbox"):
        endpoint = lab.instance(member)["Endpoint"]
        standby = lab.query(endpoint, "SELECT pg_is_in_recovery()", **options)[0][0]
        assert standby is (member != lab.writer("sandbox"))


# --- parameter groups


def test_a_group_takes_effect_at_the_reboot_of_each_member(lab: Lab, name: str) -> None:
    major = MAJORS[0]
    lab.make_cluster(name, major)
    lab.make_group(name, f"postgres{major}", rds__logical_replication="1", max_replication_slots="33")
    attached = {"DBClusterParameterGroupName": name, "ApplyImmediately": True}
    answer = lab.rds.modify_db_cluster(DBClusterIdentifier=name, **attached)
    assert answer["DBCluster"]["Status"] == "modifying"
    lab.await_available(name)
    assert lab.cluster(name)["DBClusterParameterGroup"] == name
    assert set(lab.members(name).values()) == {"pending-reboot"}
    assert lab.value(lab.cluster(name), "SHOW wal_level") == "replica"

    answer = lab.rds.reboot_db_cluster(DBClusterIdentifier=name)
    assert answer["DBCluster"]["Status"] == "rebooting"
    assert lab.instance(lab.writer(name))["DBInstanceStatus"] == "available", "its writer does not show it"
    fails("InvalidDBClusterStateFault", lab.rds.reboot_db_cluster, DBClusterIdentifier=name)
    lab.await_available(name)
    writer = lab.writer(name)
    assert {member for member, status in lab.members(name).items() if status == "in-sync"} == {writer}
    assert lab.value(lab.cluster(name), "SHOW wal_level") == "logical"
    assert lab.value(lab.cluster(name), "SHOW rds.logical_replication") == "on"
    assert lab.value(lab.cluster(name), "SHOW max_replication_slots") == "33"

    reader = next(member for member in lab.members(name) if member != writer)
    endpoint = lab.instance(reader)["Endpoint"]
    assert lab.value(endpoint, "SHOW wal_level") == "replica"
    lab.rds.reboot_db_instance(DBInstanceIdentifier=reader)
    lab.ready(reader)
    assert lab.members(name)[reader] == "in-sync"
    assert lab.value(endpoint, "SHOW wal_level") == "logical"
    assert lab.value(endpoint, "SELECT pg_is_in_recovery()")

    fails("InvalidDBParameterGroupState", lab.rds.delete_db_cluster_parameter_group, DBClusterParameterGroupName=name)
    lab.rds.delete_db_cluster(DBClusterIdentifier=name, FinalDBSnapshotIdentifier=f"{name}-last")
    lab.rds.get_waiter("db_cluster_deleted").wait(DBClusterIdentifier=name, WaiterConfig=WAIT)
    fails("DBClusterNotFoundFault", lab.rds.describe_db_clusters, DBClusterIdentifier=name)
    fails("DBInstanceNotFound", lab.rds.describe_db_instances, DBInstanceIdentifier=writer)
    snapshot = lab.rds.describe_db_cluster_snapshots(DBClusterIdentifier=name)["DBClusterSnapshots"][0]
    assert (snapshot["DBClusterSnapshotIdentifier"], snapshot["Status"]) == (f"{name}-last", "available")
    assert not [path for path in Path(lab.report.directory, "servers").iterdir() if path.name.startswith(name)]
    lab.rds.delete_db_cluster_parameter_group(DBClusterParameterGroupName=name)
    lab.rds.delete_db_cluster_snapshot(DBClusterSnapshotIdentifier=f"{name}-last")


def test_dynamic_changes_apply_at_once_and_static_ones_at_the_reboot(lab: Lab, newest: str) -> None:
    def shows(parameter: str, value: str) -> None:
        for member in lab.members(newest):
            endpoint = lab.instance(member)["Endpoint"]
            query = f"SHOW {parameter}"
            assert processes.wait(lambda e=endpoint, q=query: lab.value(e, q) == value, 120.0)  # type: ignore[misc]

    lab.set(newest, max_slot_wal_keep_size="512", rds__force_ssl="0", wal_sender_timeout="20000")
    shows("max_slot_wal_keep_size", "512MB")
    shows("rds.force_ssl", "off")
    shows("wal_sender_timeout", "20s")
    assert set(lab.members(newest).values()) == {"in-sync"}
    lab.rds.reset_db_cluster_parameter_group(
        DBClusterParameterGroupName=newest,
        Parameters=[{"ParameterName": "max_slot_wal_keep_size", "ApplyMethod": "immediate"}],
    )
    shows("max_slot_wal_keep_size", "-1")
    before = lab.value(lab.cluster(newest), "SHOW max_logical_replication_workers")
    lab.set(newest, max_logical_replication_workers="7")
    assert set(lab.members(newest).values()) == {"pending-reboot"}
    assert lab.value(lab.cluster(newest), "SHOW max_logical_replication_workers") == before != "7"
    # A failover restarts the servers, so static changes take effect.
    lab.rds.failover_db_cluster(DBClusterIdentifier=newest)
    lab.await_available(newest)
    assert lab.value(lab.cluster(newest), "SHOW max_logical_replication_workers") == "7"
    lab.reboot_pending_members(newest)


# --- failover


def consumed(lab: Lab, cluster: dict[str, Any], how: str) -> list[str]:
    """Return the inserts (message I) that pgoutput sends from the slot, as text."""
    query = (
        f"SELECT encode(substring(data FROM 14), 'escape') FROM pg_logical_slot_{how}_binary_changes('s', NULL, NULL,"
        " 'proto_version', '1', 'publication_names', 'p') WHERE get_byte(data, 0) = 73"
    )
    return [row[0] for row in lab.query(cluster, query)]


@pytest.mark.parametrize("major", EACH_MAJOR)
def test_logical_slots_survive_three_failovers(lab: Lab, name: str, major: int) -> None:
    lab.make_group(name, f"postgres{major}", rds__logical_replication="1")
    lab.make_cluster(name, major, DBClusterParameterGroupName=name)
    cluster = lab.cluster(name)
    with lab.connect(cluster) as conn:
        conn.execute("CREATE TABLE t (a text PRIMARY KEY)")
        conn.execute("CREATE PUBLICATION p FOR TABLE t")
        conn.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        conn.execute("INSERT INTO t VALUES ('read')")
    assert consumed(lab, cluster, "get") == ["read"]
    unread = ["0"]
    lab.query(cluster, "INSERT INTO t VALUES ('0')")
    seen = {lab.writer(name)}
    for number in range(1, 4):
        old = lab.writer(name)
        answer = lab.rds.failover_db_cluster(DBClusterIdentifier=name)
        assert answer["DBCluster"]["Status"] == "failing-over"
        lab.await_available(name)
        new = lab.writer(name)
        seen.add(new)
        assert new != old and lab.cluster(name)["Port"] == cluster["Port"]
        assert consumed(lab, cluster, "peek") == unread
        unread.append(str(number))
        lab.query(cluster, f"INSERT INTO t VALUES ('{number}')")
        # The old writer is a reader that streams, without logical slots.
        endpoint = lab.instance(old)["Endpoint"]
        assert lab.value(endpoint, "SELECT pg_is_in_recovery()")
        streaming = lab.query(cluster, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
        assert {row[0] for row in streaming} == lab.members(name).keys() - {new}
        query = f"SELECT count(*) FROM t WHERE a = '{number}'"
        assert processes.wait(lambda e=endpoint, q=query: lab.value(e, q) == 1, 120.0)  # type: ignore[misc]
    assert len(seen) > 1
    assert consumed(lab, cluster, "get") == unread
    events = lab.rds.describe_events(SourceIdentifier=name, SourceType="db-cluster", EventCategories=["failover"])
    assert len([one for one in events["Events"] if one["Message"].startswith("Completed failover")]) == 3
    lab.rds.delete_db_cluster(DBClusterIdentifier=name, SkipFinalSnapshot=True)


def test_a_reader_takes_over_from_a_killed_writer_under_load(lab: Lab, newest: str) -> None:
    cluster = lab.cluster(newest)
    with lab.connect(cluster) as conn:
        conn.execute("CREATE TABLE load (a int PRIMARY KEY)")
        conn.execute("CREATE PUBLICATION load FOR TABLE load")
        conn.execute("SELECT pg_create_logical_replication_slot('load', 'pgoutput')")
    committed: list[int] = []

    def work(over: threading.Event) -> None:
        number = 0
        while not over.is_set():
            with suppress(psycopg.Error), lab.connect(cluster) as conn:
                while not over.is_set():
                    number += 1
                    conn.execute("INSERT INTO load VALUES (%s)", [number])
                    committed.append(number)

    with running(work):
        old = lab.writer(newest)
        assert processes.wait(lambda: len(committed) > 200, 120.0)
        assert lab.act("crash", instance=old) == {"crashed": old}
        before = len(committed)
        assert processes.wait(lambda: len(committed) > before + 200, 120.0)
    lab.await_available(newest)
    assert lab.writer(newest) != old
    there = {row[0] for row in lab.query(cluster, "SELECT a FROM load")}
    assert set(committed) <= there
    query = (
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes('load', NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'load') WHERE get_byte(data, 0) = 73"
    )
    assert lab.value(cluster, query) == len(there)
    lab.query(cluster, "SELECT pg_drop_replication_slot('load')")
    assert processes.wait(lambda: bool(lab.server(old).streaming), 120.0)


def test_a_consumer_that_does_not_confirm_does_not_delay_a_failover(lab: Lab, newest: str) -> None:
    cluster = lab.cluster(newest)
    with lab.connect(cluster) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS held (a int)")
        conn.execute("CREATE PUBLICATION held FOR TABLE held")
        conn.execute("SELECT pg_create_logical_replication_slot('held', 'pgoutput')")
    words = {"host": cluster["Endpoint"], "port": cluster["Port"], "user": "boss", "password": PASSWORD}
    conninfo = make_conninfo("", **words, dbname="postgres", replication="database")
    consumer = pq.PGconn.connect(conninfo.encode())
    try:
        consumer.send_query(b"START_REPLICATION SLOT held LOGICAL 0/0 (proto_version '1', publication_names 'held')")
        active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'held'"
        assert processes.wait(lambda: bool(lab.value(cluster, active)), 120.0)
        lab.query(cluster, "INSERT INTO held SELECT generate_series(1, 1000)")
        target = next(member for member in lab.members(newest) if member != lab.writer(newest))
        lab.rds.failover_db_cluster(DBClusterIdentifier=newest, TargetDBInstanceIdentifier=target)
        lab.await_available(newest)
    finally:
        consumer.finish()
    assert lab.writer(newest) == target
    assert lab.value(cluster, active) is False
    lab.query(cluster, "SELECT pg_drop_replication_slot('held')")


def test_a_failover_applies_lower_limits(lab: Lab, newest: str) -> None:
    old = lab.writer(newest)
    lab.set(newest, max_connections="60")
    lab.rds.failover_db_cluster(DBClusterIdentifier=newest)
    lab.await_available(newest)
    # With fewer connections than the WAL requires, neither server could run as a standby.
    assert lab.writer(newest) != old
    assert lab.value(lab.cluster(newest), "SHOW max_connections") == "60"
    assert lab.value(lab.instance(old)["Endpoint"], "SHOW max_connections") == "60"
    assert processes.wait(lambda: bool(lab.server(old).streaming), 120.0)
    lab.reboot_pending_members(newest)


def test_a_dead_reader_is_restarted(lab: Lab, newest: str) -> None:
    reader = next(member for member in lab.members(newest) if member != lab.writer(newest))
    lab.act("crash", instance=reader)
    assert processes.wait(lambda: bool(lab.server(reader).streaming), 120.0)
    assert lab.writer(newest) != reader


@dataclass
class RecordedActions:
    """Which servers run, and what the supervisor has done; the processes themselves have no part in its decisions."""

    entries: state.State
    running: set[str]
    done: list[tuple[str, ...]] = field(default_factory=list)

    def state(self) -> state.State:
        return self.entries

    def is_running(self, identifier: str) -> bool:
        return identifier in self.running

    def lock(self, _family: str) -> threading.RLock:
        return threading.RLock()

    family_lock = lock

    def server(self, identifier: str) -> Any:
        return SimpleNamespace(exists=lambda: True, is_running=lambda: self.is_running(identifier))

    def start(self, identifier: str) -> bool:
        self.done.append(("start", identifier))
        return True

    def fail_over(self, cluster: str, target: str) -> None:
        self.done.append(("fail over", cluster, target))


@pytest.mark.parametrize(
    ("running", "done"),
    [
        # The writer died after the poll checked its cluster: the next poll fails over.
        ({"two"}, [("fail over", "books", "two")]),
        # No reader can take over: the writer is started again, and the reader as well.
        (set(), [("start", "two"), ("start", "one")]),
        ({"one"}, [("start", "two")]),
    ],
)
def test_a_dead_writer_is_not_started_when_a_reader_can_take_over(
    tmp_path: Path, running: set[str], done: list[tuple[str, ...]]
) -> None:
    entries = [state.ServerState("one", "", (16, 1), cluster="books"), state.ServerState("two", "", (16, 1), "books")]
    entries[1] = replace(entries[1], source="one")
    records = Records(Store(None))
    cluster = Cluster("books", "postgres", "16.1", "admin", "cluster-1", "default", "", status="available")
    records.put(cluster)
    for entry in entries:
        record = Instance(
            entry.name, "postgres", "16.1", CLASS, "admin", f"db-{entry.name}", "a", "default", "default", ""
        )
        records.put(replace(record, status="available", cluster="books"))
    home = directory.SandboxDirectory(tmp_path)
    actions = RecordedActions(state.State("ready", "", (16, 1), "", "", "", "", False, tuple(entries)), running)
    supervisor = Supervisor(SimpleNamespace(actions=actions, records=records, home=home))  # type: ignore[arg-type]
    for entry in reversed(entries):
        supervisor._check_instance(records.get(Instance, entry.name))
    supervisor._check_cluster("books")
    assert actions.done == done
    assert records.get(Cluster, "books").status == "available"


def test_saved_slots_are_read_from_disk(lab: Lab, newest: str) -> None:
    cluster = lab.cluster(newest)
    with lab.connect(cluster) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('on_disk', 'pgoutput')")
        query = (
            "SELECT pg_wal_lsn_diff(restart_lsn, '0/0')::bigint FROM pg_replication_slots WHERE slot_name = 'on_disk'"
        )
        restart_lsn = conn.execute(query).fetchone()
        saved = failover.saved_slots(Path(lab.server(lab.writer(newest)).data_dir))
        conn.execute("SELECT pg_drop_replication_slot('on_disk')")
    assert restart_lsn is not None
    # Without the physical slots of the readers.
    assert [(slot.name, slot.restart_lsn) for slot in saved] == [("on_disk", restart_lsn[0])]


# --- instances and read replicas


def test_read_replicas_apply_limits_in_the_order_that_postgresql_requires(lab: Lab, name: str) -> None:
    major, replica = MAJORS[0], f"{name}-replica"
    lab.make_group(name, f"postgres{major}", "instance", rds__logical_replication="1")
    lab.rds.create_db_instance(**single(name, major), DBParameterGroupName=name)
    lab.ready(name)
    source_of = {"DBInstanceIdentifier": replica, "SourceDBInstanceIdentifier": name}
    fails(
        "InvalidParameterCombination",
        lab.rds.create_db_instance_read_replica,
        **source_of,
        DBParameterGroupName=name,
    )
    made = lab.rds.create_db_instance_read_replica(DBInstanceIdentifier=replica, SourceDBInstanceIdentifier=name)
    assert made["DBInstance"]["ReadReplicaSourceDBInstanceIdentifier"] == name
    lab.ready(replica)
    assert lab.instance(name)["ReadReplicaDBInstanceIdentifiers"] == [replica]
    source, copy = lab.instance(name)["Endpoint"], lab.instance(replica)["Endpoint"]
    assert lab.value(source, "SHOW wal_level") == "logical"
    assert lab.value(copy, "SELECT pg_is_in_recovery()")
    slots = {row[0] for row in lab.query(source, "SELECT slot_name FROM pg_replication_slots")}
    resource = lab.instance(replica)["DbiResourceId"].removeprefix("db-").lower()
    assert slots == {f"rds_{lab.report.region.replace('-', '_')}_db_{resource}"}

    # The replica first: its limit would be lower than that of its source.
    lab.set(name, "instance", max_connections="90")
    status = lab.instance(replica)["DBParameterGroups"]
    assert status == [{"DBParameterGroupName": name, "ParameterApplyStatus": "pending-reboot"}]
    lab.rds.reboot_db_instance(DBInstanceIdentifier=replica)
    refused = "incompatible-parameters"
    assert processes.wait(lambda: lab.instance(replica)["DBInstanceStatus"] == refused, 120.0)
    # The source first, then the replica.
    lab.rds.reboot_db_instance(DBInstanceIdentifier=name)
    lab.ready(name)
    assert lab.value(source, "SHOW max_connections") == "90"
    lab.set(name, "instance", max_connections="100")
    lab.rds.reboot_db_instance(DBInstanceIdentifier=replica)
    lab.ready(replica)
    assert lab.value(copy, "SHOW max_connections") == "100"
    assert processes.wait(lambda: bool(lab.server(replica).streaming), 120.0)

    lab.rds.promote_read_replica(DBInstanceIdentifier=replica)
    lab.ready(replica)
    assert lab.value(copy, "SELECT pg_is_in_recovery()") is False
    assert lab.instance(name)["ReadReplicaDBInstanceIdentifiers"] == []
    assert lab.query(source, "SELECT slot_name FROM pg_replication_slots") == []
    last = f"{name}-last"
    lab.rds.delete_db_instance(DBInstanceIdentifier=name, FinalDBSnapshotIdentifier=last)
    lab.rds.delete_db_instance(DBInstanceIdentifier=replica, SkipFinalSnapshot=True)
    for gone in (name, replica):
        lab.rds.get_waiter("db_instance_deleted").wait(DBInstanceIdentifier=gone, WaiterConfig=WAIT)
    assert lab.rds.describe_db_snapshots(DBSnapshotIdentifier=last)["DBSnapshots"][0]["Status"] == "available"
    fails("DBSnapshotNotFound", lab.rds.describe_db_snapshots, DBSnapshotIdentifier="none")


SYNCED = "SELECT coalesce(bool_and(synced AND NOT temporary), false) FROM pg_replication_slots WHERE slot_name = 'kept'"
SLOTS = "SELECT slot_name, synced, temporary FROM pg_replication_slots ORDER BY 1"


def test_a_replica_synchronizes_slots_as_its_group_says_and_keeps_them_when_it_is_promoted(lab: Lab, name: str) -> None:
    """It also tests how a standby is made to fall behind, and to lose its connection."""
    if MAJORS[-1] < 17:
        missing("PostgreSQL 17 or later", "pip install -e '.[sandbox]'")
    replica = f"{name}-replica"
    lab.make_group(name, f"postgres{MAJORS[-1]}", "instance", rds__logical_replication="1")
    lab.rds.create_db_instance(**single(name, MAJORS[-1]), DBParameterGroupName=name)
    lab.ready(name)
    lab.rds.create_db_instance_read_replica(DBInstanceIdentifier=replica, SourceDBInstanceIdentifier=name)
    lab.ready(replica)
    source, copy = lab.instance(name)["Endpoint"], lab.instance(replica)["Endpoint"]
    for parameter, default in {"sync_replication_slots": "off", "hot_standby_feedback": "off"}.items():
        assert lab.value(copy, f"SHOW {parameter}") == default
    assert "dbname='postgres'" in lab.value(copy, "SHOW primary_conninfo")
    lab.value(source, "SELECT pg_create_logical_replication_slot('kept', 'pgoutput', false, false, true) IS NOT NULL")

    # It synchronizes with a database that exists, and only then.
    lab.set(name, "instance", sync_replication_slots="1", hot_standby_feedback="1", rds__logical_slot_sync_dbname="no")
    assert lab.instance(replica)["DBParameterGroups"][0]["ParameterApplyStatus"] == "in-sync"
    log = Path(lab.server(replica).log_file)
    assert processes.wait(lambda: 'database "no" does not exist' in log.read_text(), 60.0)
    assert lab.query(copy, SLOTS) == []
    lab.set(name, "instance", rds__logical_slot_sync_dbname="postgres")

    def is_synced() -> bool:
        lab.value(source, "SELECT pg_logical_emit_message(true, 'x', '') IS NOT NULL")
        lab.value(source, "SELECT pg_replication_slot_advance('kept', pg_current_wal_lsn()) IS NOT NULL")
        log_standby_snapshot(name)
        return bool(lab.value(copy, SYNCED))

    assert processes.wait(is_synced, 60.0, 0.5)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):  # AWS documents no right to call it
        lab.query(source, "SELECT pg_log_standby_snapshot()")

    # A slot of its own needs a snapshot that the primary logs.
    make = "SELECT pg_create_logical_replication_slot('own', 'pgoutput')"
    maker = threading.Thread(target=lab.query, args=(copy, make))
    maker.start()
    assert processes.wait(lambda: log_standby_snapshot(name) and not maker.is_alive(), 60.0, 0.2)
    assert lab.query(copy, SLOTS) == [("kept", True, False), ("own", False, False)]

    # It can fall behind, and lose its connection.
    lab.act("standby", instance=replica, replays=False)
    lsn = lab.value(source, "SELECT pg_logical_emit_message(true, 'x', 'y')::text")
    received = f"SELECT pg_last_wal_receive_lsn() >= '{lsn}', pg_last_wal_replay_lsn() >= '{lsn}'"
    assert processes.wait(lambda: lab.query(copy, received) == [(True, False)], 60.0)
    lab.act("standby", instance=replica, replays=True)
    assert processes.wait(lambda: lab.query(copy, received) == [(True, True)], 60.0)
    lab.act("standby", instance=replica, streams=False)
    assert lab.query(copy, "SELECT FROM pg_stat_wal_receiver") == []
    with pytest.raises(urllib.error.HTTPError):
        lab.act("standby", instance=name, streams=False)
    lab.act("standby", instance=replica, streams=True)

    started = lab.value(copy, "SELECT pg_postmaster_start_time()")
    lab.rds.promote_read_replica(DBInstanceIdentifier=replica)
    lab.ready(replica)
    assert lab.value(copy, "SELECT pg_is_in_recovery()") is False
    assert lab.value(copy, "SELECT pg_postmaster_start_time()") > started, "RDS restarts it"
    assert {row[0] for row in lab.query(copy, SLOTS)} == {"kept", "own"}
    lab.query(copy, "CREATE TABLE public.a_new_timeline ()")
    lab.query(source, "CREATE TABLE public.the_old_primary_goes_on ()")
    assert {row[0] for row in lab.query(source, SLOTS)} == {"kept"}


def log_standby_snapshot(instance: str) -> bool:
    """Log a snapshot as the superuser of the sandbox; always true."""
    home = directory.SandboxDirectory(Path(os.environ["RDSREPL_SANDBOX_DIR"]))
    now = home.read()
    entry = now.server(instance) if now is not None else None
    assert now is not None and entry is not None
    with closing(server_registry.server(home, now, entry).administer()) as conn:
        conn.execute("SELECT pg_log_standby_snapshot()")
    return True


def test_an_instance_is_modified_now_or_later(lab: Lab, name: str) -> None:
    lab.rds.create_db_instance(**single(name, MAJORS[0]), MultiAZ=True, DBName="shop")
    lab.ready(name)
    endpoint = lab.instance(name)["Endpoint"]
    assert lab.query(endpoint, "SELECT current_database()", dbname="shop") == [("shop",)]
    lab.rds.modify_db_instance(DBInstanceIdentifier=name, AllocatedStorage=40)
    lab.ready(name)
    assert lab.instance(name)["PendingModifiedValues"] == {"AllocatedStorage": 40}
    lab.rds.modify_db_instance(
        DBInstanceIdentifier=name, MasterUserPassword="another-one-2", DeletionProtection=True, ApplyImmediately=True
    )
    lab.ready(name)
    assert lab.instance(name)["AllocatedStorage"] == 40 and lab.instance(name)["PendingModifiedValues"] == {}
    assert lab.query(endpoint, "SELECT 1", password="another-one-2") == [(1,)]
    zone = lab.instance(name)["AvailabilityZone"]
    lab.rds.reboot_db_instance(DBInstanceIdentifier=name, ForceFailover=True)
    lab.ready(name)
    assert lab.instance(name)["AvailabilityZone"] != zone
    fails(
        "InvalidParameterCombination",
        lab.rds.delete_db_instance,
        DBInstanceIdentifier=name,
        SkipFinalSnapshot=True,
    )
    lab.rds.modify_db_instance(DBInstanceIdentifier=name, DeletionProtection=False)
    lab.ready(name)
    lab.rds.delete_db_instance(DBInstanceIdentifier=name, SkipFinalSnapshot=True)


def test_aurora(lab: Lab, name: str) -> None:
    major = MAJORS[-1]
    lab.make_group(name, f"aurora-postgresql{major}", rds__logical_replication="1")
    base = {"DBClusterIdentifier": name, "Engine": "aurora-postgresql", "EngineVersion": str(major)}
    lab.rds.create_db_cluster(
        **base, MasterUsername="boss", MasterUserPassword=PASSWORD, DBClusterParameterGroupName=name
    )
    lab.await_available(name)
    assert lab.cluster(name)["DBClusterMembers"] == []
    for number in (1, 2):
        lab.rds.create_db_instance(
            DBInstanceIdentifier=f"{name}-{number}",
            DBClusterIdentifier=name,
            Engine="aurora-postgresql",
            DBInstanceClass=AURORA_CLASS,
        )
        lab.ready(f"{name}-{number}")
    cluster = lab.cluster(name)
    assert lab.value(cluster, "SHOW wal_level") == "logical"
    assert lab.writer(name) == f"{name}-1"
    fails("InvalidParameterCombination", lab.rds.reboot_db_cluster, DBClusterIdentifier=name)
    lab.query(cluster, "CREATE TABLE t AS SELECT 1 AS a")
    lab.rds.failover_db_cluster(DBClusterIdentifier=name)
    lab.await_available(name)
    assert lab.writer(name) == f"{name}-2"
    assert lab.value(cluster, "SELECT a FROM t") == 1
    fails("InvalidDBClusterStateFault", lab.rds.delete_db_cluster, DBClusterIdentifier=name, SkipFinalSnapshot=True)
    lab.rds.delete_db_instance(DBInstanceIdentifier=f"{name}-2")  # the writer, so the other member takes over first
    lab.rds.get_waiter("db_instance_deleted").wait(DBInstanceIdentifier=f"{name}-2", WaiterConfig=WAIT)
    lab.await_available(name)
    assert lab.writer(name) == f"{name}-1" and lab.value(cluster, "SELECT a FROM t") == 1
    lab.rds.delete_db_instance(DBInstanceIdentifier=f"{name}-1")
    lab.rds.get_waiter("db_instance_deleted").wait(DBInstanceIdentifier=f"{name}-1", WaiterConfig=WAIT)
    lab.rds.delete_db_cluster(DBClusterIdentifier=name, SkipFinalSnapshot=True)
    lab.rds.get_waiter("db_cluster_deleted").wait(DBClusterIdentifier=name, WaiterConfig=WAIT)


# --- secrets, metrics, regions, filters


def test_the_master_secret_contains_the_password(lab: Lab, name: str) -> None:
    wanted = single(name, MAJORS[0])
    del wanted["MasterUserPassword"]
    lab.rds.create_db_instance(**wanted, ManageMasterUserPassword=True)
    lab.ready(name)
    instance = lab.instance(name)
    assert instance["MasterUserSecret"]["SecretStatus"] == "active"
    arn = instance["MasterUserSecret"]["SecretArn"]
    secret = json.loads(lab.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"])
    assert secret.keys() == {"username", "password"}
    login = {"user": secret["username"], "password": secret["password"]}
    assert lab.query(instance["Endpoint"], "SELECT current_user", **login) == [("boss",)]
    replica = {"DBInstanceIdentifier": f"{name}-r", "SourceDBInstanceIdentifier": name}
    refusal = fails("InvalidParameterValue", lab.rds.create_db_instance_read_replica, **replica)
    assert "where ManageMasterUserPassword is enabled is not supported" in refusal
    lab.rds.delete_db_instance(DBInstanceIdentifier=name, SkipFinalSnapshot=True)


def test_metrics_are_measured(lab: Lab, newest: str) -> None:
    cloudwatch, writer = lab.client("cloudwatch"), lab.writer(newest)

    def metric(name: str) -> float:
        now = datetime.now(UTC)
        points = cloudwatch.get_metric_statistics(
            Namespace="AWS/RDS",
            MetricName=name,
            Dimensions=[{"Name": "DBInstanceIdentifier", "Value": writer}],
            StartTime=now - timedelta(minutes=10),
            EndTime=now + timedelta(minutes=1),
            Period=600,
            Statistics=["Minimum"],
        )["Datapoints"]
        return float(min(point["Minimum"] for point in points))

    free, wal = metric("FreeStorageSpace"), metric("TransactionLogsDiskUsage")
    assert 90 * 2**30 < free < 100 * 2**30
    assert 16 * 2**20 <= wal < 2 * 2**30
    assert metric("OldestReplicationSlotLag") >= 0 and metric("MaximumUsedTransactionIDs") > 0


def test_another_region_has_no_servers(lab: Lab) -> None:
    elsewhere = lab.client("rds", region="ap-south-1")
    assert elsewhere.describe_db_clusters()["DBClusters"] == elsewhere.describe_db_instances()["DBInstances"] == []
    fails("DBClusterNotFoundFault", elsewhere.describe_db_clusters, DBClusterIdentifier="sandbox")


def test_clusters_are_filtered_and_found_by_arn(lab: Lab, newest: str) -> None:
    arn = lab.cluster(newest)["DBClusterArn"]
    assert lab.cluster(arn)["DBClusterIdentifier"] == newest
    filters = [{"Name": "db-cluster-id", "Values": [newest]}]
    found = lab.rds.describe_db_instances(Filters=filters)["DBInstances"]
    assert {one["DBInstanceIdentifier"] for one in found} == lab.members(newest).keys()
    assert all(one["DBClusterIdentifier"] == newest for one in found)
    wrong = [{"Name": "colour", "Values": ["red"]}]
    fails("InvalidParameterValue", lab.rds.describe_db_clusters, Filters=wrong)


# --- refusals


def test_refused_cluster_requests(lab: Lab, newest: str, name: str) -> None:
    create, major = lab.rds.create_db_cluster, MAJORS[-1]
    good = multi_az(name, major)
    lab.make_group(name, "postgres13")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("InvalidParameterValue", {"DBClusterIdentifier": "1-bad"}),
        ("InvalidParameterValue", {"DBClusterIdentifier": "bad--name"}),
        ("InvalidParameterValue", {"DBClusterIdentifier": "a" * 53}),
        ("DBClusterAlreadyExistsFault", {"DBClusterIdentifier": newest.upper()}),
        ("InvalidParameterValue", {"Engine": "oracle-ee"}),
        ("InvalidParameterCombination", {"EngineVersion": "9.6"}),
        ("InvalidParameterCombination", {"EngineVersion": "13"}),
        ("InvalidParameterCombination", {"DBClusterInstanceClass": "db.t3.medium"}),
        ("InvalidParameterValue", {"DBClusterInstanceClass": "db.huge"}),
        ("InvalidParameterValue", {"AllocatedStorage": 5}),
        ("InvalidParameterValue", {"MasterUserPassword": "short"}),
        ("InvalidParameterValue", {"MasterUsername": "rdsadmin"}),
        ("InvalidParameterCombination", {"ManageMasterUserPassword": True}),
        ("DBClusterParameterGroupNotFound", {"DBClusterParameterGroupName": "missing"}),
        ("InvalidParameterCombination", {"DBClusterParameterGroupName": name}),
        ("DBSubnetGroupNotFoundFault", {"DBSubnetGroupName": "nowhere"}),
    ]
    for code, change in cases:
        fails(code, create, **{**good, **change})
    fails("InvalidParameterCombination", create, **{k: v for k, v in good.items() if k != "Iops"})
    assert "9.6" in fails("InvalidParameterCombination", create, **{**good, "EngineVersion": "9.6"})
    modify, wrong = lab.rds.modify_db_cluster, {"DBClusterParameterGroupName": name}
    fails("InvalidParameterCombination", modify, DBClusterIdentifier=newest, **wrong)
    fails("DBClusterNotFoundFault", modify, DBClusterIdentifier="missing")
    fails("DBClusterNotFoundFault", lab.rds.failover_db_cluster, DBClusterIdentifier="missing")
    failing = {"DBClusterIdentifier": newest, "TargetDBInstanceIdentifier": "sandbox-instance-1"}
    fails("InvalidParameterValue", lab.rds.failover_db_cluster, **failing)
    delete = lab.rds.delete_db_cluster
    fails("InvalidParameterCombination", delete, DBClusterIdentifier=newest)
    lab.rds.create_db_cluster_snapshot(DBClusterIdentifier=newest, DBClusterSnapshotIdentifier=name)
    fails("DBClusterSnapshotAlreadyExistsFault", delete, DBClusterIdentifier=newest, FinalDBSnapshotIdentifier=name)
    modify(DBClusterIdentifier=newest, DeletionProtection=True)
    lab.await_available(newest)
    fails("InvalidParameterCombination", delete, DBClusterIdentifier=newest, SkipFinalSnapshot=True)
    modify(DBClusterIdentifier=newest, DeletionProtection=False)
    lab.await_available(newest)


def test_refused_instance_requests(lab: Lab, newest: str, name: str) -> None:
    member = lab.writer(newest)
    rds, good = lab.rds, single(name, MAJORS[0])
    fails("DBInstanceAlreadyExists", rds.create_db_instance, **{**good, "DBInstanceIdentifier": member})
    fails("InvalidParameterCombination", rds.create_db_instance, **{**good, "Engine": "aurora-postgresql"})
    fails("DBParameterGroupNotFound", rds.create_db_instance, **good, DBParameterGroupName="missing")
    fails("DBClusterNotFoundFault", rds.create_db_instance, **{**good, "DBClusterIdentifier": "missing"})
    default = f"default.postgres{MAJORS[-1]}"
    refusal = fails(
        "InvalidParameterCombination",
        rds.modify_db_instance,
        DBInstanceIdentifier=member,
        DBParameterGroupName=default,
    )
    assert newest in refusal
    fails("InvalidDBInstanceState", rds.delete_db_instance, DBInstanceIdentifier=member, SkipFinalSnapshot=True)
    fails("InvalidDBInstanceState", rds.promote_read_replica, DBInstanceIdentifier=member)
    fails("DBInstanceNotFound", rds.reboot_db_instance, DBInstanceIdentifier="missing")
    fails("InvalidParameterCombination", rds.reboot_db_instance, DBInstanceIdentifier=member, ForceFailover=True)
    replica = {"DBInstanceIdentifier": name, "SourceDBInstanceIdentifier": member}
    fails("InvalidDBInstanceState", rds.create_db_instance_read_replica, **replica)


def test_the_quota_counts_every_instance(tmp_path: Path) -> None:
    from rdsrepl.sandbox.api.api_errors import Fault
    from rdsrepl.sandbox.api.operations import checks

    records = Records(Store(tmp_path / "aws.json"))
    for number in range(checks.MAX_INSTANCES - 1):
        group = "default.postgres16"
        records.put(
            Instance(
                f"i-{number}", "postgres", "16.14", CLASS, "boss", "db-X", "z", group, group, "2026-01-01T00:00:00"
            )
        )
    checks.check_quota(records, 1)
    with pytest.raises(Fault) as caught:
        checks.check_quota(records, 2)
    assert caught.value.code == "InstanceQuotaExceeded"
    assert records.find(Cluster, "none") is None


def test_a_restarted_api_has_its_records_and_servers(lab: Lab, newest: str) -> None:
    status = lifecycle.status()
    assert status is not None and status.api_pid is not None
    before = lab.cluster(newest)
    os.kill(status.api_pid, 9)
    assert processes.wait(lambda: processes.start_time(status.api_pid or 0) is None, 120.0)
    assert lifecycle.up().endpoint_url == lab.report.endpoint_url
    after = lab.cluster(newest)
    moving = ("LatestRestorableTime",)
    assert {k: v for k, v in after.items() if k not in moving} == {k: v for k, v in before.items() if k not in moving}
    time.sleep(0.5)
    assert set(lab.members(newest).values()) <= {"in-sync", "pending-reboot"}


def test_down_after_the_api_was_killed_during_a_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RDSREPL_SANDBOX_DIR", str(tmp_path / "sandbox"))
    servers = tmp_path / "sandbox" / "servers"
    for wanted in ("half-instance-1/PG_VERSION", "half-instance-2/PG_VERSION", "half-instance-3/postmaster.pid"):
        report = lifecycle.up(standby=False)
        assert report.api_pid is not None
        Lab(report).rds.create_db_cluster(**multi_az("half", MAJORS[0]))
        assert processes.wait((servers / wanted).exists, 120.0)
        os.kill(report.api_pid, 9)
        status = lifecycle.status()
        assert status is not None
        sockets = Path(json.loads((tmp_path / "sandbox" / "state.json").read_text())["socket_dir"])
        lifecycle.down()
        assert not (tmp_path / "sandbox").exists() and not sockets.exists()
        assert [pid for one in status.servers for pid in processes.orphaned_processes(Path(one.data_dir))] == []


def test_an_interrupted_failover_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RDSREPL_SANDBOX_DIR", str(tmp_path / "sandbox"))
    try:
        report = lifecycle.up()
        assert report.api_pid is not None
        os.kill(report.api_pid, 9)
        assert processes.wait(lambda: processes.start_time(report.api_pid or 0) is None, 120.0)
        # The state between the promotion and the change of the state file.
        home = directory.directory()
        now = home.read()
        assert now is not None
        first, second = now.members("sandbox")
        server_registry.server(home, now, first).stop("immediate")
        server_registry.server(home, now, second).promote()
        records = Records(Store(home.aws_file))
        with records.edit(Cluster, "sandbox") as cluster:
            cluster.status = "failing-over"
        lab = Lab(lifecycle.up())
        lab.await_available("sandbox")
        assert lab.writer("sandbox") == second.name
        assert processes.wait(lambda: bool(lab.server(first.name).streaming), 120.0)
        options = {"user": "dbadmin", "dbname": "app", "password": None, "passfile": report.passfile}
        assert lab.query(lab.cluster("sandbox"), "SELECT pg_is_in_recovery()", **options) == [(False,)]
    finally:
        lifecycle.down()


def test_the_first_cluster_can_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RDSREPL_SANDBOX_DIR", str(tmp_path / "sandbox"))
    try:
        lab = Lab(lifecycle.up(standby=False))
        lab.rds.delete_db_cluster(DBClusterIdentifier="sandbox", SkipFinalSnapshot=True)
        lab.rds.get_waiter("db_cluster_deleted").wait(DBClusterIdentifier="sandbox", WaiterConfig=WAIT)
        again = lifecycle.up()
        assert (again.state, again.port, again.clusters, again.servers) == ("running", 0, (), ())
        assert again.endpoint_url == lab.report.endpoint_url
    finally:
        assert lifecycle.down().target_removed
