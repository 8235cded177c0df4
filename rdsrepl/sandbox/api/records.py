"""What RDS knows of clusters, instances, snapshots, subnet groups and events: the store's records, typed.

Where the servers are, which of them is the writer and on which ports they are reached is the state's (``state.py``).
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, TypeVar

from rdsrepl.sandbox.api.faults import Fault, fault
from rdsrepl.sandbox.api.parameter_catalog import Engine
from rdsrepl.sandbox.api.store import Store

ParameterStatus = Literal["in-sync", "applying", "pending-reboot", "failed-to-apply"]
MAX_EVENTS: Final = 500

_IDENTIFIER: Final = re.compile(r"[a-z](?:-?[a-z0-9])*")


@dataclass(slots=True)
class Cluster:
    """A DB cluster: Multi-AZ (engine ``postgres``), or Aurora.

    Attributes:
        version: as RDS writes it: ``16.14``.
        instance_class: of all members; None on Aurora, where each has its own.
        allocated_gib: None on Aurora.
        dbname: the database made with it.
        parameter_group: the one that is attached, of which members may not be aware yet.
        secret_arn: of the secret with the master password, where RDS keeps it.
        password: the same secret's content, as Secrets Manager forgets it with its process.
        pending: changes that wait for the maintenance window: the members of ``PendingModifiedValues``.
        created: a moment in ISO 8601, as all moments here.
    """

    SECTION: ClassVar[str] = "clusters"

    identifier: str
    engine: Engine
    version: str
    master_user: str
    resource_id: str
    parameter_group: str
    created: str
    status: str = "creating"
    dbname: str | None = None
    instance_class: str | None = None
    allocated_gib: int | None = None
    storage_type: str = "aurora"
    iops: int | None = None
    deletion_protection: bool = False
    iam_auth: bool = False
    backup_days: int = 1
    encrypted: bool = False
    secret_arn: str | None = None
    password: str | None = field(default=None, repr=False)
    pending: dict[str, Any] = field(default_factory=dict)

    @property
    def multi_az(self) -> bool:
        """Whether it is a Multi-AZ DB cluster, and not Aurora."""
        return self.engine == "postgres"


@dataclass(slots=True)
class Instance:
    """A DB instance: a cluster's member, one by itself, or a read replica.

    Attributes:
        cluster: whose member it is.
        parameter_group: the attached group of its own kind.
        parameter_status: whether its server has that group's values.
        active_group: the group of its own kind whose values the server has.
        cluster_status: the same of the cluster's group; meaningless outside a cluster.
        active_cluster_group: the cluster's group whose values the server has.
        source: the instance it is a read replica of.
        pending: changes that wait for the maintenance window: the members of ``PendingModifiedValues``.
    """

    SECTION: ClassVar[str] = "instances"

    identifier: str
    engine: Engine
    version: str
    instance_class: str
    master_user: str
    resource_id: str
    zone: str
    parameter_group: str
    active_group: str
    created: str
    status: str = "creating"
    parameter_status: ParameterStatus = "in-sync"
    cluster: str | None = None
    cluster_status: ParameterStatus = "in-sync"
    active_cluster_group: str = ""
    promotion_tier: int = 1
    source: str | None = None
    dbname: str | None = None
    multi_az: bool = False
    secondary_zone: str | None = None
    allocated_gib: int = 20
    max_allocated_gib: int | None = None
    storage_type: str = "gp3"
    iops: int | None = None
    deletion_protection: bool = False
    iam_auth: bool = False
    public: bool = False
    encrypted: bool = False
    backup_days: int = 1
    certificate: str = "rds-ca-rsa2048-g1"
    pending: dict[str, Any] = field(default_factory=dict)
    secret_arn: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Snapshot:
    """A snapshot of a cluster or an instance.

    Attributes:
        kind: ``cluster`` or ``instance``.
        of: the identifier of what it was taken of.
    """

    SECTION: ClassVar[str] = "snapshots"

    identifier: str
    kind: Literal["cluster", "instance"]
    of: str
    of_resource_id: str
    engine: Engine
    version: str
    master_user: str
    allocated_gib: int
    storage_type: str
    created: str
    of_created: str
    zone: str
    iops: int | None = None
    status: str = "creating"
    iam_auth: bool = False


Record = TypeVar("Record", Cluster, Instance, Snapshot)

# The fault when there is none, and when there is one already; and how AWS calls it.
_FAULTS: Final[dict[str, tuple[str, str, str]]] = {
    "clusters": ("DBClusterNotFoundFault", "DBClusterAlreadyExistsFault", "DBCluster"),
    "instances": ("DBInstanceNotFoundFault", "DBInstanceAlreadyExistsFault", "DBInstance"),
}
_SNAPSHOT_FAULTS: Final[dict[str, tuple[str, str, str]]] = {
    "cluster": ("DBClusterSnapshotNotFoundFault", "DBClusterSnapshotAlreadyExistsFault", "DBClusterSnapshot"),
    "instance": ("DBSnapshotNotFoundFault", "DBSnapshotAlreadyExistsFault", "DBSnapshot"),
}


# Source type, categories and message of each event, by its number (RDS user guide, "Amazon RDS event categories").
_EVENTS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "RDS-EVENT-0004": ("db-instance", ("availability",), "DB instance shutdown"),
    "RDS-EVENT-0005": ("db-instance", ("creation",), "DB instance created"),
    "RDS-EVENT-0006": ("db-instance", ("availability",), "DB instance restarted"),
    "RDS-EVENT-0035": ("db-instance", ("configuration change",), "DB instance put into incompatible-parameters. "),
    "RDS-EVENT-0049": ("db-instance", ("failover",), "Multi-AZ instance failover completed"),
    "RDS-EVENT-0069": (
        "db-cluster",
        ("failover", "failure"),
        "Cluster failover failed, check the health of your readers and try again",
    ),
    "RDS-EVENT-0071": ("db-cluster", ("failover",), "Completed failover to DB instance: "),
    "RDS-EVENT-0073": ("db-cluster", ("failover",), "Started cross AZ failover to DB instance: "),
    "RDS-EVENT-0170": ("db-cluster", ("creation",), "DB cluster created"),
}


class Records:
    """The records over a store; what is returned is a copy, kept by ``put``."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def all(self, kind: type[Record]) -> list[Record]:
        """Return every record of a kind, in the order they were made."""
        with self.store.lock:
            return [kind(**record) for record in self.store.section(kind.SECTION).values()]

    def find(self, kind: type[Record], identifier: str) -> Record | None:
        """Return a record, or None."""
        with self.store.lock:
            record = self.store.section(kind.SECTION).get(identifier.lower())
            return None if record is None else kind(**record)

    def get(self, kind: type[Record], identifier: str) -> Record:
        """Return a record by its identifier, or the ARN of it.

        Raises:
            Fault: there is none.
        """
        found = self.find(kind, identifier.rpartition(":")[2] if identifier.startswith("arn:") else identifier)
        if found is None:
            missing, _, noun = _FAULTS[kind.SECTION]
            raise fault(missing, f"{noun} {identifier} not found.")
        return found

    def get_available(self, kind: type[Record], identifier: str) -> Record:
        """Return a record whose status is ``available``: of a cluster or instance that can be changed now.

        Raises:
            Fault: the record does not exist, or its status is another.
        """
        record = self.get(kind, identifier)
        if record.status != "available":
            raise invalid_state(record)
        return record

    def check_unused(self, kind: type[Record], identifier: str) -> None:
        """Refuse an identifier that is taken.

        Raises:
            Fault: it is.
        """
        if self.find(kind, identifier) is not None:
            _, taken, noun = _FAULTS[kind.SECTION]
            message = "DB Instance already exists" if noun == "DBInstance" else f"{noun} already exists: {identifier}"
            raise fault(taken, message)

    def snapshot(self, kind: Literal["cluster", "instance"], identifier: str) -> Snapshot:
        """Return a snapshot of a kind.

        Raises:
            Fault: there is none.
        """
        found = self.find(Snapshot, identifier.rpartition(":")[2] if identifier.startswith("arn:") else identifier)
        if found is None or found.kind != kind:
            missing, _, noun = _SNAPSHOT_FAULTS[kind]
            raise fault(missing, f"{noun} not found: {identifier}")
        return found

    def check_snapshot_unused(self, kind: Literal["cluster", "instance"], identifier: str) -> None:
        """Refuse a snapshot's identifier that is taken.

        Raises:
            Fault: it is.
        """
        if self.find(Snapshot, identifier) is not None:
            _, taken, noun = _SNAPSHOT_FAULTS[kind]
            raise fault(taken, f"Cannot create the {noun} because one with the identifier {identifier} already exists.")

    def put(self, record: Cluster | Instance | Snapshot) -> None:
        """Keep a record."""
        with self.store.lock:
            self.store.section(record.SECTION)[record.identifier] = asdict(record)
            self.store.save()

    def drop(self, record: Cluster | Instance | Snapshot) -> None:
        """Forget a record."""
        with self.store.lock:
            if self.store.section(record.SECTION).pop(record.identifier, None) is not None:
                self.store.save()

    @contextmanager
    def edit(self, kind: type[Record], identifier: str) -> Iterator[Record]:
        """Change a record while nobody else does.

        Raises:
            Fault: there is none.
        """
        with self.store.lock:
            record = self.get(kind, identifier)
            yield record
            self.put(record)

    def set_status(
        self, status: str, cluster: str | None, instances: Sequence[str], *, only: str | None = None
    ) -> None:
        """Set the status of a cluster and of instances; those that no longer exist are ignored.

        Args:
            status: the new status.
            cluster: the cluster; None is none.
            instances: the instances.
            only: change only records that have this status.
        """
        with self.store.lock:
            chosen: list[Cluster | Instance | None] = [self.find(Instance, name) for name in instances]
            if cluster is not None:
                chosen.append(self.find(Cluster, cluster))
            for record in chosen:
                if record is not None and only in (None, record.status):
                    record.status = status
                    self.put(record)

    def members(self, cluster: str) -> list[Instance]:
        """Return a cluster's instances."""
        return [instance for instance in self.all(Instance) if instance.cluster == cluster]

    def replicas(self, source: str) -> list[Instance]:
        """Return an instance's read replicas."""
        return [instance for instance in self.all(Instance) if instance.source == source]

    def add_event(self, number: str, identifier: str, detail: str = "") -> None:
        """Record an event, for DescribeEvents.

        Args:
            number: ``RDS-EVENT-0071``.
            identifier: the cluster or instance.
            detail: what the message ends with.
        """
        source_type, categories, message = _EVENTS[number]
        with self.store.lock:
            section = self.store.section("events")
            last = int(next(reversed(section), "0"))
            section[f"{last + 1:09}"] = {
                "source_type": source_type,
                "identifier": identifier,
                "categories": list(categories),
                "message": f"{message}{detail}",
                "at": now(),
            }
            while len(section) > MAX_EVENTS:
                del section[next(iter(section))]
            self.store.save()


