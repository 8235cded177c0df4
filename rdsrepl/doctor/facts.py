"""Gather the facts for the checks once, over SQL, the RDS API, or both.

A fact that could not be gathered is None, and ``missing`` has the reason. The other facts are still gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from rdsrepl import errors
from rdsrepl.aws import clusters, instances, locations, metrics, parameter_groups
from rdsrepl.aws.engines import Topology
from rdsrepl.aws.instances import Instance
from rdsrepl.aws.parameter_groups import Parameter
from rdsrepl.aws.release_support import Release
from rdsrepl.aws.resources import ResourceKind
from rdsrepl.config import Aws, Target
from rdsrepl.doctor import failover_pair
from rdsrepl.postgres import activity, connection, error_mapping, publications, roles, settings, slots, subscriptions
from rdsrepl.postgres.activity import Sender, ServerInfo, Transaction
from rdsrepl.postgres.failover_servers import FailoverServer
from rdsrepl.postgres.publication_checks import PublicationFacts
from rdsrepl.postgres.roles import Role
from rdsrepl.postgres.settings import Setting
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.subscriptions import Subscription

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


ServerTopology = Topology | Literal["postgresql"]

#: the age from which a transaction is reported.
OLD_TRANSACTION_SECONDS: Final = 300.0
#: publications whose tables are checked.
MAX_PUBLICATIONS: Final = 20

_STATEMENT_TIMEOUT: Final = "15s"
_SETTINGS: Final = (
    "autovacuum_freeze_max_age",
    "autovacuum_max_workers",
    "hot_standby_feedback",
    "idle_replication_slot_timeout",
    "max_active_replication_origins",
    "max_logical_replication_workers",
    "max_parallel_workers",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_sync_workers_per_subscription",
    "max_wal_senders",
    "max_worker_processes",
    "output_plugin_libraries",
    "primary_slot_name",
    "rds.force_ssl",
    "rds.logical_replication",
    "sync_replication_slots",
    "synchronized_standby_slots",
    "wal_level",
    "wal_receiver_timeout",
    "wal_sender_timeout",
)
_METRICS: Final = (
    "FreeStorageSpace",
    "FreeStorageSpaceLogVolume",
    "MaximumUsedTransactionIDs",
    "OldestLogicalReplicationSlotLag",
    "OldestReplicationSlotLag",
    "TransactionLogsDiskUsage",
    "TransactionLogsGeneration",
)
_SQL: Final = ("server", "settings", "slots", "senders", "transactions", "roles", "publications", "subscriptions")
# Only one check uses each of these, and they can be slow.
_OPTIONAL: Final = frozenset({"failover", "publications", "roles", "transactions"})
_AWS: Final = ("rds", "parameters", "metrics")


@dataclass(frozen=True, slots=True)
class Planned:
    """The objects that are planned in addition to the existing ones."""

    slots: int = 0
    subscriptions: int = 0
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a cluster, or a single instance.

    Attributes:
        group_status: the status of the group with the replication parameters: ``in-sync``, ``pending-reboot``, …
    """

    instance_id: str
    is_writer: bool
    status: str
    group_status: str
    instance_class: str | None = None


