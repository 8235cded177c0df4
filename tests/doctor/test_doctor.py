"""Doctor: each check with invented facts, healthy and unhealthy; all checks with real servers and the sandbox."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rdsrepl.aws import metrics
from rdsrepl.aws.parameter_groups import Parameter
from rdsrepl.config import Aws
from rdsrepl.doctor import check_list, findings
from rdsrepl.doctor.facts import OLD_TRANSACTION_SECONDS, Facts, Member, Planned, RdsResource
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import activity, subscriptions
from rdsrepl.postgres.activity import Sender, ServerInfo, Transaction
from rdsrepl.postgres.failover_servers import FailoverServer
from rdsrepl.postgres.publication_checks import PublicationFacts, TableFacts
from rdsrepl.postgres.roles import Role
from rdsrepl.postgres.settings import Setting
from rdsrepl.postgres.slots import Slot, Walsender
from rdsrepl.postgres.subscriptions import Subscription
from tests import ROOT
from tests.fixtures import builders, readiness
from tests.fixtures.postgres import VERSIONS

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database, Servers
    from tests.fixtures.program import Program
    from tests.fixtures.sandbox import Cloud as SandboxCloud

NOW = datetime(2026, 11, 21, 3, tzinfo=UTC)
DOCS = ROOT / "docs" / "doctor.md"
MIB, GIB = 1 << 20, 1 << 30

SERVER = ServerInfo(
    version="17.5",
    major=17,
    flavour="rds",
    in_recovery=False,
    database="app",
    user="dba",
    tls=True,
    local=False,
    sees_sessions=True,
    sees_settings=True,
    now=NOW,
)
VALUES = {
    "autovacuum_freeze_max_age": "200000000",
    "autovacuum_max_workers": "3",
    "hot_standby_feedback": "on",
    "max_logical_replication_workers": "12",
    "max_parallel_workers": "8",
    "max_replication_slots": "20",
    "max_slot_wal_keep_size": "51200",
    "max_sync_workers_per_subscription": "2",
    "max_wal_senders": "20",
    "max_worker_processes": "32",
    "rds.force_ssl": "on",
    "rds.logical_replication": "on",
    "wal_level": "logical",
    "wal_receiver_timeout": "30000",
    "wal_sender_timeout": "30000",
}
POSTMASTER = {name for name in VALUES if name.startswith("max_")} - {
    "max_slot_wal_keep_size",
    "max_sync_workers_per_subscription",
    "max_parallel_workers",
}


def setting(name: str, value: str, *, pending: bool = False, unit: str | None = None) -> Setting:
    context = "postmaster" if name in POSTMASTER | {"wal_level"} else "sighup"
    return Setting(name, value, unit, context, pending, "configuration file")


def slot(name: str = "cdc", **columns: Any) -> Slot:
    """Return a slot whose consumer has confirmed all changes."""
    active = {
        "active": True,
        "active_pid": 42,
        "inactive_since": None,
        "walsender": Walsender(42, "cdc", "debezium", "10.0.0.1:5", "streaming"),
        "restart_lsn": Lsn(1000),
        "confirmed_flush_lsn": Lsn(2000),
        "wal_status": "reserved",
        "safe_wal_size": 40 * GIB,
        "failover": True,
        "retained_bytes": MIB,
        "lag_bytes": 0,
    }
    return builders.slot(name, **{**active, **columns})


def idle(name: str = "cdc", **columns: Any) -> Slot:
    return slot(name, active=False, active_pid=None, walsender=None, **columns)


def between(problem: str | None = None) -> tuple[FailoverServer, tuple[FailoverServer, ...]]:
    """Return a primary and its replica with one problem."""
    pair = readiness.ready_pair()
    if problem is not None:
        pair = {**readiness.CRITICAL, **readiness.WARNINGS}[problem](pair)
    return pair[0], (pair[1],)


def physical(name: str = "rds_eu_west_1_db_a", **columns: Any) -> Slot:
    columns = {"plugin": None, "failover": None, "xmin": "800", "lag_bytes": None, "active_pid": 43, **columns}
    return slot(name, slot_type="physical", database=None, datoid=None, confirmed_flush_lsn=None, **columns)


def sender(pid: int = 42, **columns: Any) -> Sender:
    return replace(Sender(pid, "cdc", "debezium", "streaming", 0, 0, "cdc", "logical"), **columns)


def role(name: str, *reasons: str, **columns: Any) -> Role:
    made = Role(name, False, True, False, False, True, False, False, -1, None, bool(reasons), reasons)
    return replace(made, **columns)


def parameter(name: str, value: str | None, apply_type: str = "static") -> Parameter:
    return Parameter(name, value, apply_type, "pending-reboot", "integer", None, True, "user", "", None)


CLUSTER = RdsResource(
    identifier="orders",
    kind="cluster",
    topology="multi_az_cluster",
    engine_version="17.5",
    status="available",
    parameter_group="orders-logical",
    members=tuple(
        Member(f"orders-{number}", number == 1, "available", "in-sync", "db.r6gd.large") for number in (1, 2, 3)
    ),
    allocated_storage_gib=200,
)
INSTANCE = replace(
    CLUSTER,
    kind="instance",
    topology="instance",
    members=(Member("orders", True, "available", "in-sync", "db.r6g.large"),),
    replicas=("orders-replica",),
)
AURORA = replace(CLUSTER, topology="aurora", allocated_storage_gib=0)
PARAMETERS = {
    name: parameter(name, value, "static" if name in POSTMASTER else "dynamic") for name, value in VALUES.items()
} | {"rds.logical_replication": parameter("rds.logical_replication", "1")}
PUBLICATION = PublicationFacts(
    "shop", False, True, True, True, True, False, False, (TableFacts("public.t", identity_columns=("id",)),)
)
HEALTHY = Facts(
    label="orders",
    server=SERVER,
    settings={name: setting(name, value) for name, value in VALUES.items()},
    slots=(slot(), physical("rds_a"), physical("rds_b")),
    senders=(sender(), sender(43, slot="rds_a", slot_type="physical"), sender(44, slot="rds_b", slot_type="physical")),
    transactions=(),
    roles=(role("dba", "member of rds_replication through rds_superuser"), role("cdc", "member of rds_replication")),
    publications=(PUBLICATION,),
    subscriptions=(),
    rds=CLUSTER,
    parameters=PARAMETERS,
    metrics={"FreeStorageSpace": 150.0 * GIB, "MaximumUsedTransactionIDs": 1e6},
)
SQL_ONLY = replace(
    HEALTHY,
    rds=None,
    parameters=None,
    metrics=None,
    server=replace(SERVER, flavour="postgresql"),
    missing=dict.fromkeys(("rds", "parameters", "metrics"), "no cluster or instance is named"),
)
AWS_ONLY = Facts(
    label="orders",
    rds=CLUSTER,
    parameters=PARAMETERS,
    metrics=HEALTHY.metrics,
    missing={"server": "the database cannot be reached: timeout expired"},
    remedies={"server": "check the security group"},
)
ON_INSTANCE = replace(HEALTHY, rds=INSTANCE)
STANDBY = replace(SQL_ONLY, server=replace(SERVER, flavour="postgresql", in_recovery=True), slots=())


def having(facts: Facts = HEALTHY, **values: str) -> Facts:
    """Return the facts with other settings; ``__`` in a name is a dot."""
    changed = {name.replace("__", "."): value for name, value in values.items()}
    made = {name: setting(name, value) for name, value in changed.items()}
    return replace(facts, settings={**(facts.settings or {}), **made})


def limited(facts: Facts = HEALTHY, **values: str) -> Facts:
    """Return the facts with other settings, in the group and on the server."""
    group = {name: parameter(name, value) for name, value in values.items()}
    return replace(having(facts, **values), parameters={**(facts.parameters or {}), **group})


def member_status(group_status: str, facts: Facts = HEALTHY) -> Facts:
    assert facts.rds
    members = tuple(replace(m, group_status=group_status) if m.is_writer else m for m in facts.rds.members)
    return replace(facts, rds=replace(facts.rds, members=members))


def default_group(facts: Facts = HEALTHY, *, on: str = "0") -> Facts:
    assert facts.rds
    values = {**PARAMETERS, "rds.logical_replication": parameter("rds.logical_replication", on)}
    return replace(facts, rds=replace(facts.rds, parameter_group="default.postgres17"), parameters=values)


def group_value(name: str, value: str | None, facts: Facts = HEALTHY) -> Facts:
    return replace(facts, parameters={**PARAMETERS, name: parameter(name, value, PARAMETERS[name].apply_type)})


def old_version(version: str, topology: Any, facts: Facts = HEALTHY) -> Facts:
    return replace(facts, rds=replace(CLUSTER, engine_version=version, topology=topology))


def major(number: int, facts: Facts = HEALTHY) -> Facts:
    assert facts.server
    server = replace(facts.server, major=number, version=f"{number}.4")
    return replace(facts, server=server, rds=facts.rds and replace(facts.rds, engine_version=f"{number}.4"))


def subscribed(*columns: dict[str, Any], facts: Facts = HEALTHY) -> Facts:
    base = Subscription("sub", "app", True, "sub", 77, 0, 0, 0)
    return replace(facts, subscriptions=tuple(replace(base, **changes) for changes in columns))


DMS = "a1b2c3d4e5f6a7b8_00016402_123e4567_e89b_12d3_a456_426614174000"
PREPARED = Transaction("prepared", "it's", "app", "shop", 7200.0)
SESSION = Transaction("session", "4711", "batch", "psql, app, idle in transaction", 7200.0)
PLUGIN = slot(plugin="wal2json")
LAGGING = slot(lag_bytes=3 * GIB, retained_bytes=3 * GIB)

# Checks of other versions, and information for every publisher.
_NOT_OF_HEALTHY = ("replication_origins", "idle_slot_timeout", "upgrade_slots")
# Check → facts without a finding.
HEALTHY_CASES: list[tuple[str, Facts]] = [
    *((check.name, HEALTHY) for check in check_list.ALL if check.name not in _NOT_OF_HEALTHY),
    ("database", AWS_ONLY.__class__(label="x", server=SERVER)),
    ("engine_version", old_version("15.3-R2", "multi_az_cluster")),
    ("engine_version", old_version("14.8-R2", "multi_az_cluster")),
    ("engine_version", old_version("16.1", "multi_az_cluster")),
    ("engine_version", old_version("13.9", "instance")),
    ("engine_version", old_version("13.9", "aurora")),
    ("engine_version", SQL_ONLY),
    ("writer_endpoint", AWS_ONLY),
    ("logical_replication", AWS_ONLY),
    ("logical_replication", default_group(having(wal_level="replica"))),  # parameter_group says it
    ("replication_slots", replace(HEALTHY, planned=Planned(slots=15))),
    ("replication_slots", replace(AWS_ONLY, planned=Planned(slots=16))),
    ("wal_senders", replace(HEALTHY, planned=Planned(slots=13))),
    ("wal_senders", replace(HEALTHY, rds=AURORA, slots=(), senders=(), planned=Planned(slots=16, replicas=15))),
    ("logical_workers", replace(HEALTHY, planned=Planned(subscriptions=4))),
    ("logical_workers", limited(subscribed({}, {"enabled": False}), max_logical_replication_workers="2")),
    ("replication_origins", limited(major(18), max_active_replication_origins="10")),
    ("logical_workers", replace(AWS_ONLY, parameters={})),  # no subscription asks for one
    ("worker_processes", limited(max_worker_processes="8")),  # no subscriber
    ("worker_processes", subscribed({})),
    ("slot_wal_keep_size", AWS_ONLY),
    ("output_plugins", having(output_plugin_libraries="pgoutput, test_decoding")),
    ("output_plugins", replace(HEALTHY, slots=(PLUGIN,))),  # a release without the parameter
    ("inactive_slots", replace(STANDBY, slots=(idle(synced=True),))),
    ("inactive_slots", replace(HEALTHY, slots=(idle(temporary=True), physical(active=False, restart_lsn=None)))),
    ("lost_slots", replace(having(max_slot_wal_keep_size="-1"), slots=(slot(safe_wal_size=None),))),
    ("slot_lag", replace(HEALTHY, slots=(LAGGING,))),  # everything was sent: idle_database says it
    ("idle_database", replace(HEALTHY, slots=(LAGGING,), senders=(sender(unsent_bytes=2 * GIB),))),
    ("storage", replace(HEALTHY, rds=AURORA, slots=(slot(retained_bytes=900 * GIB),))),
    ("storage", SQL_ONLY),
    ("storage", replace(HEALTHY, slots=(slot(retained_bytes=GIB // 2),),
                        metrics={"FreeStorageSpace": 100.0 * GIB, "TransactionLogsGeneration": 1e9})),
    ("idle_slot_timeout", having(idle_replication_slot_timeout="0")),
    (
        "idle_slot_timeout",
        replace(
            having(idle_replication_slot_timeout="86400"),
            slots=(idle(inactive_since=NOW - timedelta(hours=1)),),
        ),
    ),
    ("failover_slots", replace(HEALTHY, slots=(slot(failover=False), physical()))),  # RDS copies them itself
    ("failover_slots", replace(HEALTHY, rds=AURORA, slots=(slot(failover=False), physical()))),
    ("failover_slots", replace(ON_INSTANCE, rds=replace(INSTANCE, replicas=()), slots=(slot(failover=False),),
                               senders=(sender(),))),
    ("failover_slots", having(replace(ON_INSTANCE, slots=(slot(), physical("rds_a"))),
                              synchronized_standby_slots="rds_a")),
    ("failover_slots", having(replace(STANDBY, slots=(idle(synced=True),)), sync_replication_slots="on",
                              primary_slot_name="s")),
    ("failover_slots", replace(ON_INSTANCE, failover=between())),
    ("upgrade_slots", major(15, replace(HEALTHY, slots=(physical(),)))),
    ("long_transactions", replace(HEALTHY, transactions=(PREPARED, replace(SESSION, age_seconds=200.0)))),
    ("prepared_transactions", replace(HEALTHY, transactions=(SESSION, replace(PREPARED, age_seconds=200.0)))),
    ("replication_roles", replace(SQL_ONLY, roles=(role("cdc", "REPLICATION attribute"),))),
    ("subscriptions", subscribed({})),
    ("ssl", replace(SQL_ONLY, settings={}, server=replace(SERVER, flavour="postgresql", tls=False, local=True))),
    ("ssl", AWS_ONLY),
]  # fmt: skip

# Check → facts, severity, and parts of the message and of the remedy.
UNHEALTHY_CASES: list[tuple[str, Facts, str, str, str]] = [
    ("database", AWS_ONLY, "critical", "timeout expired", "security group"),
    ("aws", replace(HEALTHY, metrics=None, missing={"metrics": "denied"}, remedies={"metrics": "iam-policy"}),
     "warning", "denied", "iam-policy"),
    ("aws", replace(SQL_ONLY, missing={"rds": "throttled"}, remedies={"rds": "wait"}), "warning", "throttled",
     "wait"),
    ("availability", replace(HEALTHY, rds=replace(CLUSTER, status="modifying")), "warning", "modifying",
     "rdsrepl cluster show orders"),
    ("availability", replace(HEALTHY, rds=replace(INSTANCE, status="storage-full")), "critical", "storage-full",
     "increase its storage"),
    ("availability", replace(HEALTHY, rds=replace(CLUSTER, members=(
        replace(CLUSTER.members[0], status="rebooting"),))), "warning", "rebooting", "wait"),
    ("engine_version", old_version("15.3", "multi_az_cluster"), "critical", "15.3-R2", "upgrade"),
    ("engine_version", old_version("14.8", "multi_az_cluster"), "critical", "14.8-R2", "upgrade"),
    ("engine_version", old_version("13.20", "multi_az_cluster"), "critical", "14.8-R2", "upgrade"),
    ("engine_version", old_version("10.3", "instance"), "critical", "10.4", "upgrade"),
    ("engine_version", major(12, SQL_ONLY), "warning", "13 and later", "upgrade"),
    ("writer_endpoint", major(15, STANDBY), "critical", "15 decodes only on a primary", "writer endpoint"),
    ("writer_endpoint", replace(STANDBY, rds=AURORA), "critical", "Aurora", "writer endpoint"),
    ("writer_endpoint", STANDBY, "info", "standby", "pg_log_standby_snapshot"),
    ("writer_endpoint", replace(AWS_ONLY, rds=replace(INSTANCE, replica_of="x", is_reader=True,
                                                        engine_version="15.4")), "critical",
     "standby", "use its source: --instance x"),
    ("parameter_group", default_group(having(wal_level="replica")), "critical", "default cluster parameter group",
     "rdsrepl param-group create orders-logical --cluster orders --slots 1, then rdsrepl param-group attach "
     "orders-logical --cluster orders --reboot"),
    ("parameter_group", default_group(AWS_ONLY), "critical", "default", "--cluster orders, then"),
    ("parameter_group", replace(default_group(AWS_ONLY), planned=Planned(slots=4)), "critical", "default", "--slots 4"),
    ("parameter_group", default_group(), "warning", "default", "param-group create"),
    ("pending_reboot", member_status("pending-reboot"), "warning", "does not start by itself",
     "rdsrepl instance reboot orders-1"),
    ("pending_reboot", member_status("pending-reboot", ON_INSTANCE), "warning", "reboot",
     "rdsrepl instance reboot orders"),
    ("pending_reboot", having(member_status("pending-reboot"), max_wal_senders="10", rds__logical_replication="off"),
     "warning", "by itself: max_wal_senders 10 → 20, rds.logical_replication off → 1", "reboot"),
    ("pending_reboot", member_status("failed-to-apply"), "critical", "failed-to-apply", "param-group diff"),
    ("pending_reboot", member_status("applying"), "info", "applied", "wait"),
    ("pending_reboot", replace(SQL_ONLY, settings={"max_wal_senders": setting("max_wal_senders", "5", pending=True)}),
     "warning", "restart", "restart the server"),
    ("wal_level", having(wal_level="replica"), "critical", "it is replica", "rdsrepl cluster reboot orders"),
    ("wal_level", group_value("rds.logical_replication", "0", having(wal_level="replica")), "critical", "replica",
     "rdsrepl param-group set orders-logical rds.logical_replication=1, then rdsrepl cluster reboot orders"),
    ("wal_level", having(SQL_ONLY, wal_level="minimal"), "critical", "minimal",
     "ALTER SYSTEM SET wal_level = 'logical', then restart the server"),
    ("wal_level", having(replace(SQL_ONLY, server=SERVER), wal_level="replica"), "critical", "replica",
     "param-group set GROUP"),
    ("logical_replication", having(wal_level="replica"), "critical", "after a reboot", "rdsrepl cluster reboot orders"),
    ("logical_replication", member_status("pending-reboot", AWS_ONLY), "critical", "only after a reboot",
     "rdsrepl instance reboot orders-1"),
    ("logical_replication", group_value("rds.logical_replication", "0"), "critical", "does not start",
     "rds.logical_replication=1"),
    ("logical_replication", group_value("rds.logical_replication", "0", replace(HEALTHY, slots=())), "warning",
     "next reboot", "rds.logical_replication=1"),
    ("logical_replication", group_value("rds.logical_replication", None, AWS_ONLY), "critical", "off",
     "rds.logical_replication=1"),
    ("replication_slots", limited(max_replication_slots="3"), "critical", "all 3", "max_replication_slots=6"),
    ("replication_slots", limited(max_replication_slots="4"), "warning", "limit is 4", "max_replication_slots=5"),
    ("replication_slots", having(max_replication_slots="3"), "critical", "all 3",
     "already has 20: rdsrepl cluster reboot orders"),
    ("replication_slots", replace(HEALTHY, planned=Planned(slots=16)), "warning", "limit is 20", "slots=21"),
    ("replication_slots", replace(HEALTHY, planned=Planned(slots=18)), "critical", "limit is 20", "slots=23"),
    ("replication_slots", replace(HEALTHY, planned=Planned(subscriptions=6)), "warning", "18 origins", "slots=23"),
    ("replication_slots", replace(AWS_ONLY, planned=Planned(slots=19)), "critical", "2 in use, 19 slots planned", "23"),
    ("wal_senders", limited(max_wal_senders="3"), "critical", "all 3", "max_wal_senders=5"),
    ("wal_senders", replace(limited(max_wal_senders="2"), senders=None), "warning", "3 walsenders", "=7"),
    ("wal_senders", limited(max_wal_senders="6"), "warning", "need 7", "max_wal_senders=7"),
    ("wal_senders", replace(HEALTHY, planned=Planned(slots=10, replicas=9)), "critical", "9 replicas planned", "=26"),
    ("logical_workers", limited(subscribed({}, {}), max_logical_replication_workers="1"), "critical", "2 subscriptions",
     "workers=6"),
    ("logical_workers", limited(subscribed({}), max_logical_replication_workers="1"), "warning", "copies", "workers=3"),
    ("logical_workers", replace(HEALTHY, planned=Planned(subscriptions=5)), "warning", "up to 15", "workers=15"),
    ("replication_origins", limited(subscribed({}, {}, facts=major(18)), max_active_replication_origins="1"),
     "critical",
     "2 subscriptions", "origins=6"),
    ("replication_origins", limited(replace(major(18), planned=Planned(subscriptions=4)),
                                   max_active_replication_origins="10"), "warning", "up to 12", "origins=12"),
    ("worker_processes", limited(subscribed({}), max_worker_processes="8"), "warning", "are 23", "processes=23"),
    ("worker_processes", limited(subscribed({}), max_worker_processes="1"), "critical", "2 processes", "processes=23"),
    ("slot_wal_keep_size", having(max_slot_wal_keep_size="-1"), "warning", "unlimited",
     "already has 51200 MB: rdsrepl cluster reboot orders"),
    ("slot_wal_keep_size", limited(max_slot_wal_keep_size="-1"), "warning", "unlimited",
     "param-group set orders-logical max_slot_wal_keep_size=51200"),
    ("slot_wal_keep_size", group_value("max_slot_wal_keep_size", None, AWS_ONLY), "warning", "unlimited", "=51200"),
    ("slot_wal_keep_size", having(SQL_ONLY, max_slot_wal_keep_size="-1"), "warning", "unlimited", "pg_reload_conf"),
    ("slot_wal_keep_size", having(replace(HEALTHY, rds=AURORA), max_slot_wal_keep_size="-1"), "info", "volume",
     "set"),
    ("output_plugins", replace(having(output_plugin_libraries="pgoutput, test_decoding"), slots=(PLUGIN,)), "critical",
     "refuses to decode cdc", "output_plugin_libraries=pgoutput, test_decoding, wal2json"),
    ("output_plugins", replace(having(SQL_ONLY, output_plugin_libraries="pgoutput"), slots=(PLUGIN,)), "critical",
     "decode cdc", "SET output_plugin_libraries = pgoutput, wal2json, then"),
    ("inactive_slots", replace(HEALTHY, slots=(idle(inactive_since=NOW - timedelta(days=2)),)), "warning",
     "(inactive for 2d00h); it retains 1.0 MB", "rdsrepl slot drop cdc"),
    ("inactive_slots", replace(HEALTHY, slots=(idle(DMS),)),
     "warning", "it has no consumer", "AWS DMS"),
    *(("inactive_slots", replace(HEALTHY, slots=(idle(name),)), "warning", "it has no consumer", owner)
      for name, owner in (("debezium", "Debezium"), ("fivetran_shop", "Fivetran"), ("airbyte_slot", "Airbyte"))),
    ("inactive_slots", replace(HEALTHY, slots=(physical(active=False),)), "warning", "no consumer", "instance list"),
    ("inactive_slots", replace(HEALTHY, slots=(physical("standby", active=False),)), "warning", "no consumer",
     "pg_drop_replication_slot('standby')"),
    ("lost_slots", replace(HEALTHY, slots=(idle(wal_status="lost", invalidation_reason="wal_removed"),)), "critical",
     "it is invalidated (wal_removed)", "rdsrepl slot drop cdc"),
    ("lost_slots", replace(HEALTHY, slots=(idle(conflicting=True),)), "critical", "(it conflicted with recovery)",
     "rdsrepl slot drop cdc"),
    ("lost_slots", replace(HEALTHY, slots=(slot(wal_status="unreserved"),)), "critical", "next checkpoint",
     "max_slot_wal_keep_size=102400"),
    ("lost_slots", replace(HEALTHY, slots=(slot(wal_status="extended", safe_wal_size=GIB),)), "warning", "1.0 GB more",
     "catch up"),
    ("slot_lag", replace(HEALTHY, slots=(LAGGING,), senders=(sender(unsent_bytes=2 * GIB),)), "warning",
     "3.0 GB behind",
     "sink"),
    ("slot_lag", replace(HEALTHY, slots=(slot(retained_bytes=2 * GIB),)), "warning", "retains 2.0 GB",
     "long_transactions"),
    ("idle_database", replace(HEALTHY, slots=(LAGGING,)), "warning", "has 3.0 GB unconfirmed", "heartbeat"),
    ("xid_age", replace(HEALTHY, slots=(slot(catalog_xmin_age=150_000_000),)), "warning", "150,000,000",
     "slot drop cdc"),
    ("xid_age", replace(HEALTHY, slots=(slot(catalog_xmin_age=1_500_000_000),)), "critical", "2,147,483,648", "cdc"),
    ("xid_age", replace(HEALTHY, server=replace(SERVER, oldest_xmin_slot="rds_a", oldest_xmin_age=120_000_000)),
     "warning", "120,000,000", "start its standby"),
    ("xid_age", replace(HEALTHY, slots=(physical("rds_a", catalog_xmin_age=150_000_000),)), "warning", "150,000,000",
     "start its standby"),
    ("xid_age", replace(AWS_ONLY, metrics={"MaximumUsedTransactionIDs": 1.2e9}), "warning", "1,200,000,000",
     "slot list"),
    ("storage", replace(HEALTHY, slots=(slot(retained_bytes=100 * GIB),)), "warning", "retain 100", "slot list"),
    ("storage", replace(HEALTHY, slots=(slot(retained_bytes=100 * GIB),), metrics={"FreeStorageSpace": 10.0 * GIB}),
     "critical", "10.0 GB of storage is free", "slot list"),
    ("storage", replace(HEALTHY, metrics={"FreeStorageSpace": 10.0 * GIB}), "warning", "next idle slot",
     "increase the storage"),
    ("storage", replace(HEALTHY, metrics=None, slots=(slot(retained_bytes=30 * GIB),)), "warning", "is 200 GB", "slot"),
    ("storage", replace(HEALTHY, metrics=None, slots=(slot(retained_bytes=120 * GIB),)), "critical", "is 200 GB",
     "slot"),
    ("storage", replace(SQL_ONLY, slots=(slot(retained_bytes=20 * GIB),)), "warning", "not known", "slot list"),
    ("storage", replace(AWS_ONLY, metrics={"OldestReplicationSlotLag": 50.0 * GIB, "FreeStorageSpace": 30.0 * GIB}),
     "warning", "retain 50.0 GB", "slot list"),
    ("storage", having(max_slot_wal_keep_size="204800"), "warning", "disk is full first", "increase the storage"),
    ("storage", replace(having(max_slot_wal_keep_size="-1"), slots=(slot(active=False, retained_bytes=GIB // 2),),
                        metrics={"FreeStorageSpace": 100.0 * GIB, "TransactionLogsGeneration": 50.0 * (1 << 20)}),
     "critical", "the disk is full in 34m08s", "slot prune --slot cdc --dry-run"),
    ("storage", replace(having(max_slot_wal_keep_size="-1"), slots=(slot(active=False, retained_bytes=GIB // 2),),
                        metrics={"FreeStorageSpace": 100.0 * GIB, "TransactionLogsGeneration": 5.0 * (1 << 20)}),
     "warning", "the disk is full in 5h41m", "start its consumer"),
    ("idle_slot_timeout", replace(having(idle_replication_slot_timeout="86400"),
                                  slots=(idle(inactive_since=NOW - timedelta(hours=20)),)),
     "warning", "at 1d00h", "idle_replication_slot_timeout=0"),
    ("failover_slots", replace(ON_INSTANCE, slots=(slot(failover=False), physical())), "warning",
     "not a failover slot",
     "slot alter cdc --failover"),
    ("failover_slots", replace(SQL_ONLY, slots=(slot(failover=False), physical())), "warning", "not a failover slot",
     "--failover"),
    ("failover_slots", replace(SQL_ONLY, server=SERVER, slots=(slot(failover=False), physical())), "info",
     "Multi-AZ DB cluster", "--failover"),
    ("failover_slots", major(16, ON_INSTANCE), "info", "16 does not copy", "slot sync --all --with STANDBY"),
    ("failover_slots", major(15, ON_INSTANCE), "info", "15 does not copy", "upgrade to 17"),
    ("failover_slots", replace(ON_INSTANCE, failover=between("copy_temporary")), "critical", "vanishes when",
     "pg_logical_emit_message"),
    ("failover_slots", replace(ON_INSTANCE, failover=between("copy_behind")), "warning", "sent again", "wait until"),
    ("failover_slots", replace(ON_INSTANCE, failover=between("unprotected")), "warning", "orders-replica has no slot",
     "slot alter orders --failover"),
    ("failover_slots", having(replace(ON_INSTANCE, slots=(slot(), physical("rds_a"))),
                              synchronized_standby_slots="rds_a, gone"), "critical", "does not exist",
     "synchronized_standby_slots=rds_a"),
    ("failover_slots", having(replace(ON_INSTANCE, slots=(slot(), physical("rds_a", active=False))),
                              synchronized_standby_slots="rds_a"), "critical", "has no standby",
     "param-group reset orders-logical synchronized_standby_slots"),
    ("failover_slots", having(replace(ON_INSTANCE, slots=(slot(), physical("rds_a"))), synchronized_standby_slots=""),
     "info", "ahead of the standby", "synchronized_standby_slots=rds_a"),
    ("failover_slots", replace(ON_INSTANCE, slots=(slot(), physical(xmin=None, catalog_xmin=None))), "warning",
     "no feedback", "hot_standby_feedback"),
    ("failover_slots", having(STANDBY, sync_replication_slots="off"), "warning", "not copied", "= 'on'"),
    ("failover_slots", having(STANDBY, sync_replication_slots="on", primary_slot_name=""), "warning", "without a slot",
     "primary_slot_name"),
    ("failover_slots", replace(STANDBY, slots=(idle(synced=True, temporary=True),)), "warning", "promotion would drop",
     "pg_log_standby_snapshot"),
    ("failover_slots", having(STANDBY, sync_replication_slots="on"), "info", "no slot is copied", "failover_slots"),
    ("upgrade_slots", major(15), "info", "15 cannot keep", "slot drop"),
    ("upgrade_slots", replace(HEALTHY, slots=(slot(lag_bytes=5),)), "info", "fully consumed", "finish"),
    ("long_transactions", replace(HEALTHY, transactions=(SESSION,)), "warning", "2h00m", "pg_terminate_backend(4711)"),
    ("prepared_transactions", replace(HEALTHY, transactions=(PREPARED,)), "warning", "2h00m ago",
     "ROLLBACK PREPARED 'it''s'"),
    ("replication_roles", replace(HEALTHY, roles=(HEALTHY.roles or ())[:1]), "warning", "administrators",
     "rdsrepl role create"),
    ("replication_roles", replace(HEALTHY, roles=(role("cdc", "REPLICATION attribute", rolcanlogin=False),)), "warning",
     "administrators", "rdsrepl role grant"),
    ("replication_roles", replace(HEALTHY, roles=(role("cdc", "x", rolvaliduntil=NOW - timedelta(days=1)),)), "warning",
     "expired on 2026-11-20", "ALTER ROLE"),
    ("publications", replace(HEALTHY, publications=(replace(PUBLICATION, tables=()),)), "critical", "no tables",
     "publication add shop"),
    ("publications", replace(HEALTHY, publications=(replace(PUBLICATION, tables=(
        TableFacts("public.t", identity_columns=("id",), sequences=("public.s",)),)),)), "warning", "sequences (1)",
     "rdsrepl publication check shop"),
    ("publications", replace(HEALTHY, publications=()), "warning", "database app has none", "publication create"),
    ("subscriptions", subscribed({"enabled": False}), "warning", "disabled", "ENABLE"),
    ("subscriptions", subscribed({"worker_pid": None}), "critical", "no apply worker", "log"),
    ("subscriptions", subscribed({"apply_errors": 3}), "warning", "applying failed 3 times", "log"),
    ("subscriptions", subscribed({"tables_not_ready": 2}), "info", "2 tables", "srsubstate"),
    ("ssl", having(rds__force_ssl="off"), "warning", "clear text", "param-group set orders-logical rds.force_ssl=1"),
    ("ssl", group_value("rds.force_ssl", "0", AWS_ONLY), "warning", "clear text", "rds.force_ssl=1"),
    ("ssl", replace(SQL_ONLY, server=replace(SERVER, tls=False)), "warning", "not encrypted", "verify-full"),
    ("wal_sender_timeout", having(wal_sender_timeout="0"), "warning", "keeps its slot", "wal_sender_timeout=30000"),
    ("wal_sender_timeout", having(wal_sender_timeout="5000"), "warning", "short", "=30000"),
    ("wal_sender_timeout", having(wal_sender_timeout="3600000"), "warning", "1h00m", "=30000"),
    ("wal_sender_timeout", having(subscribed({}), wal_receiver_timeout="0"), "warning", "dead publisher", "=30000"),
]  # fmt: skip

SKIPPED_CASES: list[tuple[str, Facts, str]] = [
    ("aws", SQL_ONLY, "no cluster"),
    ("availability", SQL_ONLY, "no cluster"),
    ("logical_replication", replace(HEALTHY, parameters={}), "has no rds.logical_replication"),
    ("wal_level", AWS_ONLY, "not known"),
    ("wal_level", replace(HEALTHY, settings={}), "wal_level is not known"),
    ("replication_origins", HEALTHY, "before 18"),
    ("idle_slot_timeout", HEALTHY, "needs PostgreSQL 18"),
    ("replication_slots", replace(AWS_ONLY, parameters={}), "not known"),
    ("logical_workers", replace(AWS_ONLY, parameters={}, planned=Planned(subscriptions=1)), "not known"),
    ("output_plugins", replace(HEALTHY, slots=(PLUGIN,), server=replace(SERVER, sees_settings=False)), "may not read"),
    ("long_transactions", replace(HEALTHY, server=replace(SERVER, sees_sessions=False)), "pg_monitor"),
    ("idle_database", replace(HEALTHY, senders=(sender(unsent_bytes=None),),
                              server=replace(SERVER, sees_sessions=False)), "pg_monitor"),
    ("inactive_slots", replace(HEALTHY, slots=None, missing={"slots": "permission denied"}), "permission denied"),
    ("engine_version", old_version("preview", "instance", replace(AWS_ONLY)), "could not read"),
]  # fmt: skip


def run(name: str, facts: Facts) -> findings.Diagnosis:
    return findings.diagnose(facts, findings.select_checks(check_list.ALL, only=[name]), {})


@pytest.mark.parametrize(("name", "facts"), HEALTHY_CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(HEALTHY_CASES)])
def test_healthy(name: str, facts: Facts) -> None:
    diagnosis = run(name, facts)
    assert diagnosis.findings == ()
    assert (diagnosis.checks[0].status, diagnosis.checks[0].reason) == ("ok", None)
    assert diagnosis.ready


@pytest.mark.parametrize(
    ("name", "facts", "severity", "message", "remedy"),
    UNHEALTHY_CASES,
    ids=[f"{case[0]}-{i}" for i, case in enumerate(UNHEALTHY_CASES)],
)
def test_unhealthy(name: str, facts: Facts, severity: str, message: str, remedy: str) -> None:
    diagnosis = run(name, facts)
    finding = diagnosis.findings[0]
    assert (finding.check, finding.severity.value) == (name, severity)
    assert message in finding.message
    assert remedy in finding.remedy
    assert diagnosis.checks[0].status == severity
    assert diagnosis.ready is (severity != "critical")
    assert all("\n" not in each.message + each.remedy for each in diagnosis.findings)


@pytest.mark.parametrize(("name", "facts", "reason"), SKIPPED_CASES, ids=[case[0] for case in SKIPPED_CASES])
def test_skipped(name: str, facts: Facts, reason: str) -> None:
    outcome = run(name, facts).checks[0]
    assert outcome.status == "skipped"
    assert reason in (outcome.reason or "")


def test_every_check_has_a_healthy_and_an_unhealthy_case_and_its_heading() -> None:
    names = [check.name for check in check_list.ALL]
    assert len(set(names)) == len(names)
    assert {case[0] for case in HEALTHY_CASES} == set(names)
    assert {case[0] for case in UNHEALTHY_CASES} == set(names)
    headings = [
        line.removeprefix("### ").strip("`") for line in DOCS.read_text().splitlines() if line.startswith("### ")
    ]
    assert headings == names


def test_the_worst_comes_first_and_nothing_falls_over_where_all_is_missing() -> None:
    ill = replace(having(wal_level="replica", wal_sender_timeout="0"), slots=(idle(lag_bytes=5),))
    diagnosis = findings.diagnose(ill, check_list.ALL, check_list.summary(ill))
    severities = [finding.severity.value for finding in diagnosis.findings]
    assert severities == sorted(severities, key=["critical", "warning", "info"].index)
    assert (diagnosis.ready, diagnosis.worst()) == (False, findings.Severity.critical)
    nothing = findings.diagnose(Facts("x"), check_list.ALL, check_list.summary(Facts("x")))
    assert {check.status for check in nothing.checks} <= {"skipped", "ok"}


# With real servers.


@pytest.fixture(scope="module", params=VERSIONS, ids=[f"pg{version}" for version in VERSIONS])
def fit_server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Any]:
    """A server that is ready, and that no other test uses."""
    programs = servers.get(request.param).binaries
    made = servers.make(f"doctor-{request.param}", programs, max_slot_wal_keep_size="10GB")
    with closing(made.connect()) as conn:
        conn.execute("CREATE ROLE cdc LOGIN REPLICATION")
    yield made
    made.stop("immediate")
    made.remove()


@pytest.fixture
def fit(fit_server: Any, make_database: Callable[..., Database]) -> Database:
    """A database on it."""
    return make_database(fit_server)


def statuses(document: Any) -> dict[str, str]:
    return {check["name"]: check["status"] for check in document["checks"]}


def test_a_server_that_is_ready(fit: Database, rdsrepl: Program) -> None:
    result = rdsrepl("doctor", "-o", "json", dsn=fit.dsn)
    assert result.code == 0, result.out
    document = result.json
    assert document["ready"] is True
    assert document["findings"] == []
    assert document["facts"]["database"] == fit.name
    assert document["facts"]["wal_level"] == "logical"
    assert document["facts"]["engine_version"].startswith(str(fit.server.version))
    not_here = {name for name, status in statuses(document).items() if status == "skipped"}
    old = set() if fit.server.version >= 18 else {"replication_origins", "idle_slot_timeout"}
    assert not_here == {"aws", "availability", "parameter_group", "logical_replication"} | old
    table = rdsrepl("doctor", dsn=fit.dsn)
    assert (table.code, "checks passed" in table.out, "wal_level" in table.out) == (0, True, False)
    assert "wal_level: " in rdsrepl("doctor", "-v", dsn=fit.dsn).out


def test_findings_of_a_real_server(fit: Database, rdsrepl: Program, tmp_path: Path) -> None:
    fit.run(
        "CREATE TABLE t (v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        f"SELECT pg_create_logical_replication_slot('s_{fit.name}', 'pgoutput')",
        "BEGIN",
        "INSERT INTO t VALUES ('x')",
        f"PREPARE TRANSACTION 'p_{fit.name}'",
    )
    try:
        with closing(fit.connect()) as conn:
            found = activity.transactions(conn, older_than_seconds=0.0)
        assert [t.kind for t in found if t.id == f"p_{fit.name}"] == ["prepared"]
        result = rdsrepl("doctor", "-o", "json", "--for", "slots=99", "--for", "subscriptions=1", dsn=fit.dsn)
    finally:
        fit.run(f"ROLLBACK PREPARED 'p_{fit.name}'")
    assert result.code == 9
    document = result.json
    found_by = {finding["check"]: finding for finding in document["findings"]}
    assert document["ready"] is False
    assert {"replication_slots", "wal_senders", "publications"} <= {
        name for name, status in statuses(document).items() if status == "critical"
    }
    assert found_by["publications"]["subject"] == "p: public.t"
    assert found_by["inactive_slots"]["subject"] == f"s_{fit.name}"
    assert f" slot drop s_{fit.name}" in found_by["inactive_slots"]["remedy"]
    assert "wal_level" not in found_by
    page = tmp_path / "doctor.html"
    table = rdsrepl("doctor", "--skip", "publications", "--html", str(page), dsn=fit.dsn)
    assert table.code == 8
    assert "→ start its consumer" in table.out
    written = page.read_text()
    assert f"s_{fit.name}" in written and "Remedy:" in written and page.stat().st_mode & 0o777 == 0o600
    only = rdsrepl("doctor", "--skip", "publications", "--html", "-", dsn=fit.dsn)
    assert only.code == 8 and only.out.startswith("<!DOCTYPE html>") and "checks passed" not in only.out
    refused = rdsrepl("doctor", "--html", str(tmp_path), dsn="host=127.0.0.1 port=1")
    assert refused.code == 2 and "is a directory" in refused.err


def test_a_session_in_the_way_is_named(db18: Database) -> None:
    with closing(db18.connect()) as writer, closing(db18.connect()) as conn:
        writer.autocommit = False
        writer.execute("CREATE TABLE held (id integer)")
        pid = str(writer.info.backend_pid)
        assert pid in [t.id for t in activity.transactions(conn, older_than_seconds=0.0)]
        assert pid not in [t.id for t in activity.transactions(conn, older_than_seconds=OLD_TRANSACTION_SECONDS)]


def test_with_no_right_at_all(fit: Database, rdsrepl: Program) -> None:
    """A role that may only log in causes no error: checks of what it may not read are skipped."""
    fit.run(f"SELECT pg_create_logical_replication_slot('s_{fit.name}', 'pgoutput')")
    fit.run("CREATE TABLE t (id integer PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE t")
    fit.run(f"CREATE ROLE plain_{fit.name} LOGIN PASSWORD 'plain'")
    try:
        dsn = fit.server.dsn(user=f"plain_{fit.name}", dbname=fit.name)
        result = rdsrepl("doctor", "-o", "json", dsn=dsn, env={"PGPASSWORD": "plain"})
    finally:
        fit.run(f"DROP ROLE plain_{fit.name}")
    assert result.code == 8, result.err
    seen = statuses(result.json)
    assert seen["long_transactions"] == "skipped"
    for name in ("wal_level", "replication_slots", "publications", "subscriptions", "replication_roles"):
        assert seen[name] == "ok", (name, result.out)
    assert seen["inactive_slots"] == "warning"


def test_a_subscription_of_a_real_server(pg16: Any, make_database: Callable[..., Database], rdsrepl: Program) -> None:
    database = make_database(pg16)
    sly = '"sub ENABLE; ALTER ROLE mallory SUPERUSER; --"'
    database.run(f"CREATE SUBSCRIPTION {sly} CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)")
    try:
        with closing(database.connect()) as conn:
            (found,) = [s for s in subscriptions.ls(conn) if s.database == database.name]
        assert (found.subname, found.enabled, found.worker_pid) == (sly[1:-1], False, None)
        result = rdsrepl("doctor", "--only", "subscriptions", "-o", "json", dsn=database.dsn)
        assert result.code == 8
        assert [f["subject"] for f in result.json["findings"]] == [f"{database.name}.{sly[1:-1]}"]
        assert f"ALTER SUBSCRIPTION {sly} ENABLE" in result.json["findings"][0]["remedy"], "it can be pasted"
    finally:
        database.run(f"ALTER SUBSCRIPTION {sly} SET (slot_name = NONE)", f"DROP SUBSCRIPTION {sly}")


@pytest.mark.parametrize("version", [15, 16, 18])
def test_on_a_standby(version: int, servers: Servers, tmp_path: Path, rdsrepl: Program) -> None:
    primary = servers.get(version)
    name, kept = f"standby_{version}", f"kept_{version}"
    standby = primary.clone(tmp_path / "standby", slot=name, settings={"hot_standby_feedback": "on"})
    try:
        standby.start()
        result = rdsrepl("doctor", "-o", "json", dsn=standby.dsn())
        seen = statuses(result.json)
        assert seen["writer_endpoint"] == ("critical" if version < 16 else "info")
        assert "skipped" not in (seen["replication_slots"], seen["publications"], seen["long_transactions"])
        with closing(primary.connect()) as conn:
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (kept,))
        document = rdsrepl("doctor", "-o", "json", dsn=primary.dsn()).json
        assert statuses(document)["writer_endpoint"] == "ok"
        assert statuses(document)["failover_slots"] == ("info" if version < 17 else "warning")
        assert kept in [f["subject"] for f in document["findings"] if f["check"] == "failover_slots"]
    finally:
        standby.stop("immediate")
        standby.remove()
        with closing(primary.connect()) as conn:
            conn.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = ANY (%s)",
                ([name, kept],),
            )


def test_few_statements(db18: Database) -> None:
    """One statement for each fact, and more for the tables of publications."""
    from rdsrepl.doctor.facts import gather

    with closing(db18.connect()) as conn:
        conn.execute("ALTER SYSTEM SET log_statement = 'all'")
    db18.server.reload()
    before = db18.server.log_file.read_text().count("statement: ") + db18.server.log_file.read_text().count("execute ")
    facts = gather(db18.target)
    text = db18.server.log_file.read_text()
    with closing(db18.connect()) as conn:
        conn.execute("ALTER SYSTEM RESET log_statement")
    db18.server.reload()
    assert facts.missing.keys() == {"rds", "parameters", "metrics"}
    fewer = gather(db18.target, wanted=frozenset({"settings"}))
    assert (fewer.publications, fewer.roles, fewer.settings is None) == (None, None, False)
    assert 1 <= text.count("statement: ") + text.count("execute ") - before <= 9


# With the AWS API of the sandbox.


@pytest.fixture
def instance(cloud: SandboxCloud) -> Iterator[str]:
    """An instance with the default parameter group, as in a new account."""
    name = f"doc-{uuid.uuid4().hex[:8]}"
    made = cloud("instance", "create", name, "--class", "db.r6g.large", "--storage", "100", "--yes")
    assert made.code == 0, made.err
    yield name
    gone = cloud("instance", "delete", name, "--skip-final-snapshot", "--confirm", name, "--yes")
    assert gone.code == 0, gone.err
    cloud("param-group", "delete", f"{name}-logical", "--kind", "instance", "--yes")


def diagnose(cloud: SandboxCloud, code: int, *words: str) -> dict[str, Any]:
    result = cloud("doctor", "-o", "json", *words)
    assert result.code == code, result.out + result.err
    return {finding["check"]: finding for finding in result.json["findings"]}


def follow(cloud: SandboxCloud, command: str) -> None:
    """Run the command of a remedy unchanged."""
    program, *words = shlex.split(command)
    assert program == "rdsrepl"
    done = cloud(*words, "--yes")
    assert done.code == 0, command + done.err


def test_following_the_remedies_makes_it_ready(cloud: SandboxCloud, instance: str) -> None:
    here = ("--instance", instance)
    found = diagnose(cloud, 9, *here, "--for", "slots=3")
    assert {"parameter_group", "wal_level"} <= found.keys()
    create, attach = found["parameter_group"]["remedy"].split(", then ")
    follow(cloud, create)
    follow(cloud, attach.removesuffix(" --reboot"))
    found = diagnose(cloud, 9, *here)
    assert {"wal_level", "logical_replication", "pending_reboot"} <= found.keys()
    assert "parameter_group" not in found
    assert found["logical_replication"]["remedy"] == f"rdsrepl instance reboot {instance}"
    follow(cloud, found["logical_replication"]["remedy"])
    assert diagnose(cloud, 8, *here, "--for", "slots=3").keys() == {"replication_roles"}
    # A dynamic parameter is off in the group: the remedy takes effect at once.
    follow(cloud, f"rdsrepl param-group set {instance}-logical rds.force_ssl=0")
    follow(cloud, diagnose(cloud, 8, *here)["ssl"]["remedy"])
    assert "ssl" not in diagnose(cloud, 8, *here)
    document = cloud("doctor", "-o", "json", *here).json
    assert document["ready"] is True
    assert (document["facts"]["topology"], document["facts"]["target"]) == ("instance", instance)


def test_aws_alone_goes_on_where_the_database_cannot_be_reached(cloud: SandboxCloud, instance: str) -> None:
    result = cloud(
        "doctor", "-o", "json", "--instance", instance, "--dsn", "host=127.0.0.1 port=1", "--for", "slots=90"
    )
    assert result.code == 9, result.err
    seen = statuses(result.json)
    assert (seen["database"], seen["parameter_group"], seen["replication_slots"]) == ("critical",) * 3
    assert (seen["wal_level"], seen["availability"], seen["aws"]) == ("skipped", "ok", "ok")
    reasons = {check["name"]: check["reason"] for check in result.json["checks"]}
    assert "Connection refused" in reasons["wal_level"]


@pytest.mark.parametrize(
    ("service", "operation", "lost"),
    [("rds", "DescribeDBParameters", "logical_replication"), ("monitoring", "GetMetricData", None)],
)
def test_what_the_identity_may_not_ask_is_a_warning(
    service: str, operation: str, lost: str | None, cloud: SandboxCloud, instance: str
) -> None:
    text = f"User: arn:aws:iam::123456789012:user/x is not authorized to perform: {service}:{operation}"
    cloud.faults({"service": service, "operation": operation, "code": "AccessDenied", "status": 403, "message": text})
    result = cloud("doctor", "-o", "json", "--instance", instance)
    found = {finding["check"]: finding for finding in result.json["findings"]}
    assert operation in found["aws"]["message"]
    assert "iam-policy" in found["aws"]["remedy"]
    assert lost is None or statuses(result.json)[lost] == "skipped"
    assert statuses(result.json)["engine_version"] == "ok"


def test_neither_answers(cloud: SandboxCloud) -> None:
    missing = cloud("doctor", "-o", "json", "--cluster", "nope")
    assert (missing.code, missing.error["error"]) == (3, "not_found")


def test_a_member_is_looked_at_as_its_cluster(cloud: SandboxCloud) -> None:
    member = cloud.client("rds").describe_db_clusters(DBClusterIdentifier="sandbox")["DBClusters"][0]
    reader = next(m["DBInstanceIdentifier"] for m in member["DBClusterMembers"] if not m["IsClusterWriter"])
    variables = cloud("-o", "json", "sandbox", "env").json
    document = cloud("doctor", "-o", "json", "--instance", reader, env={"PGPASSFILE": variables["PGPASSFILE"]}).json
    assert document["facts"]["topology"] == "multi_az_cluster"
    assert statuses(document)["writer_endpoint"] in ("critical", "info")
    assert document["facts"]["in_recovery"] is True
    # It is also not the writer where the server does not say so.
    alone = cloud("doctor", "-o", "json", "--instance", reader, "--dsn", "host=127.0.0.1 port=1").json
    assert statuses(alone)["writer_endpoint"] == statuses(document)["writer_endpoint"]


def test_the_newest_metric_counts(cloud: SandboxCloud) -> None:
    client, name = cloud.client("cloudwatch"), f"i-{uuid.uuid4().hex[:8]}"
    dimensions = [{"Name": "DBInstanceIdentifier", "Value": name}]
    now = datetime.now(UTC)
    for minutes, value in ((10, 1.0), (3, 3.0), (7, 2.0)):
        point = {"MetricName": "FreeStorageSpace", "Dimensions": dimensions, "Value": value, "Unit": "Bytes"}
        client.put_metric_data(
            Namespace="AWS/RDS", MetricData=[{**point, "Timestamp": now - timedelta(minutes=minutes)}]
        )
    made = Aws(
        region="eu-west-1", endpoint_url=cloud.url, profile="sandbox",
        aws_credentials_file=cloud.program.env["AWS_SHARED_CREDENTIALS_FILE"],
        aws_config_file=cloud.program.env["AWS_CONFIG_FILE"],
    )  # fmt: skip
    asked = ("TransactionLogsDiskUsage", "FreeStorageSpace")
    assert metrics.latest(made, asked, {"DBInstanceIdentifier": name}) == {"FreeStorageSpace": 3.0}
    assert metrics.latest(made, asked, {"DBInstanceIdentifier": name}, within_seconds=60) == {}
    assert metrics.latest(made, (), {}) == {}


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--for", "slots"), 2, "is not NAME=NUMBER"),
        (("--for", "slots=-1"), 2, "is not NAME=NUMBER"),
        (("--for", "slots=1,tables=2"), 2, "is not NAME=NUMBER"),
        (("--for", "slots=1", "--for", "slots=2"), 2, "twice"),
        (("--only", "wal_levl"), 2, "did you mean wal_level"),
        (("--only", "ssl", "--skip", "ssl"), 2, "no checks selected"),
        (("--dsn", "host=127.0.0.1 port=1"), 5, "Connection refused"),
    ],
)
def test_bad_words(words: tuple[str, ...], code: int, text: str, rdsrepl: Program) -> None:
    result = rdsrepl("doctor", *words, "-o", "json")
    assert result.code == code
    assert text in json.dumps(result.error)


def test_help_lists_the_exit_codes(rdsrepl: Program) -> None:
    text = rdsrepl("doctor", "--help").out
    assert all(word in text for word in ("--for", "--only", "--skip", "8", "9"))
