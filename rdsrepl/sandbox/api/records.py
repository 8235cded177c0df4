"""What RDS knows of clusters, instances, snapshots and events: typed records over the store.

The servers, their roles and their ports are in the state (``state.py``).
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

from rdsrepl.sandbox.api.api_errors import Fault, fault
from rdsrepl.sandbox.api.parameter_catalog import Engine
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.api.types import ResourceKind

ParameterStatus = Literal["in-sync", "applying", "pending-reboot", "failed-to-apply"]
MAX_EVENTS: Final = 500

_IDENTIFIER: Final = re.compile(r"[a-z](?:-?[a-z0-9])*")


@dataclass(slots=True)
class Cluster:
    """A DB cluster: Multi-AZ (engine ``postgres``), or Aurora.

    Attributes:
        version: the version as RDS writes it: ``16.14``.
        instance_class: the class of all members; None on Aurora, where each member has its own.
        allocated_gib: None on Aurora.
        dbname: the database that was created with the cluster.
        parameter_group: the attached group; members may still have the values of another one.
        secret_arn: the ARN of the secret with the master password, when RDS manages it.
        password: the content of the secret, because Secrets Manager loses it when the process ends.
        pending: changes that wait for the maintenance window: the members of ``PendingModifiedValues``.
        created: the time in ISO 8601, like all times here.
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
        """Whether it is a Multi-AZ DB cluster; else it is an Aurora cluster."""
        return self.engine == "postgres"


@dataclass(slots=True)
class Instance:
    """A DB instance: a member of a cluster, a standalone instance, or a read replica.

    Attributes:
        cluster: the cluster that it is a member of.
        parameter_group: the attached DB parameter group.
        parameter_status: whether its server has the values of that group.
        active_group: the DB parameter group whose values the server has.
        cluster_status: whether its server has the values of the cluster's group; not used outside a cluster.
        active_cluster_group: the DB cluster parameter group whose values the server has.
        source: the instance of which it is a read replica.
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
        source: the identifier of the cluster or instance.
    """

    SECTION: ClassVar[str] = "snapshots"

    identifier: str
    kind: ResourceKind
    source: str
    source_resource_id: str
    engine: Engine
    version: str
    master_user: str
    allocated_gib: int
    storage_type: str
    created: str
    source_created: str
    zone: str
    iops: int | None = None
    status: str = "creating"
    iam_auth: bool = False


Record = TypeVar("Record", Cluster, Instance, Snapshot)

# By section: the fault when a record does not exist, the fault when it exists already, and the noun of AWS.
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
    """The records in a store. Methods return copies; ``put`` saves a changed one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def all(self, kind: type[Record]) -> list[Record]:
        """Return every record of a kind, in the order in which they were created."""
        with self.store.lock:
            return [kind(**record) for record in self.store.section(kind.SECTION).values()]

    def find(self, kind: type[Record], identifier: str) -> Record | None:
        """Return a record; None when it does not exist."""
        with self.store.lock:
            record = self.store.section(kind.SECTION).get(identifier.lower())
            return None if record is None else kind(**record)

    def get(self, kind: type[Record], identifier: str) -> Record:
        """Return a record by its identifier or ARN.

        Raises:
            Fault: the record does not exist.
        """
        record = self.find(kind, identifier.rpartition(":")[2] if identifier.startswith("arn:") else identifier)
        if record is None:
            missing, _, noun = _FAULTS[kind.SECTION]
            raise fault(missing, f"{noun} {identifier} not found.")
        return record

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
        """Refuse an identifier that is in use.

        Raises:
            Fault: a record has the identifier.
        """
        if self.find(kind, identifier) is not None:
            _, taken, noun = _FAULTS[kind.SECTION]
            message = "DB Instance already exists" if noun == "DBInstance" else f"{noun} already exists: {identifier}"
            raise fault(taken, message)

    def snapshot(self, kind: ResourceKind, identifier: str) -> Snapshot:
        """Return a snapshot of a kind.

        Raises:
            Fault: the snapshot does not exist.
        """
        snapshot = self.find(Snapshot, identifier.rpartition(":")[2] if identifier.startswith("arn:") else identifier)
        if snapshot is None or snapshot.kind != kind:
            missing, _, noun = _SNAPSHOT_FAULTS[kind]
            raise fault(missing, f"{noun} not found: {identifier}")
        return snapshot

    def check_snapshot_unused(self, kind: ResourceKind, identifier: str) -> None:
        """Refuse the identifier of a snapshot that is in use.

        Raises:
            Fault: a snapshot has the identifier.
        """
        if self.find(Snapshot, identifier) is not None:
            _, taken, noun = _SNAPSHOT_FAULTS[kind]
            raise fault(taken, f"Cannot create the {noun} because one with the identifier {identifier} already exists.")

    def put(self, record: Cluster | Instance | Snapshot) -> None:
        """Save a record."""
        with self.store.lock:
            self.store.section(record.SECTION)[record.identifier] = asdict(record)
            self.store.save()

    def drop(self, record: Cluster | Instance | Snapshot) -> None:
        """Delete a record."""
        with self.store.lock:
            if self.store.section(record.SECTION).pop(record.identifier, None) is not None:
                self.store.save()

    @contextmanager
    def edit(self, kind: type[Record], identifier: str) -> Iterator[Record]:
        """Change a record; no other thread can change it at the same time.

        Raises:
            Fault: the record does not exist.
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
            cluster: the cluster, or None.
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
        """Return the instances of a cluster."""
        return [instance for instance in self.all(Instance) if instance.cluster == cluster]

    def replicas(self, source: str) -> list[Instance]:
        """Return the read replicas of an instance."""
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
    """Return the current time in the format of the records."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_resource_id(kind: Literal["cluster", "db"]) -> str:
    """Return a new resource id: ``db-ABCDEFGHIJKLMNOPQRSTUVWXYZ``."""
    letters = random.SystemRandom().choices(string.ascii_uppercase + string.digits, k=26)
    return f"{kind}-{''.join(letters)}"


def slot_name(region: str, resource_id: str) -> str:
    """Return the name that RDS gives to the physical slot of an instance."""
    return f"rds_{region.replace('-', '_')}_db_{resource_id.removeprefix('db-').lower()}"


def check_identifier(parameter: str, identifier: str, max_length: int) -> str:
    """Return an identifier in lower case, as it is stored.

    Raises:
        Fault: AWS does not allow the identifier.
    """
    lower = identifier.lower()
    if len(lower) > max_length or not _IDENTIFIER.fullmatch(lower):
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