@dataclass(frozen=True, slots=True)
class RdsResource:
    """The cluster or instance, from the RDS API.

    Attributes:
        kind: the kind of the group with the replication parameters, and the option for it: ``--cluster``.
        replicas: the read replicas of an instance.
        is_reader: whether the target is a read replica or a member that is not the writer.
        allocated_storage_gib: 0 on Aurora.
        autoscaling: whether storage autoscaling is on.
    """

    identifier: str
    kind: ResourceKind
    topology: Topology
    engine_version: str
    status: str
    parameter_group: str
    members: tuple[Member, ...]
    replicas: tuple[str, ...] = ()
    replica_of: str | None = None
    is_reader: bool = False
    allocated_storage_gib: int = 0
    autoscaling: bool = False

    @property
    def has_default_group(self) -> bool:
        """Whether it has a default parameter group, which cannot be changed."""
        return self.parameter_group.startswith("default.")

    @property
    def writer(self) -> Member | None:
        """The writer; None without one."""
        return next((member for member in self.members if member.is_writer), None)


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts. A fact that is None was not gathered, and ``missing`` has the reason by its name.

    Attributes:
        label: the name of the target in messages.
        planned: the objects of ``--for``; None without it.
        failover: an instance of RDS with its read replicas, or a replica's source with that replica.
        remedies: the remedies for what is missing, by the same names.
    """

    label: str
    planned: Planned | None = None
    server: ServerInfo | None = None
    settings: Mapping[str, Setting] | None = None
    slots: tuple[Slot, ...] | None = None
    senders: tuple[Sender, ...] | None = None
    transactions: tuple[Transaction, ...] | None = None
    roles: tuple[Role, ...] | None = None
    publications: tuple[PublicationFacts, ...] | None = None
    subscriptions: tuple[Subscription, ...] | None = None
    rds: RdsResource | None = None
    parameters: Mapping[str, Parameter] | None = None
    metrics: Mapping[str, float] | None = None
    failover: tuple[FailoverServer, tuple[FailoverServer, ...]] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    remedies: Mapping[str, str] = field(default_factory=dict)

    @property
    def topology(self) -> ServerTopology | None:
        """The topology; None on RDS without the RDS API, as SQL does not tell an instance from a cluster."""
        if self.rds is not None:
            return self.rds.topology
        if self.server is None or self.server.flavour == "rds":
            return None
        return self.server.flavour

    @property
    def version(self) -> str | None:
        """The engine version: ``16.4``, or with the revision of AWS ``15.3-R2``."""
        if self.rds is not None:
            return self.rds.engine_version
        return self.server.version.split()[0] if self.server is not None else None

    @property
    def major(self) -> int | None:
        """The major version of PostgreSQL."""
        if self.server is not None:
            return self.server.major
        if self.rds is None:
            return None
        release = Release.parse(self.rds.engine_version)
        return None if release is None else release.major

    @property
    def is_standby(self) -> bool:
        """Whether the server is a standby; without a connection, whether the target is a reader."""
        if self.server is not None:
            return self.server.in_recovery
        return self.rds is not None and self.rds.is_reader

    @property
    def is_managed(self) -> bool:
        """Whether the server is on RDS or Aurora."""
        return self.rds is not None or (self.server is not None and self.server.flavour != "postgresql")

    @property
    def logical_slots(self) -> tuple[Slot, ...]:
        """The logical slots that are not temporary."""
        return tuple(slot for slot in self.slots or () if slot.slot_type == "logical" and not slot.temporary)

    @property
    def physical_slots(self) -> tuple[Slot, ...]:
        """The physical slots that are not temporary; standbys and backups use them."""
        return tuple(slot for slot in self.slots or () if slot.slot_type == "physical" and not slot.temporary)

    def value(self, name: str) -> str | None:
        """Return the value of a parameter in effect; None where it is not known."""
        setting = (self.settings or {}).get(name)
        return None if setting is None else setting.setting


def gather(target: Target, *, planned: Planned | None = None, wanted: frozenset[str] = _OPTIONAL) -> Facts:
    """Query the server and the RDS API, as far as TARGET has them.

    Args:
        target: the database, and in its ``aws`` the cluster or instance.
        planned: the planned objects.
        wanted: the names of the ``Facts`` that the checks need; slow ones that no check needs are not gathered.

    Raises:
        Error: neither is reachable; the database is not, and there is no cluster or instance; the target is wrong.
    """
    known: dict[str, Any] = {}
    missing: dict[str, str] = {}
    remedies: dict[str, str] = {}

    def gather_one(name: str, read: Callable[[], object]) -> None:
        try:
            known[name] = read()
        except errors.Error as exc:
            missing[name] = exc.message
            remedies[name] = exc.hint or ""

    refusal: errors.Error | None = None
    if target.aws.identifier:
        try:
            known["rds"] = rds = _cloud(target)
        except errors.UsageError:
            raise
        except errors.Error as exc:
            refusal = exc
            missing.update(dict.fromkeys(_AWS, exc.message))
            remedies["rds"] = exc.hint or ""
        else:
            group = rds.parameter_group
            gather_one("parameters", lambda: parameter_groups.parameters(target.aws, rds.kind, group))
            gather_one("metrics", lambda: _metrics(target.aws, rds))
    else:
        missing.update(dict.fromkeys(_AWS, "no cluster or instance is named: --cluster ID or --instance ID"))
    try:
        _over_sql(target, known, missing, left_out=_OPTIONAL - wanted)
    except errors.UsageError:
        raise
    except errors.Error as exc:
        if "server" not in known:
            if "rds" not in known:
                raise refusal or exc from exc
            remedies["server"] = exc.hint or ""
        for name in _SQL:
            if name not in known:
                missing.setdefault(name, f"could not connect to the database: {exc.message}")
    if "failover" in wanted and "server" in known and "rds" in known:
        _gather_failover(target, known["rds"], gather_one)
    label = target.aws.identifier if "rds" in known else target.label
    return Facts(label=str(label), planned=planned, missing=missing, remedies=remedies, **known)


def _gather_failover(target: Target, rds: RdsResource, gather_one: Callable[[str, Callable[[], object]], None]) -> None:
    """Read the other servers of an instance with read replicas, or of a read replica."""
    if rds.kind == "instance" and (rds.replicas or rds.replica_of):
        gather_one("failover", lambda: failover_pair.read(target, rds.replica_of, rds.replicas))


def _cloud(target: Target) -> RdsResource:
    """Return what the RDS API says of the cluster or the instance; of a member, what it says of its cluster.

    Raises:
        Error: AWS refused the call, or the cluster or instance is not found.
    """
    server = locations.server_of(target)
    assert server is not None
    instance = server.instance
    if server.cluster is not None:
        rds = _of_cluster(target.aws, server.cluster)
        writer = rds.writer
        is_reader = instance is not None and writer is not None and writer.instance_id != instance.instance_id
        return replace(rds, is_reader=is_reader)
    assert instance is not None
    member = Member(
        instance.instance_id, True, instance.status, instance.parameter_group_status, instance.instance_class
    )
    return RdsResource(
        identifier=instance.instance_id,
        kind="instance",
        topology="instance",
        engine_version=instance.engine_version,
        status=instance.status,
        parameter_group=instance.parameter_group,
        members=(member,),
        replicas=instance.replicas,
        replica_of=instance.replica_of,
        is_reader=instance.replica_of is not None,
        allocated_storage_gib=instance.allocated_storage_gib,
        autoscaling=instance.max_allocated_storage_gib is not None,
    )


def _of_cluster(aws: Aws, cluster: clusters.Cluster) -> RdsResource:
    servers: dict[str, Instance] = {row.instance_id: row for row in instances.of_cluster(aws, cluster.cluster_id)}

    def member(row: clusters.Member) -> Member:
        server = servers.get(row.instance_id)
        status, size = (server.status, server.instance_class) if server else ("unknown", cluster.instance_class)
        return Member(row.instance_id, row.is_writer, status, row.parameter_group_status, size)

    return RdsResource(
        identifier=cluster.cluster_id,
        kind="cluster",
        topology=cluster.kind,
        engine_version=cluster.engine_version,
        status=cluster.status,
        parameter_group=cluster.parameter_group,
        members=tuple(map(member, cluster.members)),
        allocated_storage_gib=0 if cluster.kind == "aurora" else cluster.allocated_storage_gib,
    )


def _metrics(aws: Aws, rds: RdsResource) -> dict[str, float]:
    writer = rds.writer
    if writer is None:
        return {}
    return metrics.latest(aws, _METRICS, {"DBInstanceIdentifier": writer.instance_id})


def _over_sql(target: Target, known: dict[str, Any], missing: dict[str, str], *, left_out: frozenset[str]) -> None:
    import psycopg

    limits = {"statement_timeout": _STATEMENT_TIMEOUT, "lock_timeout": "2s"}
    questions: tuple[tuple[str, Callable[[Connection], object]], ...] = (
        ("server", activity.server),
        ("settings", lambda conn: settings.ls(conn, _SETTINGS, pending=True)),
        ("slots", lambda conn: tuple(slots.ls(conn))),
        ("senders", lambda conn: tuple(activity.senders(conn))),
        (
            "transactions",
            lambda conn: tuple(activity.transactions(conn, older_than_seconds=OLD_TRANSACTION_SECONDS)),
        ),
        ("roles", lambda conn: tuple(roles.ls(conn))),
        ("subscriptions", lambda conn: tuple(subscriptions.ls(conn))),
        ("publications", _publications),
    )
    with connection.open(target, settings=limits) as conn:
        for name, question in questions:
            if name in left_out:
                missing[name] = "no check needs it"
                continue
            try:
                known[name] = question(conn)
            except psycopg.Error as exc:
                missing[name] = error_mapping.translate(exc).message
            except errors.Error as exc:
                missing[name] = exc.message


def _publications(conn: Connection) -> tuple[PublicationFacts, ...]:
    names = [publication.pubname for publication in publications.ls(conn)]
    return tuple(publications.facts(conn, name) for name in names[:MAX_PUBLICATIONS])
