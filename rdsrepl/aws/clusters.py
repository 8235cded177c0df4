"""DB clusters: RDS Multi-AZ DB clusters and Aurora clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from rdsrepl.aws import engines, identifiers, resources, session, statuses
from rdsrepl.aws.engines import ClusterTopology
from rdsrepl.config import Aws, Target
from rdsrepl.errors import NotFound, Refused
from rdsrepl.plan import AwsCall, Condition, Plan, Step, Wait, require_same, version_as_requested
from rdsrepl.text.commands import command

# Describe calls can still return the old state.
_ATTACH_CONFIRMATIONS: Final = 3
_FAILOVER_CONFIRMATIONS: Final = 2
_LONGEST_NAME: Final[Mapping[ClusterTopology, int]] = {"multi_az_cluster": 52, "aurora": 63}


@dataclass(frozen=True, slots=True)
class Member:
    """An instance of a cluster.

    Attributes:
        parameter_group_status: the status of the cluster parameter group on this member: ``in-sync``,
            ``pending-reboot``, …
    """

    instance_id: str
    is_writer: bool
    parameter_group_status: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """A DB cluster, as DescribeDBClusters returns it.

    Attributes:
        kind: ``multi_az_cluster`` (engine postgres) or ``aurora``.
        endpoint: the host name of the writer endpoint.
        members: the writer first.
        instance_class: of a Multi-AZ DB cluster; each member of an Aurora cluster has its own.
        resource_id: ``cluster-…``.
        pending_modifications: what is queued for the maintenance window, by its name in the API.
    """

    cluster_id: str
    kind: ClusterTopology
    engine: str
    engine_version: str
    status: str
    endpoint: str | None = None
    reader_endpoint: str | None = None
    port: int | None = None
    parameter_group: str = ""
    members: tuple[Member, ...] = ()
    availability_zones: tuple[str, ...] = ()
    instance_class: str | None = None
    allocated_storage_gib: int = 0
    storage_type: str | None = None
    iops: int | None = None
    master_user: str | None = None
    master_secret: str | None = None
    iam_auth: bool = False
    resource_id: str = ""
    arn: str = ""
    database_name: str | None = None
    deletion_protection: bool = False
    pending_modifications: Mapping[str, str] = field(default_factory=dict)

    @property
    def writer(self) -> str | None:
        """The instance identifier of the writer; None without a writer."""
        return next((member.instance_id for member in self.members if member.is_writer), None)


@dataclass(frozen=True, slots=True)
class NewCluster:
    """What ``create`` creates; None uses the AWS default.

    Attributes:
        instances: how many instances an Aurora cluster has, with the writer; a Multi-AZ DB cluster always has three.
        password: of the master user; None lets RDS generate one and store it in Secrets Manager.
    """

    cluster_id: str
    kind: ClusterTopology
    instance_class: str
    engine_version: str | None = None
    instances: int = 2
    storage_gib: int | None = None
    storage_type: str | None = None
    iops: int | None = None
    subnet_group: str | None = None
    security_groups: tuple[str, ...] = ()
    parameter_group: str | None = None
    master_user: str = "dbadmin"
    password: str | None = field(default=None, repr=False)
    database_name: str | None = None
    port: int | None = None
    deletion_protection: bool = False

    @property
    def engine(self) -> str:
        """The name of the engine in the API."""
        return "aurora-postgresql" if self.kind == "aurora" else "postgres"

    @property
    def members(self) -> tuple[str, ...]:
        """The identifiers of the instances of an Aurora cluster."""
        return tuple(f"{self.cluster_id}-{number}" for number in range(1, self.instances + 1))


def ls(aws: Aws) -> tuple[Cluster, ...]:
    """Return every PostgreSQL cluster of the region (DescribeDBClusters).

    Raises:
        Error: AWS refused.
    """
    return tuple(map(_cluster, resources.ls(aws, "cluster")))


def get(aws: Aws, cluster_id: str) -> Cluster:
    """Return one cluster.

    Raises:
        NotFound: it does not exist in the region.
        Refused: the engine is not PostgreSQL.
    """
    return _cluster(resources.get(aws, "cluster", cluster_id))


def check_name(name: str, kind: ClusterTopology) -> str:
    """Return NAME in lower case, as AWS stores it, if it is valid for a new cluster (CreateDBCluster).

    Raises:
        BadValue: it is not valid.
    """
    return identifiers.check(name, "a cluster", longest=_LONGEST_NAME[kind])


def require_available(cluster: Cluster) -> None:
    """Refuse a change while another operation is in progress, or while the status needs a repair.

    Raises:
        NotAvailable: the cluster is not available.
    """
    resources.require_available("cluster", cluster.cluster_id, cluster.status)


def existing(target: Target, new: NewCluster) -> tuple[Cluster | None, bool]:
    """Return the existing cluster with this name, if any, and whether it is complete and available.

    Raises:
        Error: AWS refused, or the cluster needs a repair to become available.
    """
    try:
        cluster = get(target.aws, new.cluster_id)
    except NotFound:
        return None, False
    if new.kind == "aurora" and {member.instance_id for member in cluster.members} < set(new.members):
        return cluster, False
    return cluster, _available(target, cluster_id=cluster.cluster_id, members=1).met


def create(new: NewCluster, *, existing: Cluster | None, ready: bool = False, timeout_seconds: float) -> Plan:
    """Plan to create a cluster and wait until it is available (CreateDBCluster, CreateDBInstance).

    Args:
        new: the cluster to create.
        existing: the existing cluster with this name, if any; its missing members are created.
        ready: the existing cluster is complete and available.
        timeout_seconds: the timeout of each wait.

    Raises:
        AlreadyExists: a cluster with this name exists and differs.
    """
    title = f"create cluster {new.cluster_id}"
    if existing is not None:
        _require_same(existing, new)
    existing_members = {member.instance_id for member in existing.members} if existing is not None else set()
    missing = [member for member in new.members if member not in existing_members] if new.kind == "aurora" else []
    if existing is not None and ready and not missing:
        return Plan(title, (), unchanged="the cluster already exists as requested")
    request: dict[str, Any] = {
        "DBClusterIdentifier": new.cluster_id,
        "Engine": new.engine,
        "EngineVersion": new.engine_version,
        "MasterUsername": new.master_user,
        "MasterUserPassword": new.password,
        "ManageMasterUserPassword": True if new.password is None else None,
        "DatabaseName": new.database_name,
        "DBSubnetGroupName": new.subnet_group,
        "VpcSecurityGroupIds": list(new.security_groups) or None,
        "DBClusterParameterGroupName": new.parameter_group,
        "Port": new.port,
        "StorageType": new.storage_type,
        "DeletionProtection": new.deletion_protection or None,
    }
    if new.kind == "multi_az_cluster":
        request |= {
            "DBClusterInstanceClass": new.instance_class,
            "AllocatedStorage": new.storage_gib,
            "Iops": new.iops,
        }
    request = {key: value for key, value in request.items() if value is not None}
    steps: list[Step] = []
    if existing is None:
        summary = f"create cluster {new.cluster_id}"
        steps.append(
            AwsCall(summary, "rds", "CreateDBCluster", request, frozenset({"MasterUserPassword"}), effect="create")
        )
    for member in missing:
        instance = {
            "DBInstanceIdentifier": member,
            "DBClusterIdentifier": new.cluster_id,
            "DBInstanceClass": new.instance_class,
            "Engine": new.engine,
        }
        steps.append(AwsCall(f"create instance {member}", "rds", "CreateDBInstance", instance, effect="create"))
        if not existing_members and member == missing[0] and len(missing) > 1:
            # The first available instance becomes the writer.
            steps.append(wait_available(new.cluster_id, timeout_seconds, members=1))
    members = len(new.members) if new.kind == "aurora" else 1
    steps.append(wait_available(new.cluster_id, timeout_seconds, members=members))
    what = "creates its missing members" if missing else "only waits for it"
    warnings = (f"cluster {new.cluster_id} already exists: the plan {what}",) if existing is not None else ()
    return Plan(title, tuple(steps), warnings)


def _require_same(existing: Cluster, new: NewCluster) -> None:
    multi_az = new.kind == "multi_az_cluster"
    compared: dict[str, tuple[object, object]] = {
        "status": (existing.status, existing.status if existing.status != statuses.DELETING else "available"),
        "engine": (existing.engine, new.engine),
        "version": (version_as_requested(existing.engine_version, new.engine_version), new.engine_version),
        "class": (existing.instance_class, new.instance_class if multi_az else None),
        "storage": (existing.allocated_storage_gib, new.storage_gib if multi_az else None),
        "storage type": (existing.storage_type, new.storage_type),
        "IOPS": (existing.iops, new.iops),
        "parameter group": (existing.parameter_group, new.parameter_group and new.parameter_group.lower()),
        "master user": (existing.master_user, new.master_user),
        "first database": (existing.database_name, new.database_name),
        "port": (existing.port, new.port),
        "deletion protection": (existing.deletion_protection, new.deletion_protection or None),
    }
    hint = f"choose another name, or show it: {command('cluster show {}', new.cluster_id)}"
    require_same(f"cluster {new.cluster_id}", compared, hint=hint)


def failover(cluster: Cluster, *, to: str | None, timeout_seconds: float) -> Plan:
    """Plan to make another member the writer (FailoverDBCluster).

    Raises:
        NotAvailable: another operation on the cluster is in progress.
        Refused: the cluster has no other member, or ``to`` already is the writer.
        NotFound: ``to`` is not a member.
    """
    require_available(cluster)
    readers = [member.instance_id for member in cluster.members if not member.is_writer]
    if to is not None and to not in readers:
        if to == cluster.writer:
            raise Refused(
                f"instance {to} already is the writer of cluster {cluster.cluster_id}", hint="choose another member"
            )
        raise NotFound(
            f"instance {to} is not a member of cluster {cluster.cluster_id}",
            hint=f"its readers: {', '.join(readers) or 'none'}",
        )
    if not readers:
        raise Refused(
            f"cluster {cluster.cluster_id} has no reader to fail over to",
            hint=f"add one: {command('instance create ID --class CLASS --in-cluster {}', cluster.cluster_id)}",
        )
    request = {
        "DBClusterIdentifier": cluster.cluster_id,
        **({"TargetDBInstanceIdentifier": to} if to else {}),
    }
    return Plan(
        f"fail cluster {cluster.cluster_id} over to {to or 'a reader that AWS chooses'}",
        (
            AwsCall(
                f"fail over cluster {cluster.cluster_id}",
                "rds",
                "FailoverDBCluster",
                request,
                needed=lambda target: not _has_writer(get(target.aws, cluster.cluster_id), str(cluster.writer), to),
                condition="unless the writer has changed by then",
                effect="change",
            ),
            Wait(
                f"wait until {to or 'another member'} is the writer",
                partial(_other_writer, cluster_id=cluster.cluster_id, old=str(cluster.writer), new=to),
                timeout_seconds,
                _FAILOVER_CONFIRMATIONS,
            ),
        ),
        warnings=("breaks connections to the writer, for about 35 s on a Multi-AZ cluster and 60 s on Aurora",),
    )


def attach(cluster: Cluster, group: str, *, timeout_seconds: float) -> tuple[AwsCall, Wait]:
    """Return the steps that attach a cluster parameter group (ModifyDBCluster).

    AWS applies some parameters immediately and the others when a member reboots. Which members are ``pending-reboot``
    afterwards varies.
    """
    # Without ApplyImmediately, which would also apply every queued modification; a group does not need it.
    request = {"DBClusterIdentifier": cluster.cluster_id, "DBClusterParameterGroupName": group}
    probe = partial(_attached, cluster_id=cluster.cluster_id, group=group)
    return (
        AwsCall(
            f"attach group {group} to cluster {cluster.cluster_id}", "rds", "ModifyDBCluster", request, effect="change"
        ),
        Wait(f"wait until cluster {cluster.cluster_id} uses it", probe, timeout_seconds, _ATTACH_CONFIRMATIONS),
    )


def _attached(target: Target, *, cluster_id: str, group: str) -> Condition:
    cluster = get(target.aws, cluster_id)
    groups = {member.instance_id: member.parameter_group_status for member in cluster.members}
    states = _member_states(target.aws, cluster)
    met = (
        statuses.is_usable(cluster.status)
        and cluster.parameter_group == group
        and "applying" not in groups.values()
        and all(map(statuses.is_usable, states.values()))
    )
    states_text = [
        f"cluster {cluster.status}, group {cluster.parameter_group}",
        *(f"{name} {states.get(name, '?')}, parameters {status}" for name, status in groups.items()),
    ]
    end = dead_end(cluster, states)
    return Condition(met, "; ".join(states_text), failed=end.failed, remedy=end.remedy)


def delete(cluster: Cluster, members: Sequence[AwsCall], *, final_snapshot: str | None, timeout_seconds: float) -> Plan:
    """Plan to delete a cluster with its members, and to wait until it is deleted (DeleteDBCluster).

    Args:
        cluster: the cluster; if its deletion is in progress, the plan only waits.
        members: the calls that delete the members of an Aurora cluster, in their order; AWS deletes those of a Multi-AZ
            DB cluster with the cluster.
        final_snapshot: the name of the snapshot to take; None takes none.
        timeout_seconds: of the wait.

    Raises:
        Refused: deletion protection is on.
    """
    name = cluster.cluster_id
    status_of = partial(_status, cluster_id=name)
    call = resources.delete_call("cluster", name, final_snapshot=final_snapshot, status_of=status_of)
    return resources.deletion(
        "cluster",
        name,
        (*members, call),
        kept=resources.snapshot_warning(final_snapshot),
        status=cluster.status,
        is_protected=cluster.deletion_protection,
        status_of=status_of,
        timeout_seconds=timeout_seconds,
    )


def _status(target: Target, *, cluster_id: str) -> str:
    return get(target.aws, cluster_id).status


def wait_available(cluster_id: str, timeout_seconds: float, *, members: int = 0) -> Wait:
    """Return the step that waits until a cluster and this number of its members, with a writer, are available."""
    probe = partial(_available, cluster_id=cluster_id, members=members)
    return Wait(f"wait until cluster {cluster_id} is available", probe, timeout_seconds)


def _available(target: Target, *, cluster_id: str, members: int) -> Condition:
    cluster = get(target.aws, cluster_id)
    states = _member_states(target.aws, cluster)
    if (end := dead_end(cluster, states)).failed is not None:
        return end
    ready = cluster.writer is not None or members == 0
    usable = all(map(statuses.is_usable, (cluster.status, *states.values())))
    met = usable and ready and len(states) >= members
    states_text = [f"cluster {cluster.status}", *(f"{name} {status}" for name, status in states.items())]
    facts = {"endpoint": f"{cluster.endpoint}:{cluster.port}", "writer": cluster.writer or "-"}
    return Condition(met, ", ".join(states_text), facts=facts)


def dead_end(cluster: Cluster, members: Mapping[str, str]) -> Condition:
    """Return whether the cluster or one of its members has a status that needs a repair."""
    resources_of = [("cluster", cluster.cluster_id, cluster.status), *(("instance", *one) for one in members.items())]
    for kind, name, status in resources_of:
        if statuses.is_dead_end(status):
            reason = f"{kind} {name} is {status}"
            return Condition(False, reason, failed=reason, remedy=statuses.remedy(status, kind, name))
    return Condition(False, cluster.status)


def _other_writer(target: Target, *, cluster_id: str, old: str, new: str | None) -> Condition:
    cluster = get(target.aws, cluster_id)
    end = dead_end(cluster, {})
    return Condition(
        _has_writer(cluster, old, new) and statuses.is_usable(cluster.status),
        f"cluster {cluster.status}, writer {cluster.writer or 'none'}",
        facts={"writer": cluster.writer or "-"},
        failed=end.failed,
        remedy=end.remedy,
    )


def _has_writer(cluster: Cluster, old: str, new: str | None) -> bool:
    return cluster.writer is not None and (cluster.writer == new if new else cluster.writer != old)


def _member_states(aws: Aws, cluster: Cluster) -> dict[str, str]:
    filters = {"Filters": [{"Name": "db-cluster-id", "Values": [cluster.cluster_id]}]}
    rows = session.pages(aws, "rds", "DescribeDBInstances", "DBInstances", filters)
    return {row["DBInstanceIdentifier"]: row["DBInstanceStatus"] for row in rows}


def _cluster(row: Mapping[str, Any]) -> Cluster:
    members = [
        Member(
            member["DBInstanceIdentifier"],
            bool(member.get("IsClusterWriter")),
            member.get("DBClusterParameterGroupStatus", ""),
        )
        for member in row.get("DBClusterMembers") or ()
    ]
    return Cluster(
        cluster_id=row["DBClusterIdentifier"],
        kind=engines.cluster_topology(row["Engine"]),
        status=row["Status"],
        endpoint=row.get("Endpoint"),
        reader_endpoint=row.get("ReaderEndpoint"),
        port=row.get("Port"),
        parameter_group=row.get("DBClusterParameterGroup", ""),
        members=tuple(sorted(members, key=lambda member: (not member.is_writer, member.instance_id))),
        availability_zones=tuple(row.get("AvailabilityZones") or ()),
        instance_class=row.get("DBClusterInstanceClass"),
        resource_id=row.get("DbClusterResourceId", ""),
        arn=row.get("DBClusterArn", ""),
        database_name=row.get("DatabaseName"),
        **resources.common_fields(row),
    )
