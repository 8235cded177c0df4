"""The AWS API of the sandbox over HTTP: parameter groups and engines of RDS, the services of moto, injected faults."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from rdsrepl.sandbox import credentials
from rdsrepl.sandbox.api import (
    engine_catalog,
    formulas,
    operations,  # noqa: F401 - registers the operations
    parameter_catalog,
    query_protocol,
    service_model,
)
from rdsrepl.sandbox.api.api_errors import Fault, fault
from rdsrepl.sandbox.api.fault_injection import FaultRule
from rdsrepl.sandbox.api.parameter_groups import GroupValue, ParameterGroups, StoredGroup
from rdsrepl.sandbox.api.server_controller import Controller
from rdsrepl.sandbox.api.service import Service, dispatch, operation_names
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.api.types import ResourceKind
from rdsrepl.sandbox.credentials import Credentials
from rdsrepl.sandbox.directory import SandboxDirectory
from tests.fixtures.sandbox import signed

KINDS: tuple[ResourceKind, ...] = get_args(ResourceKind)
REGION = "eu-west-1"


@dataclass
class Api:
    """A running API process and its clients."""

    path: Path
    process: subprocess.Popen[bytes]
    port: int

    @cached_property
    def credentials(self) -> Credentials:
        return credentials.read(SandboxDirectory(self.path))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, name: str, key: str = "", region: str = REGION, attempts: int = 1) -> Any:
        return boto3.client(  # type: ignore[call-overload]
            name,
            endpoint_url=self.url,
            region_name=region,
            aws_access_key_id=key or self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
            config=Config(retries={"total_max_attempts": attempts, "mode": "standard"}, parameter_validation=False),
        )

    def sandbox(self, method: str, given: object = None, path: str = "faults") -> Any:
        data = None if given is None else json.dumps(given).encode()
        request = signed(self.credentials, f"{self.url}/_sandbox/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def post(self, body: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Send a form, signed for RDS; HEADERS override the headers."""
        request = signed(self.credentials, self.url, body.encode(), service="rds")
        if headers is not None:
            request = urllib.request.Request(self.url, data=body.encode(), headers=dict(headers), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()


def start(path: Path, *region: str) -> Api:
    """Start the process and wait until it listens."""
    file = path / "api.json"
    before = file.stat().st_mtime_ns if file.exists() else None
    with (path / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rdsrepl.sandbox.api", str(path), *region],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    deadline = time.monotonic() + 120
    while not file.exists() or file.stat().st_mtime_ns == before:
        assert process.poll() is None and time.monotonic() < deadline, (path / "api.log").read_text()
        time.sleep(0.02)
    return Api(path, process, json.loads(file.read_text())["port"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One process for all tests of this module."""
    path = tmp_path_factory.mktemp("api")
    (path / "state.json").write_text("{}")
    made = start(path)
    yield made
    made.process.terminate()
    assert made.process.wait(120) == 0, (path / "api.log").read_text()
    assert "Traceback" not in (path / "api.log").read_text()


@pytest.fixture
def api(running: Api) -> Api:
    """The same process, without faults and without groups of another test."""
    running.sandbox("DELETE")
    rds = running.client("rds")
    for kind in KINDS:
        for name in names(rds, kind):
            if not name.startswith("default."):
                call(rds, f"delete_{noun(kind)}_parameter_group", kind, name)
    return running


def noun(kind: ResourceKind) -> str:
    return "db_cluster" if kind == "cluster" else "db"


def key(kind: ResourceKind) -> str:
    return "DBClusterParameterGroup" if kind == "cluster" else "DBParameterGroup"


def call(rds: Any, method: str, kind: ResourceKind, name: str, **other: Any) -> Any:
    return getattr(rds, method)(**{f"{key(kind)}Name": name}, **other)


def names(rds: Any, kind: ResourceKind) -> list[str]:
    pages = rds.get_paginator(f"describe_{noun(kind)}_parameter_groups").paginate(PaginationConfig={"PageSize": 20})
    return [group[f"{key(kind)}Name"] for page in pages for group in page[f"{key(kind)}s"]]


def create(rds: Any, kind: ResourceKind, name: str = "mine", family: str = "postgres16", **other: Any) -> Any:
    given = {"DBParameterGroupFamily": family, "Description": "a test's", **other}
    return call(rds, f"create_{noun(kind)}_parameter_group", kind, name, **given)[key(kind)]


def modify(rds: Any, kind: ResourceKind, *changes: tuple[str, str, str], name: str = "mine") -> Any:
    return call(rds, f"modify_{noun(kind)}_parameter_group", kind, name, Parameters=changed(*changes))


def changed(*changes: tuple[str, str, str]) -> list[dict[str, str]]:
    words = ("ParameterName", "ParameterValue", "ApplyMethod")
    return [dict(zip(words, change, strict=True)) for change in changes]


def held(rds: Any, kind: ResourceKind, name: str = "mine", **other: Any) -> dict[str, dict[str, Any]]:
    """Return the parameters of a group, from all pages."""
    pages = rds.get_paginator(f"describe_{noun(kind)}_parameters").paginate(**{f"{key(kind)}Name": name}, **other)
    return {one["ParameterName"]: one for page in pages for one in page["Parameters"]}


def refused(function: Callable[[], Any]) -> tuple[str, str]:
    """Return the code and the message of an error."""
    with pytest.raises(ClientError) as caught:
        function()
    assert caught.value.response["ResponseMetadata"]["RequestId"]
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


# Groups.


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_from_creation_to_deletion(api: Api, kind: ResourceKind) -> None:
    rds = api.client("rds")
    made = create(rds, kind, "MyGroup")
    assert made == {
        f"{key(kind)}Name": "mygroup",
        "DBParameterGroupFamily": "postgres16",
        "Description": "a test's",
        f"{key(kind)}Arn": f"arn:aws:rds:{REGION}:123456789012:{'cluster-pg' if kind == 'cluster' else 'pg'}:mygroup",
    }
    [described] = call(rds, f"describe_{noun(kind)}_parameter_groups", kind, "MYGROUP")[f"{key(kind)}s"]
    assert described == made
    assert "mygroup" in names(rds, kind)
    other_kind: ResourceKind = "instance" if kind == "cluster" else "cluster"
    assert "mygroup" not in names(rds, other_kind)

    answer = modify(
        rds,
        kind,
        ("rds.logical_replication", "1", "pending-reboot"),
        ("wal_sender_timeout", "0", "immediate"),
        ("max_connections", "LEAST({DBInstanceClassMemory/9531392},500)", "pending-reboot"),
        name="mygroup",
    )
    assert answer[f"{key(kind)}Name"] == "mygroup"
    own = held(rds, kind, "mygroup", Source="user")
    assert {name: (one["ParameterValue"], one["ApplyMethod"]) for name, one in own.items()} == {
        "rds.logical_replication": ("1", "pending-reboot"),
        "wal_sender_timeout": ("0", "immediate"),
        "max_connections": ("LEAST({DBInstanceClassMemory/9531392},500)", "pending-reboot"),
    }
    everything = held(rds, kind, "mygroup")
    assert everything["rds.logical_replication"]["Source"] == "user"
    assert everything["max_replication_slots"]["ParameterValue"] == "20"

    copy = call_copy(rds, kind, "mygroup", "my-copy")
    assert copy[f"{key(kind)}Name"] == "my-copy"
    assert copy["DBParameterGroupFamily"] == "postgres16"
    assert held(rds, kind, "my-copy", Source="user") == own

    reset = f"reset_{noun(kind)}_parameter_group"
    one = [{"ParameterName": "wal_sender_timeout", "ApplyMethod": "immediate"}]
    assert call(rds, reset, kind, "mygroup", Parameters=one)[f"{key(kind)}Name"] == "mygroup"
    assert held(rds, kind, "mygroup", Source="user").keys() == {"rds.logical_replication", "max_connections"}
    assert held(rds, kind, "mygroup")["wal_sender_timeout"]["ParameterValue"] == "30000"
    call(rds, reset, kind, "mygroup", ResetAllParameters=True)
    assert held(rds, kind, "mygroup", Source="user") == {}
    assert held(rds, kind, "my-copy", Source="user") == own

    call(rds, f"delete_{noun(kind)}_parameter_group", kind, "MyGroup")
    assert "mygroup" not in names(rds, kind)


def call_copy(rds: Any, kind: ResourceKind, source: str, target: str) -> Any:
    return getattr(rds, f"copy_{noun(kind)}_parameter_group")(
        **{
            f"Source{key(kind)}Identifier": source,
            f"Target{key(kind)}Identifier": target,
            f"Target{key(kind)}Description": "a copy",
        }
    )[key(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_default_groups_exist_and_cannot_be_changed(api: Api, kind: ResourceKind) -> None:
    rds = api.client("rds")
    assert {f"default.{family}" for family in engine_catalog.families()} == set(names(rds, kind))
    for one in held(rds, kind, "default.postgres17").values():
        assert one["Source"] in ("system", "engine-default"), one
        assert one["ApplyMethod"] == "pending-reboot", one
    change = ("work_mem", "1000", "immediate")
    assert refused(lambda: modify(rds, kind, change, name="default.postgres17")) == (
        "InvalidParameterValue",
        "Cannot modify a default parameter group.",
    )
    reset = f"reset_{noun(kind)}_parameter_group"
    assert refused(lambda: call(rds, reset, kind, "default.postgres17"))[0] == "InvalidParameterValue"
    delete = f"delete_{noun(kind)}_parameter_group"
    code, message = refused(lambda: call(rds, delete, kind, "default.postgres17"))
    assert (code, message) == (
        "InvalidDBParameterGroupState",
        f"Default {key(kind)} cannot be deleted: default.postgres17",
    )
    assert refused(lambda: create(rds, kind, "default.postgres17"))[0] == "InvalidParameterValue"
    assert refused(lambda: call_copy(rds, kind, "default.postgres17", "copy"))[0] == "InvalidParameterValue"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["1st", "-a", "a-", "a--b", "a_b", "a.b", "a b", "ä", "a" * 256])
def test_invalid_names(api: Api, kind: ResourceKind, name: str) -> None:
    rds = api.client("rds")
    code, message = refused(lambda: create(rds, kind, name))
    assert code == "InvalidParameterValue" and f"{key(kind)}Name is not a valid identifier" in message


@pytest.mark.parametrize("kind", KINDS)
def test_groups_that_cannot_be_found_or_created(api: Api, kind: ResourceKind) -> None:
    rds = api.client("rds")
    for function in (
        lambda: call(rds, f"describe_{noun(kind)}_parameter_groups", kind, "gone"),
        lambda: held(rds, kind, "gone"),
        lambda: held(rds, kind, "default.postgres12"),
        lambda: modify(rds, kind, ("work_mem", "100", "immediate"), name="gone"),
        lambda: call(rds, f"reset_{noun(kind)}_parameter_group", kind, "gone"),
        lambda: call(rds, f"delete_{noun(kind)}_parameter_group", kind, "gone"),
        lambda: call_copy(rds, kind, "gone", "target"),
    ):
        code, message = refused(function)
        assert code == "DBParameterGroupNotFound" and message.startswith(f"{key(kind)} not found: ")
    with pytest.raises(rds.exceptions.DBParameterGroupNotFoundFault):
        held(rds, kind, "gone")

    for family in ("postgres12", "postgres16.1", "mysql8.0", "aurora-postgresql", "x"):
        code, message = refused(lambda family=family: create(rds, kind, "mine", family))  # type: ignore[misc]
        assert (code, message) == (
            "InvalidParameterValue",
            f"ParameterGroupFamily {family} is not a valid parameter group family",
        )
    create(rds, kind, "taken")
    assert refused(lambda: create(rds, kind, "TAKEN", "postgres18"))[0] == "DBParameterGroupAlreadyExists"
    assert refused(lambda: call_copy(rds, kind, "taken", "taken"))[0] == "DBParameterGroupAlreadyExists"
    with pytest.raises(rds.exceptions.DBParameterGroupAlreadyExistsFault):
        create(rds, kind, "taken")

    for number in range(49):
        create(rds, kind, f"g{number}")
    assert refused(lambda: create(rds, kind, "one-more"))[0] == "DBParameterGroupQuotaExceeded"
    assert refused(lambda: call_copy(rds, kind, "taken", "one-more"))[0] == "DBParameterGroupQuotaExceeded"
    # No page has more groups than requested, and every group is on exactly one page.
    listed = names(rds, kind)
    assert len(listed) == len(set(listed)) == 50 + len(engine_catalog.families())
    assert listed == sorted(listed)
    call(rds, f"delete_{noun(kind)}_parameter_group", kind, "g0")
    create(rds, kind, "one-more")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (("max_replication_slot", "30", "pending-reboot"), "InvalidParameterValue", "Could not find parameter"),
        (("wal_level", "logical", "pending-reboot"), "InvalidParameterValue", "wal_level cannot be modified"),
        (("wal_receiver_status_interval", "1", "immediate"), "InvalidParameterValue", "cannot be modified"),
        (("hot_standby", "0", "pending-reboot"), "InvalidParameterValue", "cannot be modified"),
        (("port", "6000", "pending-reboot"), "InvalidParameterValue", "cannot be modified"),
        (("max_replication_slots", "4", "pending-reboot"), "InvalidParameterValue", "allowed values are: 5-262143"),
        (("max_replication_slots", "262144", "pending-reboot"), "InvalidParameterValue", "262144 for: max_replic"),
        (("max_replication_slots", "ten", "pending-reboot"), "InvalidParameterValue", "Invalid parameter value: ten"),
        (("max_replication_slots", "1e2", "pending-reboot"), "InvalidParameterValue", "Invalid parameter value"),
        (("max_replication_slots", "", "pending-reboot"), "InvalidParameterValue", "Invalid parameter value"),
        (("max_connections", "LEAST({DBInstanceClassMemory/1,5)", "pending-reboot"), "InvalidParameterValue", "Inval"),
        (("max_connections", "{DBInstanceMemory}", "pending-reboot"), "InvalidParameterValue", "Invalid parameter"),
        (("rds.logical_replication", "on", "pending-reboot"), "InvalidParameterValue", "allowed values are: 0,1"),
        (("max_slot_wal_keep_size", "-2", "immediate"), "InvalidParameterValue", "values are: -1-2147483647"),
        (("checkpoint_completion_target", "1.1", "immediate"), "InvalidParameterValue", "allowed values are: 0-1"),
        (("log_statement", "everything", "immediate"), "InvalidParameterValue", "none,ddl,mod,all"),
        (("shared_preload_libraries", "pg_cron,virus", "pending-reboot"), "InvalidParameterValue", "pg_cron,virus"),
        (("max_replication_slots", "30", "immediate"), "InvalidParameterCombination", "static parameter"),
        (("max_replication_slots", "30", "now"), "InvalidParameterValue", "apply method"),
    ],
)
def test_changes_that_are_refused(
    api: Api, kind: ResourceKind, change: tuple[str, str, str], code: str, said: str
) -> None:
    rds = api.client("rds")
    create(rds, kind)
    good = ("work_mem", "8192", "immediate")
    got, message = refused(lambda: modify(rds, kind, good, change))
    assert got == code and said in message
    # A request changes all parameters or none.
    assert held(rds, kind, Source="user") == {}


@pytest.mark.parametrize(
    ("name", "value", "method"),
    [
        ("max_slot_wal_keep_size", "-1", "immediate"),
        ("max_slot_wal_keep_size", "2147483647", "pending-reboot"),
        ("checkpoint_completion_target", ".5", "immediate"),
        ("random_page_cost", "1.1", "immediate"),
        ("shared_preload_libraries", "pg_stat_statements,pg_cron", "pending-reboot"),
        ("shared_preload_libraries", "", "pending-reboot"),
        ("max_worker_processes", "GREATEST(${DBInstanceVCPU*2},16)", "pending-reboot"),
        ("pgaudit.log", "ddl, write {not a formula}", "immediate"),
        ("timezone", "Europe/Berlin", "immediate"),
    ],
)
def test_changes_that_are_accepted(api: Api, name: str, value: str, method: str) -> None:
    rds = api.client("rds")
    create(rds, "instance")
    modify(rds, "instance", (name, value, method))
    own = held(rds, "instance", Source="user")[name]
    # An empty value is an empty element, which boto3 reads as an empty string.
    assert (own["ParameterValue"], own["ApplyMethod"]) == (value, method)


@pytest.mark.parametrize("kind", KINDS)
def test_the_maximum_number_of_parameters_in_a_request(api: Api, kind: ResourceKind) -> None:
    rds = api.client("rds")
    create(rds, kind)
    dynamic = [one for one in held(rds, kind).values() if one["IsModifiable"] and one["DataType"] == "integer"]
    changes = [
        (one["ParameterName"], one["AllowedValues"].rpartition("-")[2], "pending-reboot") for one in dynamic[:21]
    ]
    assert refused(lambda: modify(rds, kind, *changes))[0] == "InvalidParameterValue"
    assert held(rds, kind, Source="user") == {}
    modify(rds, kind, *changes[:20])
    assert held(rds, kind, Source="user").keys() == {change[0] for change in changes[:20]}
    named = [{"ParameterName": change[0], "ApplyMethod": "pending-reboot"} for change in changes]
    reset = f"reset_{noun(kind)}_parameter_group"
    assert refused(lambda: call(rds, reset, kind, "mine", Parameters=named))[0] == "InvalidParameterValue"
    assert refused(lambda: modify(rds, kind))[0] == "MissingParameter"
    twice = ("work_mem", "100", "immediate")
    assert refused(lambda: modify(rds, kind, twice, twice))[0] == "InvalidParameterValue"


@pytest.mark.parametrize("kind", KINDS)
def test_resets_that_are_refused(api: Api, kind: ResourceKind) -> None:
    rds = api.client("rds")
    create(rds, kind)
    modify(rds, kind, ("max_replication_slots", "30", "pending-reboot"))
    reset = f"reset_{noun(kind)}_parameter_group"
    static = [{"ParameterName": "max_replication_slots", "ApplyMethod": "immediate"}]
    assert refused(lambda: call(rds, reset, kind, "mine", Parameters=static)) == (
        "InvalidParameterCombination",
        "cannot use immediate apply method for static parameter",
    )
    both = {"ResetAllParameters": True, "Parameters": static}
    assert refused(lambda: call(rds, reset, kind, "mine", **both))[0] == "InvalidParameterCombination"
    nothing = {"ResetAllParameters": False}
    assert refused(lambda: call(rds, reset, kind, "mine", **nothing))[0] == "InvalidParameterCombination"
    unknown = [{"ParameterName": "nix", "ApplyMethod": "immediate"}]
    assert refused(lambda: call(rds, reset, kind, "mine", Parameters=unknown))[0] == "InvalidParameterValue"
    assert held(rds, kind, Source="user").keys() == {"max_replication_slots"}


def test_parameters_by_page_and_source(api: Api) -> None:
    rds = api.client("rds")
    create(rds, "cluster", family="aurora-postgresql17")
    modify(rds, "cluster", ("work_mem", "8192", "immediate"))
    pages = list(
        rds.get_paginator("describe_db_cluster_parameters").paginate(
            DBClusterParameterGroupName="mine", PaginationConfig={"PageSize": 20}
        )
    )
    assert [len(page["Parameters"]) for page in pages[:-1]] == [20] * (len(pages) - 1)
    listed = [one["ParameterName"] for page in pages for one in page["Parameters"]]
    assert listed == sorted(engine_catalog.defaults("aurora-postgresql17", "cluster"))
    assert "Marker" not in pages[-1]
    by_source = {source: held(rds, "cluster", Source=source).keys() for source in ("user", "system", "engine-default")}
    assert by_source["user"] == {"work_mem"}
    assert "rds.logical_replication" in by_source["system"]
    assert "max_logical_replication_workers" in by_source["engine-default"]
    assert sorted(name for chosen in by_source.values() for name in chosen) == listed
    one = held(rds, "cluster", Filters=[{"Name": "parameter-name", "Values": ["work_mem", "jit"]}])
    assert one.keys() == {"work_mem", "jit"}

    group = {"DBClusterParameterGroupName": "mine"}
    for wrong in (
        {"MaxRecords": 19},
        {"MaxRecords": 101},
        {"Marker": "nonsense"},
        {"Source": "engine"},
        {"Filters": [{"Name": "colour", "Values": ["red"]}]},
    ):
        code, _ = refused(lambda wrong=wrong: rds.describe_db_cluster_parameters(**group, **wrong))  # type: ignore[misc]
        assert code == "InvalidParameterValue", wrong
    wrong_number = {**group, "MaxRecords": "many"}
    assert refused(lambda: rds.describe_db_cluster_parameters(**wrong_number))[0] == "MalformedInput"


# Defaults.


def test_every_family_has_valid_parameters() -> None:
    for family, (engine, major) in engine_catalog.families().items():
        for kind in KINDS:
            every = engine_catalog.defaults(family, kind)
            assert len(every) >= 60
            for one in every.values():
                assert one.description
                if one.value is None:
                    continue
                # A default is an allowed value on every class.
                for instance_class in ("db.t3.micro", "db.r6g.large", "db.r6i.16xlarge"):
                    size = engine_catalog.instance_class(instance_class)
                    value = formulas.evaluate(one.value, size.vcpu, size.memory_bytes)
                    if engine == "postgres" or size.aurora:
                        assert one.allows(value), (family, one, value)
        if engine == "postgres":
            assert engine_catalog.defaults(family, "instance") == engine_catalog.defaults(family, "cluster")
        else:
            assert (
                engine_catalog.defaults(family, "instance").items() < engine_catalog.defaults(family, "cluster").items()
            )
        assert ("idle_session_timeout" in engine_catalog.defaults(family, "instance")) == (major >= 14)


# family, kind, parameter: value, apply type; None: the parameter does not exist. From the RDS and Aurora user guides.
DEFAULTS: list[tuple[str, ResourceKind, str, tuple[str | None, str] | None]] = [
    ("postgres13", "instance", "max_wal_senders", ("20", "static")),
    ("postgres15", "cluster", "max_wal_senders", ("20", "static")),
    ("postgres16", "instance", "max_wal_senders", ("35", "static")),
    ("postgres18", "instance", "max_wal_senders", ("35", "static")),
    ("aurora-postgresql16", "cluster", "max_wal_senders", ("10", "static")),
    ("aurora-postgresql16", "instance", "max_wal_senders", None),
    ("postgres14", "instance", "max_replication_slots", ("20", "static")),
    ("aurora-postgresql14", "cluster", "max_replication_slots", ("20", "static")),
    ("aurora-postgresql14", "instance", "max_replication_slots", None),
    ("postgres17", "instance", "rds.logical_replication", ("0", "static")),
    ("aurora-postgresql17", "cluster", "rds.logical_replication", ("0", "static")),
    ("aurora-postgresql17", "instance", "rds.logical_replication", None),
    ("postgres17", "instance", "max_logical_replication_workers", (None, "static")),
    ("postgres17", "instance", "max_sync_workers_per_subscription", (None, "dynamic")),
    ("postgres17", "instance", "max_worker_processes", ("GREATEST({DBInstanceVCPU*2},8)", "static")),
    ("aurora-postgresql17", "instance", "max_worker_processes", ("GREATEST(${DBInstanceVCPU*2},8)", "static")),
    ("postgres17", "instance", "autovacuum_max_workers", ("GREATEST({DBInstanceClassMemory/64371566592},3)", "static")),
    ("postgres18", "cluster", "autovacuum_max_workers", ("GREATEST({DBInstanceClassMemory/64371566592},3)", "dynamic")),
    ("postgres17", "instance", "autovacuum_worker_slots", None),
    (
        "postgres18",
        "instance",
        "autovacuum_worker_slots",
        ("LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)", "static"),
    ),
    ("postgres17", "instance", "idle_replication_slot_timeout", None),
    ("postgres18", "instance", "idle_replication_slot_timeout", (None, "dynamic")),
    ("postgres17", "instance", "max_active_replication_origins", None),
    ("postgres18", "instance", "max_active_replication_origins", ("20", "static")),
    ("aurora-postgresql18", "cluster", "max_active_replication_origins", ("20", "static")),
    ("postgres16", "instance", "sync_replication_slots", None),
    ("postgres17", "instance", "sync_replication_slots", ("0", "dynamic")),
    ("aurora-postgresql17", "cluster", "sync_replication_slots", None),
    ("postgres17", "instance", "synchronized_standby_slots", (None, "dynamic")),
    ("aurora-postgresql18", "cluster", "synchronized_standby_slots", None),
    ("postgres17", "instance", "rds.logical_slot_sync_dbname", ("postgres", "dynamic")),
    ("postgres16", "instance", "rds.logical_slot_sync_dbname", None),
    ("aurora-postgresql17", "cluster", "rds.logical_slot_sync_dbname", None),
    ("postgres14", "instance", "rds.force_ssl", ("0", "dynamic")),
    ("postgres15", "instance", "rds.force_ssl", ("1", "dynamic")),
    ("aurora-postgresql16", "cluster", "rds.force_ssl", ("0", "dynamic")),
    ("aurora-postgresql17", "cluster", "rds.force_ssl", ("1", "dynamic")),
    ("postgres13", "instance", "wal_keep_size", ("2048", "dynamic")),
    ("aurora-postgresql13", "cluster", "wal_keep_size", None),
    ("postgres18", "instance", "wal_sender_timeout", ("30000", "dynamic")),
    ("aurora-postgresql18", "cluster", "wal_sender_timeout", ("30000", "dynamic")),
    ("postgres16", "instance", "rds.logical_wal_cache", None),
    ("aurora-postgresql16", "cluster", "rds.logical_wal_cache", (None, "static")),
    ("aurora-postgresql16", "instance", "hot_standby_feedback", ("1", "dynamic")),
    ("postgres16", "instance", "hot_standby_feedback", (None, "dynamic")),
    ("postgres16", "instance", "max_slot_wal_keep_size", (None, "dynamic")),
    ("aurora-postgresql16", "instance", "max_slot_wal_keep_size", (None, "dynamic")),
    ("postgres16", "instance", "max_prepared_transactions", ("0", "static")),
    ("postgres16", "instance", "max_locks_per_transaction", ("64", "static")),
    ("postgres16", "instance", "max_connections", ("LEAST({DBInstanceClassMemory/9531392},5000)", "static")),
    ("postgres16", "instance", "rds.iam_auth_for_replication", ("0", "dynamic")),
    ("aurora-postgresql16", "cluster", "aurora.enhanced_logical_replication", ("0", "static")),
    ("postgres16", "instance", "wal_level", (None, "static")),
]


def test_defaults_by_version_engine_and_kind(running: Api) -> None:
    rds = running.client("rds")
    answers: dict[tuple[str, ResourceKind], dict[str, Any]] = {}
    for family, kind, name, wanted in DEFAULTS:
        if (family, kind) not in answers:
            answers[family, kind] = engine_defaults(rds, family, kind)
            assert answers[family, kind].keys() == held(rds, kind, f"default.{family}").keys()
        one = answers[family, kind].get(name)
        got = None if one is None else (one.get("ParameterValue"), one["ApplyType"])
        assert got == wanted, (family, kind, name)


def engine_defaults(rds: Any, family: str, kind: ResourceKind) -> dict[str, Any]:
    """Return the defaults of a family, from all pages; boto3 has no paginator for those of clusters."""
    describe = getattr(rds, f"describe_engine_default_{'cluster_' if kind == 'cluster' else ''}parameters")
    found: dict[str, Any] = {}
    marker: dict[str, str] = {}
    while True:
        answer = describe(DBParameterGroupFamily=family, MaxRecords=50, **marker)["EngineDefaults"]
        assert answer["DBParameterGroupFamily"] == family
        found |= {one["ParameterName"]: one for one in answer["Parameters"]}
        if "Marker" not in answer:
            return found
        marker = {"Marker": answer["Marker"]}


def test_the_description_of_default_parameters(running: Api) -> None:
    rds = running.client("rds")
    every = engine_defaults(rds, "aurora-postgresql14", "cluster")
    assert every["rds.logical_wal_cache"]["MinimumEngineVersion"] == "14.5"
    assert every["rds.logical_wal_cache"]["SupportedEngineModes"] == ["provisioned"]
    assert "MinimumEngineVersion" not in every["work_mem"]
    plain = engine_defaults(rds, "postgres17", "instance")
    assert plain["wal_level"]["IsModifiable"] is False and plain["wal_level"]["Source"] == "system"
    assert plain["max_replication_slots"] == {
        "ParameterName": "max_replication_slots",
        "ParameterValue": "20",
        "Description": plain["max_replication_slots"]["Description"],
        "Source": "system",
        "ApplyType": "static",
        "DataType": "integer",
        "AllowedValues": "5-262143",
        "IsModifiable": True,
    }
    assert plain["rds.logical_replication"]["DataType"] == "boolean"
    assert plain["max_slot_wal_keep_size"]["AllowedValues"] == "-1-2147483647"
    assert plain["max_slot_wal_keep_size"]["Source"] == "engine-default"
    for describe in (rds.describe_engine_default_parameters, rds.describe_engine_default_cluster_parameters):
        code, _ = refused(lambda describe=describe: describe(DBParameterGroupFamily="postgres12"))  # type: ignore[misc]
        assert code == "InvalidParameterValue"
    pages = list(
        rds.get_paginator("describe_engine_default_parameters").paginate(
            DBParameterGroupFamily="postgres17", PaginationConfig={"PageSize": 100}
        )
    )
    assert [len(page["EngineDefaults"]["Parameters"]) for page in pages] == [100, len(plain) - 100]


GIB = 1024**3


@pytest.mark.parametrize(
    ("formula", "vcpu", "gib", "value"),
    [
        ("20", 2, 8, "20"),
        ("-1", 2, 8, "-1"),
        ("LEAST({DBInstanceClassMemory/9531392},5000)", 2, 1, str(GIB // 9531392)),
        ("LEAST({DBInstanceClassMemory/9531392},5000)", 2, 16, str(16 * GIB // 9531392)),
        ("LEAST({DBInstanceClassMemory/9531392},5000)", 64, 512, "5000"),
        ("GREATEST({DBInstanceVCPU*2},8)", 2, 8, "8"),
        ("GREATEST({DBInstanceVCPU*2},8)", 16, 128, "32"),
        ("GREATEST({DBInstanceVCPU}*2,8)", 16, 128, "32"),
        ("GREATEST(${DBInstanceVCPU*2},8)", 8, 64, "16"),
        ("GREATEST(${DBInstanceVCPU/2},8)", 64, 512, "32"),
        ("GREATEST({DBInstanceVCPU/2},8)", 1, 2, "8"),
        ("GREATEST({DBInstanceClassMemory/64371566592},3)", 2, 16, "3"),
        ("GREATEST({DBInstanceClassMemory/64371566592},3)", 64, 512, str(512 * GIB // 64371566592)),
        ("LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)", 2, 16, "16"),
        ("LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)", 96, 768, "25"),
        ("LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)", 128, 2048, "32"),
        ("{DBInstanceClassMemory/32768}", 2, 16, str(16 * GIB // 32768)),
        ("SUM({DBInstanceClassMemory/12038},-50003)", 2, 16, str(16 * GIB // 12038 - 50003)),
        ("SUM(1, 2, 3)", 2, 16, "6"),
        ("GREATEST({DBInstanceClassMemory*1024/63963136},65536)", 2, 8, str(8 * GIB * 1024 // 63963136)),
        ("greatest( {DBInstanceVCPU} , 1 )", 4, 16, "4"),
        ("{(DBInstanceVCPU+1)*2-3}", 4, 16, "7"),
        ("{EndPointPort}", 4, 16, "5432"),
        (
            "GREATEST({log(DBInstanceClassMemory/21474836480)*600},200)",
            16,
            128,
            str(math.trunc(math.log2(128 * GIB / 21474836480) * 600)),
        ),
    ],
)
def test_formulas(formula: str, vcpu: int, gib: int, value: str) -> None:
    assert formulas.evaluate(formula, vcpu, gib * GIB) == value


@pytest.mark.parametrize(
    "formula",
    ["{", "{}", "{DBInstanceVCPU", "{DBInstanceVCPU}}", "{vcpu}", "LEAST(", "LEAST()", "LEAST(1,)",
     "{DBInstanceVCPU/0}", "MEAN({DBInstanceVCPU},1)", "{DBInstanceVCPU*}", "{1 2}", "{log(0)}", "{" * 500,
     "{DBInstanceVCPU};x"],
)  # fmt: skip
def test_invalid_formulas(formula: str) -> None:
    with pytest.raises(ValueError):
        formulas.evaluate(formula, 2, GIB)


def test_engine_versions_and_their_families(running: Api) -> None:
    rds = running.client("rds")
    pages = rds.get_paginator("describe_db_engine_versions").paginate(PaginationConfig={"PageSize": 20})
    every = [one for page in pages for one in page["DBEngineVersions"]]
    assert {(one["Engine"], one["DBParameterGroupFamily"]) for one in every} == {
        (engine, family) for family, (engine, _) in engine_catalog.families().items()
    }
    for one in every:
        major = one["EngineVersion"].split(".")[0]
        assert one["DBParameterGroupFamily"] == f"{one['Engine']}{major}"
        assert engine_catalog.family_of(one["Engine"], one["EngineVersion"]) == one["DBParameterGroupFamily"]
    # The releases of the installed programs are among the versions.
    from rdsrepl.sandbox.servers import binaries

    offered = {one["EngineVersion"] for one in every if one["Engine"] == "postgres"}
    for found in (*binaries.installed(), *binaries.from_wheel()):
        if found.major in parameter_catalog.MAJORS:
            assert ".".join(map(str, found.version)) in offered

    def asked(**wanted: Any) -> list[str]:
        answer = rds.describe_db_engine_versions(**wanted)["DBEngineVersions"]
        return [f"{one['Engine']} {one['EngineVersion']}" for one in answer]

    sixteen = asked(Engine="postgres", EngineVersion="16")
    assert len(sixteen) > 1 and all(one.startswith("postgres 16.") for one in sixteen)
    assert asked(Engine="aurora-postgresql", EngineVersion="16.1") == ["aurora-postgresql 16.1"]
    assert asked(Engine="postgres", EngineVersion="16", DefaultOnly=True) == [sixteen[-1]]
    assert len(asked(Engine="postgres", DefaultOnly=True)) == 1
    assert asked(DBParameterGroupFamily="postgres16") == sixteen
    assert asked(Engine="postgres", EngineVersion="12") == []
    assert asked(Engine="oracle-ee") == []
    oldest = rds.describe_db_engine_versions(Engine="postgres", EngineVersion="17.1")["DBEngineVersions"][0]
    majors = {
        (one["EngineVersion"].split(".")[0], one["IsMajorVersionUpgrade"]) for one in oldest["ValidUpgradeTarget"]
    }
    assert majors == {("17", False), ("18", True)}
    with pytest.raises(Fault, match="InvalidParameterCombination: Cannot find version 12 for postgres"):
        engine_catalog.find("postgres", "12")
    with pytest.raises(Fault, match="InvalidParameterValue"):
        engine_catalog.find("mysql")


def test_instance_classes() -> None:
    classes = engine_catalog.instance_classes().values()
    clusters = {one.name for one in classes if one.clusters}
    assert {"db.m6gd.large", "db.r6gd.xlarge"} <= clusters
    assert not {"db.t3.medium", "db.m6g.large"} & clusters
    large = engine_catalog.instance_class("db.r6g.2xlarge")
    assert (large.vcpu, large.memory_bytes) == (8, 64 * GIB)
    with pytest.raises(Fault, match=r"Invalid DB Instance class: db\.r9"):
        engine_catalog.instance_class("db.r9")


# What operations on parameter groups ask of the controller.


class Recorder(Controller):
    """A controller without servers, which records the changes of groups."""

    def __init__(self) -> None:
        self.used: list[str] = []
        self.changes: list[tuple[str, str, dict[str, str]]] = []

    def users(self, kind: ResourceKind, name: str) -> list[str]:
        assert (kind, name) == ("cluster", "mine")
        return self.used

    def group_changed(self, kind: ResourceKind, name: str, changed: Mapping[str, Any]) -> None:
        self.changes.append((kind, name, dict(changed)))


def ask(service: Service, operation: str, **given: Any) -> Any:
    return dispatch(service, query_protocol.Request(operation, given))


def test_changes_of_a_group_reach_the_controller_and_used_groups_are_not_deleted() -> None:
    controller, store = Recorder(), Store(None)
    service = Service(store, ParameterGroups(store), controller)
    named = {"DBClusterParameterGroupName": "mine"}
    ask(service, "CreateDBClusterParameterGroup", **named, DBParameterGroupFamily="postgres18", Description="d")
    changes = changed(
        ("rds.logical_replication", "1", "pending-reboot"),
        ("work_mem", "8192", "immediate"),
        ("jit", "0", "pending-reboot"),
        ("max_replication_slots", "20", "pending-reboot"),
    )
    ask(service, "ModifyDBClusterParameterGroup", **named, Parameters=changes)
    # 20 is the value it had. A dynamic parameter can wait for the reboot, too.
    assert controller.changes == [
        ("cluster", "mine", {"rds.logical_replication": "static", "work_mem": "dynamic", "jit": "static"})
    ]
    values = service.groups.values("cluster", "mine", "db.r6gd.large")
    assert (values["rds.logical_replication"], values["work_mem"], values["jit"]) == ("1", "8192", "0")
    assert values["max_connections"] == str(16 * GIB // 9531392)
    assert values["max_worker_processes"] == "8"
    assert not {"port", "wal_level", "listen_addresses"} & values.keys()
    assert "max_slot_wal_keep_size" not in values

    ask(service, "ModifyDBClusterParameterGroup", **named, Parameters=changes)
    assert len(controller.changes) == 1
    ask(service, "ResetDBClusterParameterGroup", **named)
    assert controller.changes[1] == (
        "cluster",
        "mine",
        {"rds.logical_replication": "static", "work_mem": "dynamic", "jit": "dynamic"},
    )
    controller.used = ["db-1"]
    with pytest.raises(Fault) as caught:
        ask(service, "DeleteDBClusterParameterGroup", **named)
    assert (caught.value.code, caught.value.status) == ("InvalidDBParameterGroupState", 400)
    assert "db-1" not in caught.value.message and "mine" in caught.value.message
    assert service.groups.find("cluster", "mine") is not None
    controller.used = []
    ask(service, "DeleteDBClusterParameterGroup", **named)
    assert service.groups.find("cluster", "mine") is None


def test_groups_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "aws.json"
    store = Store(path)
    ParameterGroups(store).create(
        StoredGroup("mine", "cluster", "postgres16", "said", {"work_mem": GroupValue("8192", "immediate")})
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["aws.json"]
    again = ParameterGroups(Store(path)).get("cluster", "mine")
    assert again == StoredGroup("mine", "cluster", "postgres16", "said", {"work_mem": GroupValue("8192", "immediate")})
    assert ParameterGroups(Store(path)).find("instance", "mine") is None
    path.write_text('{"format": 99}')
    with pytest.raises(Exception, match=r"could not read .*: another format"):
        Store(path)


# The protocol.


def test_malformed_requests(running: Api) -> None:
    def said(body: str) -> tuple[int, str, str]:
        status, answer = running.post(body)
        found = re.search("<Code>(.*)</Code><Message>(.*)</Message>", answer)
        assert found, answer
        return status, found[1], found[2]

    version = "&Version=2014-10-31"
    assert said("Action=Nonsense" + version)[:2] == (400, "InvalidAction")
    assert said("Action=DescribeDBParameters&Version=2010-01-01")[:2] == (400, "InvalidAction")
    assert said("Version=2014-10-31")[:2] == (400, "MissingParameter")
    missing = said("Action=DescribeDBParameters" + version)
    assert missing == (400, "MissingParameter", "The request must contain the parameter DBParameterGroupName.")
    modify = f"Action=ModifyDBParameterGroup{version}&DBParameterGroupName=a"
    assert said(f"{modify}&Colour=red&Parameters.Parameter.1.ParameterName=a")[:2] == (400, "ValidationError")
    assert said(f"{modify}&Parameters.Parameter.x.ParameterName=a")[:2] == (400, "MalformedInput")
    assert said(f"{modify}&Parameters=a&Parameters.Parameter.1.ParameterName=a")[:2] == (400, "MalformedInput")
    assert said(f"{modify}&DBParameterGroupName=b")[:2] == (400, "MalformedInput")
    assert said(f"{modify}&Parameters.Parameter.1.IsModifiable=maybe")[:2] == (400, "MalformedInput")
    assert said(f"{modify}%00")[:2] == (400, "MalformedInput")
    assert said(f"{modify}%ff")[:2] == (404, "MalformedQueryString")
    assert said("Action=DescribeReservedDBInstances" + version)[:2] == (501, "NotImplemented")
    # Some clients write `member` for every list; a field may be empty.
    member = f"{modify}&Parameters.member.1.ParameterName=work_mem"
    assert said(member)[:2] == (404, "DBParameterGroupNotFound")
    escaped = said(f"Action=DescribeDBParameters{version}&DBParameterGroupName=%3Cb%3E%26")
    assert escaped[2] == "DBParameterGroup not found: &lt;b&gt;&amp;"
    unsigned = running.post("Action=DescribeDBParameterGroups" + version, {"X-Nothing": "y"})
    assert unsigned[0] == 403 and "MissingAuthenticationToken" in unsigned[1]


def test_faults_have_the_codes_of_the_model() -> None:
    known = {
        "DBParameterGroupNotFoundFault": ("DBParameterGroupNotFound", 404),
        "DBParameterGroupAlreadyExistsFault": ("DBParameterGroupAlreadyExists", 400),
        "DBClusterNotFoundFault": ("DBClusterNotFoundFault", 404),
        "DBInstanceNotFoundFault": ("DBInstanceNotFound", 404),
        "InvalidDBClusterStateFault": ("InvalidDBClusterStateFault", 400),
        "InvalidParameterValue": ("InvalidParameterValue", 400),
    }
    for shape, wanted in known.items():
        made = fault(shape, "x")
        assert (made.code, made.status) == wanted
    with pytest.raises(KeyError):
        fault("NoSuchFault", "x")
    assert operation_names() <= set(service_model.service().operation_names)


def test_botocore_can_parse_the_responses() -> None:
    from botocore.parsers import create_parser

    answer = {
        "DBClusters": [
            {
                "DBClusterIdentifier": "a & b",
                "AllocatedStorage": 100,
                "MultiAZ": True,
                "ClusterCreateTime": "2026-01-02T03:04:05+00:00",
                "AvailabilityZones": ["eu-west-1a", "eu-west-1b"],
                "DBClusterMembers": [{"DBInstanceIdentifier": "w", "IsClusterWriter": True}],
                "Iops": None,
            }
        ]
    }
    body = query_protocol.write("DescribeDBClusters", answer, "id-1")
    shape = service_model.service().operation_model("DescribeDBClusters").output_shape
    read = create_parser("query").parse({"status_code": 200, "headers": {}, "body": body}, shape)
    [cluster] = read["DBClusters"]
    assert cluster.pop("ClusterCreateTime").isoformat() == "2026-01-02T03:04:05+00:00"
    expected = dict(answer["DBClusters"][0])
    del expected["ClusterCreateTime"], expected["Iops"]
    assert cluster == expected
    assert read["ResponseMetadata"]["RequestId"] == "id-1"
    for wrong in ({"Nonsense": 1}, {"Marker": 1}, {"DBClusters": "x"}, {"DBClusters": [{"MultiAZ": "yes"}]}):
        with pytest.raises(TypeError):
            query_protocol.write("DescribeDBClusters", wrong, "id")


# Access keys, regions and injected faults.


@pytest.mark.parametrize(
    ("prefix", "query", "in_json"),
    [
        ("AKIAEXPIRED", "ExpiredToken", "ExpiredTokenException"),
        ("AKIADENIED", "AccessDenied", "AccessDeniedException"),
        ("AKIAINVALID", "InvalidClientTokenId", "UnrecognizedClientException"),
    ],
)
def test_access_keys_that_are_refused(api: Api, prefix: str, query: str, in_json: str) -> None:
    key = prefix + "0001"
    assert refused(api.client("rds", key).describe_db_parameter_groups)[0] == query
    assert refused(api.client("kinesis", key).list_streams)[0] == in_json
    assert refused(api.client("secretsmanager", key).list_secrets)[0] == in_json
    assert refused(api.client("cloudwatch", key).list_metrics)[0] in (query, in_json)


def test_a_denial_names_the_action(api: Api) -> None:
    rds = api.client("rds", "AKIADENIED1")
    code, message = refused(rds.describe_db_clusters)
    assert code == "AccessDenied"
    assert message.startswith(
        "User: arn:aws:iam::123456789012:user/denied is not authorized to perform: rds:DescribeDBClusters on resource: "
        "arn:aws:rds:eu-west-1:123456789012:cluster:*"
    )
    _, message = refused(lambda: create(rds, "cluster"))
    assert "rds:CreateDBClusterParameterGroup on resource: arn:aws:rds:eu-west-1:123456789012:cluster-pg:*" in message
    _, message = refused(api.client("cloudwatch", "AKIADENIED1").list_metrics)
    assert "cloudwatch:ListMetrics" in message
    assert api.client("sts", "AKIADENIED1").get_caller_identity()["Account"] == "123456789012"


def test_another_region_has_its_own_records(api: Api) -> None:
    create(api.client("rds"), "instance", "here")
    there = api.client("rds", region="ap-south-1")
    assert "here" not in names(there, "instance")
    assert refused(lambda: held(there, "instance", "here"))[0] == "DBParameterGroupNotFound"
    made = create(there, "instance", "there")
    assert made["DBParameterGroupArn"] == "arn:aws:rds:ap-south-1:123456789012:pg:there"
    assert "there" not in names(api.client("rds"), "instance")
    version = there.describe_db_engine_versions(Engine="postgres", EngineVersion="16.1")["DBEngineVersions"][0]
    assert version["DBEngineVersionArn"].startswith("arn:aws:rds:ap-south-1:")
    api.client("kinesis").create_stream(StreamName="here", ShardCount=1)
    assert "here" not in api.client("kinesis", region="ap-south-1").list_streams()["StreamNames"]


SERVICES: list[tuple[str, str, str]] = [
    ("rds", "DescribeDBParameterGroups", "describe_db_parameter_groups"),
    ("kinesis", "ListStreams", "list_streams"),
    ("secretsmanager", "ListSecrets", "list_secrets"),
    ("cloudwatch", "ListMetrics", "list_metrics"),
    ("sts", "GetCallerIdentity", "get_caller_identity"),
]


@pytest.mark.parametrize(("service", "operation", "method"), SERVICES, ids=[one[0] for one in SERVICES])
def test_injected_faults(api: Api, service: str, operation: str, method: str) -> None:
    rule = {"service": service, "operation": operation, "code": "ThrottlingException", "message": "Rate exceeded"}
    api.sandbox("POST", [{**rule, "times": 2}])
    client = api.client(service)
    for _ in range(2):
        assert refused(getattr(client, method)) == ("ThrottlingException", "Rate exceeded")
    getattr(client, method)()
    # A client that retries succeeds.
    api.sandbox("POST", [{**rule, "code": "Throttling", "times": 2}])
    answer = getattr(api.client(service, attempts=3), method)()
    assert answer["ResponseMetadata"]["RetryAttempts"] == 2
    assert api.sandbox("GET") == []


def test_faults_for_all_operations_or_one_until_they_are_removed(api: Api) -> None:
    api.sandbox("POST", {"service": "rds", "code": "InternalFailure", "status": 503, "times": None})
    api.sandbox("POST", {"service": "*", "operation": "ListStreams", "code": "AccessDeniedException", "times": None})
    rds, kinesis = api.client("rds"), api.client("kinesis")
    for _ in range(3):
        assert refused(rds.describe_db_parameter_groups)[0] == "InternalFailure"
        assert refused(lambda: create(rds, "cluster"))[0] == "InternalFailure"
        assert refused(kinesis.list_streams)[0] == "AccessDeniedException"
    kinesis.describe_limits()
    assert [rule["times"] for rule in api.sandbox("GET")] == [None, None]
    api.sandbox("DELETE")
    kinesis.list_streams()
    create(rds, "cluster")
    api.sandbox(
        "POST", {"service": "rds", "operation": "CreateDBParameterGroup", "code": "DBParameterGroupQuotaExceeded"}
    )
    with pytest.raises(rds.exceptions.DBParameterGroupQuotaExceededFault):
        create(rds, "instance")


@pytest.mark.parametrize(
    "given",
    [
        {},
        [1],
        {"service": "rds"},
        {"code": "x"},
        {"service": "rds", "code": "x", "colour": 1},
        {"service": "rds", "code": 5},
        {"service": "rds", "code": "x", "status": 200},
        {"service": "rds", "code": "x", "times": 0},
        {"service": "rds", "code": "x", "times": "2"},
    ],
)
def test_invalid_faults(api: Api, given: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        api.sandbox("POST", [{"service": "rds", "code": "Throttling"}, given])
    assert caught.value.code == 400 and json.load(caught.value)["message"]
    assert api.sandbox("GET") == []
    with pytest.raises(ValueError):
        FaultRule.parse(given)


# The services of moto.


def test_the_services_of_moto(api: Api) -> None:
    assert api.client("sts").get_caller_identity()["Account"] == "123456789012"

    kinesis = api.client("kinesis")
    kinesis.create_stream(StreamName="changes", ShardCount=2)
    kinesis.get_waiter("stream_exists").wait(StreamName="changes", WaiterConfig={"Delay": 0.1, "MaxAttempts": 50})
    blob = bytes(range(256)) * 2000
    put = kinesis.put_record(StreamName="changes", Data=blob, PartitionKey="table.1")
    both = kinesis.put_records(
        StreamName="changes", Records=[{"Data": b"%d" % number, "PartitionKey": str(number)} for number in range(100)]
    )
    assert both["FailedRecordCount"] == 0 and len(both["Records"]) == 100
    summary = kinesis.describe_stream_summary(StreamName="changes")["StreamDescriptionSummary"]
    assert (summary["StreamStatus"], summary["OpenShardCount"]) == ("ACTIVE", 2)
    iterator = kinesis.get_shard_iterator(
        StreamName="changes", ShardId=put["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    assert kinesis.get_records(ShardIterator=iterator)["Records"][0]["Data"] == blob
    assert refused(lambda: kinesis.describe_stream_summary(StreamName="gone"))[0] == "ResourceNotFoundException"

    secrets = api.client("secretsmanager")
    text = json.dumps({"username": "dbadmin", "password": "ä'\"<&>"})
    arn = secrets.create_secret(Name="prod/db", SecretString=text)["ARN"]
    assert secrets.get_secret_value(SecretId=arn)["SecretString"] == text
    assert refused(lambda: secrets.get_secret_value(SecretId="gone"))[0] == "ResourceNotFoundException"

    from datetime import UTC, datetime, timedelta

    watch = api.client("cloudwatch")
    dimensions = [{"Name": "DBInstanceIdentifier", "Value": "db-1"}]
    watch.put_metric_data(
        Namespace="AWS/RDS",
        MetricData=[
            {"MetricName": "OldestReplicationSlotLag", "Dimensions": dimensions, "Value": 5e9, "Unit": "Bytes"}
        ],
    )
    now = datetime.now(UTC)
    metric = {"Namespace": "AWS/RDS", "MetricName": "OldestReplicationSlotLag", "Dimensions": dimensions}
    answer = watch.get_metric_data(
        MetricDataQueries=[{"Id": "lag", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Maximum"}}],
        StartTime=now - timedelta(minutes=10),
        EndTime=now + timedelta(minutes=10),
    )
    assert answer["MetricDataResults"][0]["Values"] == [5e9]


# The process.


def test_a_restarted_process_keeps_its_port_and_groups_and_ends_with_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    first = start(tmp_path)
    saved = json.loads((tmp_path / "api.json").read_text())
    assert saved["pid"] == first.process.pid and saved["started"]
    create(first.client("rds"), "instance", "kept")
    first.process.terminate()
    assert first.process.wait(120) == 0

    second = start(tmp_path)
    assert second.port == first.port
    assert "kept" in names(second.client("rds"), "instance")
    SandboxDirectory(tmp_path).state_file.unlink()
    assert second.process.wait(120) == 0

    command = [sys.executable, "-m", "rdsrepl.sandbox.api", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and done.stderr == f"no sandbox in {tmp_path}\n"
