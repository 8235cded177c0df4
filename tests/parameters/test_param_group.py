"""``param-group`` on the sandbox: plans, sizes, wrong names and values, and the order of reboots."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from rdsrepl.aws.clusters import Cluster, Member
from rdsrepl.aws.instances import Instance
from rdsrepl.aws.parameter_groups import check_name
from rdsrepl.errors import BadValue, NotAvailable, Refused
from rdsrepl.parameters import rollout
from rdsrepl.plan import AwsCall, Plan, Wait
from tests.fixtures.sandbox import Cloud

pytestmark = pytest.mark.usefixtures("delayed")

FAMILY = "postgres16"


@pytest.fixture
def name(cloud: Cloud) -> Iterator[str]:
    """A name that is not used; its groups are deleted after the test."""
    made = f"g-{uuid.uuid4().hex[:10]}"
    yield made
    cloud.faults()
    for kind in ("cluster", "instance"):
        cloud("param-group", "delete", made, "--kind", kind, "--yes")


def create(cloud: Cloud, name: str, *more: str) -> None:
    done = cloud("param-group", "create", name, "--family", FAMILY, "--kind", "instance", "--yes", *more)
    assert done.code == 0, done.err


def values(cloud: Cloud, name: str, *more: str) -> dict[str, str]:
    shown = cloud("param-group", "show", name, "-o", "json", *more).json
    return {row["name"]: row["value"] for row in shown["parameters"] if row["source"] == "user"}


def test_the_plan_shows_each_value_with_its_reason(cloud: Cloud, name: str) -> None:
    words = ("param-group", "create", name, "--family", FAMILY, "--kind", "instance", "--slots", "30")
    planned = cloud(*words, "--class", "db.r6g.large", "--dry-run", "-o", "json").json
    changes = {change["name"]: change for change in planned["changes"]}
    senders = changes["max_wal_senders"]
    assert (senders["default"], senders["value"]) == ("35", None), "34 are needed, and a default is never lowered"
    slots = changes["max_replication_slots"]
    assert (slots["default"], slots["value"], slots["apply_type"]) == ("20", "32", "static")
    assert slots["apply_method"] == "pending-reboot" and "30 slots" in slots["reason"]
    assert changes["rds.logical_replication"]["value"] == "1"
    assert [step.get("operation") for step in planned["steps"]] == [
        "CreateDBParameterGroup",
        "ModifyDBParameterGroup",
        None,
    ]
    assert cloud("param-group", "show", name).code == 3, "a dry run creates nothing"
    shown = cloud(*words, "--dry-run").out
    assert "the only switch for wal_level=logical" in shown and "aws rds create-db-parameter-group" in shown


def test_create_sets_twenty_parameters_a_call_and_reads_back(cloud: Cloud, name: str) -> None:
    more = [f"--set={key}={value}" for key, value in EXTRA.items()]
    words = ("param-group", "create", name, "--family", FAMILY, "--kind", "instance", *more)
    planned = cloud(*words, "--dry-run", "-o", "json").json
    sizes = [
        len(step["parameters"]["Parameters"])
        for step in planned["steps"]
        if step.get("operation") == "ModifyDBParameterGroup"
    ]
    assert sizes[0] == 20 and len(sizes) == 2
    done = cloud(*words, "--yes", "-o", "json").json
    assert done["status"] == "applied" and "as set" in done["steps"][-1]["returned"]["read back"]
    assert EXTRA.items() <= values(cloud, name).items()
    again = cloud(*words, "--yes", "-o", "json").json
    assert again["status"] == "unchanged", "a second run changes nothing"


EXTRA = {
    "max_slot_wal_keep_size": "8192",
    "wal_sender_timeout": "60000",
    "wal_receiver_timeout": "60000",
    "logical_decoding_work_mem": "131072",
    "max_parallel_workers": "16",
    "max_connections": "300",
    "max_locks_per_transaction": "128",
    "max_prepared_transactions": "10",
    "log_min_duration_statement": "1000",
    "statement_timeout": "60000",
    "idle_in_transaction_session_timeout": "60000",
    "lock_timeout": "10000",
    "work_mem": "8192",
    "maintenance_work_mem": "262144",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
    "track_commit_timestamp": "1",
    "checkpoint_timeout": "600",
    "max_wal_size": "4096",
    "min_wal_size": "512",
    "log_connections": "1",
    "log_disconnections": "1",
}


def test_an_incomplete_group_is_completed(cloud: Cloud, name: str) -> None:
    cloud.faults({"service": "rds", "operation": "ModifyDBParameterGroup", "code": "AccessDenied", "status": 403,
                  "message": "not authorized to perform: rds:ModifyDBParameterGroup", "times": 5})  # fmt: skip
    words = ("param-group", "create", name, "--family", FAMILY, "--kind", "instance", "--yes", "-o", "json")
    broken = cloud(*words)
    assert broken.code == 6
    assert broken.error["done"] == [f"create instance parameter group {name}"]
    assert len(broken.error["not_done"]) == 2 and "rds:ModifyDBParameterGroup" in broken.error["hint"]
    cloud.faults()
    done = cloud(*words)
    assert done.code == 0 and "exists already" in done.json["warnings"][0]
    assert values(cloud, name)["rds.logical_replication"] == "1"


def test_a_copy_keeps_the_other_settings(cloud: Cloud, name: str) -> None:
    create(cloud, name, "--set", "work_mem=9999", "--set", "max_replication_slots=50")
    copy = f"{name}-copy"
    done = cloud("param-group", "create", copy, "--copy-from", name, "--slots", "4", "--yes")
    assert done.code == 0, done.err
    try:
        copied = values(cloud, copy)
        assert copied["work_mem"] == "9999" and copied["max_replication_slots"] == "50", "a value is never lowered"
    finally:
        cloud("param-group", "delete", copy, "--yes")


def test_set_reset_and_diff(cloud: Cloud, name: str) -> None:
    create(cloud, name)
    done = cloud(
        "param-group", "set", name, "max_slot_wal_keep_size=10 GB", "max_wal_senders=50", "--yes", "-o", "json"
    )
    assert done.code == 0, done.err
    methods = {item["ParameterName"]: item["ApplyMethod"] for item in done.json["steps"][0]["parameters"]["Parameters"]}
    assert methods == {"max_slot_wal_keep_size": "immediate", "max_wal_senders": "pending-reboot"}
    assert values(cloud, name)["max_slot_wal_keep_size"] == "10240"
    assert "10240 (10GB)" in cloud("param-group", "show", name).out
    assert "10240 (10GB)" in cloud("param-group", "diff", name).out
    change = next(one for one in done.json["changes"] if one["name"] == "max_slot_wal_keep_size")
    assert (change["value"], change["unit"]) == ("10240", "MB")
    assert cloud("param-group", "set", name, "max_slot_wal_keep_size=10240", "--check").code == 0
    shown = cloud("param-group", "set", name, "max_slot_wal_keep_size=-1", "wal_sender_timeout=2min", "--dry-run").out
    assert "max_slot_wal_keep_size: 10240 (10GB) -> -1 (" in shown
    assert "wal_sender_timeout: 30000 (30s) -> 120000 (2min) (" in shown
    formula = cloud("param-group", "set", name, "shared_buffers={DBInstanceClassMemory/65536}", "--dry-run")
    assert formula.code == 0 and "-> {DBInstanceClassMemory/65536} (" in formula.out, formula
    words = ("param-group", "create", f"{name}-2", "--family", FAMILY, "--kind", "instance", "--dry-run")
    assert "-> 20480 (20GB) (" in cloud(*words, "--set", "max_slot_wal_keep_size=20gb").out
    assert cloud("param-group", "set", name, "max_wal_senders=50", "--check").code == 0, "the value is set already"
    assert cloud("param-group", "set", name, "max_wal_senders=51", "--check").code == 7
    rows = {row["name"]: row for row in cloud("param-group", "diff", name, "-o", "json").json}
    assert (rows["max_wal_senders"]["left"], rows["max_wal_senders"]["right"]) == ("50", "35")
    assert cloud("param-group", "reset", name, "max_wal_senders", "--yes").code == 0
    assert "max_wal_senders" not in values(cloud, name)
    assert cloud("param-group", "reset", name, "--all", "--yes").code == 0
    assert values(cloud, name) == {}
    assert "are not set in" in cloud("param-group", "reset", name, "--all", "--yes").out
    assert cloud("param-group", "diff", name, f"default.{FAMILY}", "-o", "json").json == []


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("create", "x", "--family", "postgres99", "--kind", "instance"), 2, "postgres16"),
        (("create", "x", "--family", "mysql8.0", "--kind", "instance"), 2, "postgres16"),
        (("create", "x", "--family", FAMILY), 2, "--kind cluster"),
        (("create", "x"), 2, "--family"),
        (("create", "1x", "--family", FAMILY, "--kind", "instance"), 2, "begin with a letter"),
        (("create", "x--y", "--family", FAMILY, "--kind", "instance"), 2, "single hyphens"),
        (("create", "x-", "--family", FAMILY, "--kind", "instance"), 2, "end with a letter or digit"),
        (("create", "x_y", "--family", FAMILY, "--kind", "instance"), 2, "hyphens"),
        (("create", "x" * 256, "--family", FAMILY, "--kind", "instance"), 2, "255"),
        (("create", "x", "--family", FAMILY, "--kind", "instance", "--set", "nonsense=1"), 2, "nonsense"),
        (("create", "x", "--family", FAMILY, "--kind", "instance", "--set", "nonsense"), 2, "max_wal_senders=40"),
        (("create", "x", "--family", FAMILY, "--kind", "instance", "--set", "max_wal_senders=1"), 2, "max_wal_senders"),
        (("create", "x", "--family", FAMILY, "--kind", "instance", "--slots", "999999"), 2, "max_replication_slots"),
        (("create", "x", "--family", FAMILY, "--kind", "instance", "--class", "huge"), 2, "db.r6g.large"),
        (("create", "x", "--family", FAMILY, "--kind", "instance", "--copy-from", "nope"), 3, "param-group list"),
        (
            ("create", "x", "--family", FAMILY, "--copy-from", f"default.{FAMILY}", "--kind", "instance"),
            2,
            "--copy-from",
        ),
        (("create", "x", "--cluster", "sandbox", "--family", "aurora-postgresql16"), 2, "omit --family"),
        (("create", "x", "--cluster", "sandbox", "--kind", "instance"), 2, "omit --kind"),
        (("create", "x", "--cluster", "nowhere"), 3, "cluster list"),
        (("set", f"default.{FAMILY}", "work_mem=1"), 4, "param-group create"),
        (("reset", f"default.{FAMILY}", "--all"), 4, "param-group create"),
        (("reset", "x"), 2, "PARAMETER"),
        (("delete", f"default.{FAMILY}"), 4, "param-group create"),
        (("show", "nowhere"), 3, "param-group list"),
        (("attach", "x"), 2, "--cluster"),
        (("attach", "nowhere", "--cluster", "sandbox"), 3, "param-group list"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple) else None,
)
def test_bad_input_changes_nothing(cloud: Cloud, words: tuple[str, ...], code: int, expected: str) -> None:
    failed = cloud("param-group", *words, "--yes") if words[0] != "show" else cloud("param-group", *words)
    assert failed.code == code, failed.err
    assert expected in failed.err and "Traceback" not in failed.err
    assert cloud("param-group", "show", "x").code == 3


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("nonsense=1", "no parameter 'nonsense'"),
        ("max_wal_sendrs=1", "did you mean max_wal_senders"),
        ("wal_level=logical", "rds.logical_replication=1"),
        ("max_wal_senders=4", "5-262143"),
        ("max_wal_senders=many", "5-262143"),
        ("max_wal_senders=10GB", "5-262143"),
        ("max_slot_wal_keep_size=512kB", "give 1 (in MB)"),
        ("max_slot_wal_keep_size=10s", "'10s' is not a size"),
        ("max_slot_wal_keep_size=-5GB", "'-5GB' is not a size"),
        ("max_slot_wal_keep_size=4096TB", "cannot be '4294967296 (4096TB)'"),
        ("shared_buffers=12kB", "give 1 or 2 (in 8kB)"),
        ("wal_sender_timeout=10GB", "'10GB' is not a duration"),
        ("hot_standby_feedback=perhaps", "0,1"),
        ("max_wal_senders", "max_wal_senders=40"),
    ],
)
def test_a_value_is_checked_before_the_call(cloud: Cloud, name: str, pair: str, expected: str) -> None:
    create(cloud, name)
    before = values(cloud, name)
    failed = cloud("param-group", "set", name, pair, "--yes")
    assert failed.code == 2 and expected in failed.err
    assert values(cloud, name) == before


def test_a_name_of_both_kinds_needs_kind(cloud: Cloud, name: str) -> None:
    create(cloud, name)
    assert cloud("param-group", "create", name, "--family", FAMILY, "--kind", "cluster", "--yes").code == 0
    failed = cloud("param-group", "show", name)
    assert failed.code == 2 and "--kind" in failed.err
    assert cloud("param-group", "show", name, "--kind", "cluster", "-o", "json").json["group"]["kind"] == "cluster"


def test_another_family_of_the_same_name_is_refused(cloud: Cloud, name: str) -> None:
    create(cloud, name)
    failed = cloud("param-group", "create", name, "--family", "postgres15", "--kind", "instance", "--yes")
    assert failed.code == 4 and "postgres16" in failed.err


def test_too_many_groups(cloud: Cloud, name: str) -> None:
    cloud.faults({"service": "rds", "operation": "CreateDBParameterGroup", "code": "DBParameterGroupQuotaExceeded",
                  "status": 400, "message": "You have reached the limit.", "times": 5})  # fmt: skip
    failed = cloud("param-group", "create", name, "--family", FAMILY, "--kind", "instance", "--yes", "-o", "json")
    assert failed.code == 4 and failed.error["error"] == "quota_exceeded"


def test_list_shows_what_uses_each_group(cloud: Cloud, name: str) -> None:
    create(cloud, name)
    rows = cloud("param-group", "list", "--defaults", "-o", "json").json
    mine = [row for row in rows if row["name"] == name]
    assert [(row["used_by"], row["family"]) for row in mine] == [([], FAMILY)]
    attached = [row for row in rows if "cluster sandbox" in row["used_by"]]
    assert [row["kind"] for row in attached] == ["cluster"]
    only = [row["name"] for row in cloud("param-group", "list", "-o", "json").json]
    assert name in only and not any(row.startswith("default.") for row in only)


def test_names_are_stored_in_lower_case() -> None:
    assert check_name("Orders-Logical") == "orders-logical"
    with pytest.raises(BadValue):
        check_name("default-x")


# The order of reboots, without a sandbox.


def instance(name: str, group: str = "old", status: str = "in-sync", **more: object) -> Instance:
    return Instance(name, "postgres", "16.4", "available", "db.r6g.large", parameter_group=group,
                    parameter_group_status=status, **more)  # type: ignore[arg-type]  # fmt: skip


def order(plan: Plan) -> list[str]:
    return [step.summary for step in plan.steps if isinstance(step, AwsCall)]


UP = rollout.memory_changes({"max_wal_senders": 10}, {"max_wal_senders": 40})
DOWN = rollout.memory_changes({"max_wal_senders": 40}, {"max_wal_senders": 10})
BOTH = rollout.memory_changes(
    {"max_wal_senders": 40, "max_connections": 1}, {"max_wal_senders": 10, "max_connections": 2}
)


REBOOT = rollout.RolloutOptions(reboot=True, timeout_seconds=60)


def attach(changes: rollout.MemoryChanges, *, with_replicas: bool = True) -> Plan:
    primary, replica = instance("p", replicas=("r",)), instance("r", replica_of="p")
    replicas = {"r": (replica, changes)}
    return rollout.attach_to_instance(primary, "new", changes, replicas, REBOOT, with_replicas=with_replicas)


def test_replicas_are_raised_first_one_reboot_at_a_time() -> None:
    plan = attach(UP)
    assert order(plan) == [
        "attach group new to instance r",
        "reboot instance r",
        "attach group new to instance p",
        "reboot instance p",
    ]
    kinds = [type(step) for step in plan.steps]
    assert kinds == [AwsCall, Wait] * 4, "each reboot is waited for before the next one"
    assert "standbys first, because max_wal_senders are raised" in plan.warnings[0]


def test_the_primary_is_lowered_first() -> None:
    assert order(attach(DOWN))[0] == "attach group new to instance p"


def test_raising_and_lowering_at_once_is_refused() -> None:
    with pytest.raises(Refused, match="no order is safe"):
        attach(BOTH)


def test_a_replica_with_less_than_its_source_is_refused() -> None:
    with pytest.raises(Refused, match="read replica r would have less") as caught:
        attach(UP, with_replicas=False)
    assert "--with-replicas" in str(caught.value.hint)
    assert order(attach(DOWN, with_replicas=False)) == ["attach group new to instance p", "reboot instance p"]


def cluster(kind: str, group: str = "old", status: str = "available", members: str = "in-sync") -> Cluster:
    engine = "aurora-postgresql" if kind == "aurora" else "postgres"
    three = tuple(Member(f"m{number}", number == 1, members) for number in (1, 2, 3))
    return Cluster("c", kind, engine, "16.4", status, parameter_group=group, members=three)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("multi_az_cluster", UP, ["reboot instance m2", "reboot instance m3", "reboot cluster c, which"]),
        ("multi_az_cluster", DOWN, ["reboot cluster c, which", "reboot instance m2", "reboot instance m3"]),
        ("aurora", UP, ["reboot instance m2", "reboot instance m3", "reboot instance m1"]),
    ],
)
def test_the_members_of_a_cluster(kind: str, changes: rollout.MemoryChanges, expected: list[str]) -> None:
    plan = rollout.attach_to_cluster(cluster(kind), "new", changes, REBOOT)
    calls = order(plan)
    assert calls[0] == "attach group new to cluster c"
    assert [call[: len(want)] for call, want in zip(calls[1:], expected, strict=True)] == expected


def test_an_attached_group_in_sync_needs_no_step() -> None:
    plan = rollout.attach_to_cluster(cluster("aurora", "new"), "new", UP, REBOOT)
    assert not plan and "no reboot is pending" in plan.unchanged
    pending = cluster("aurora", "new", members="pending-reboot")
    assert not rollout.attach_to_cluster(pending, "new", UP, rollout.RolloutOptions(reboot=False, timeout_seconds=60))
    assert len(order(rollout.attach_to_cluster(pending, "new", UP, REBOOT))) == 3


def test_a_cluster_that_is_not_available_is_refused() -> None:
    with pytest.raises(NotAvailable, match="modifying"):
        rollout.attach_to_cluster(cluster("aurora", status="modifying"), "new", UP, REBOOT)


def test_a_group_of_another_family_is_refused() -> None:
    with pytest.raises(Refused, match="needs one for postgres16"):
        rollout.require_group_fits("postgres15", "postgres16", "cluster c")