def invalid_state(record: Cluster | Instance | Snapshot) -> Fault:
    """Return the fault of a change that the status of a cluster or instance does not allow."""
    name = type(record).__name__
    message = f"{name} {record.identifier} is not in available state: its status is {record.status}."
    return fault(f"InvalidDB{name}StateFault", message)


def now() -> str:
    """Return the moment as the records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_resource_id(kind: Literal["cluster", "db"]) -> str:
    """Return what AWS calls a resource by itself: ``db-ABCDEFGHIJKLMNOPQRSTUVWXYZ``."""
    letters = random.SystemRandom().choices(string.ascii_uppercase + string.digits, k=26)
    return f"{kind}-{''.join(letters)}"


def slot_name(region: str, resource_id: str) -> str:
    """Return the name of the physical slot through which an instance streams, as RDS forms it."""
    return f"rds_{region.replace('-', '_')}_db_{resource_id.removeprefix('db-').lower()}"


def check_identifier(parameter: str, identifier: str, longest: int) -> str:
    """Return an identifier as it is stored: in lower case.

    Raises:
        Fault: AWS would not take it.
    """
    lower = identifier.lower()
    if len(lower) > longest or not _IDENTIFIER.fullmatch(lower):
        raise fault(
            "InvalidParameterValue",
            f"The parameter {parameter} is not a valid identifier. Identifiers must begin with a letter; must contain "
            "only ASCII letters, digits, and hyphens; and must not end with a hyphen or contain two consecutive "
            "hyphens.",
        )
    return lower


def zones(region: str) -> list[str]:
    """Return the availability zones of a region."""
    return [f"{region}{letter}" for letter in "abc"]
