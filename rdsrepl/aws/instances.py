"""DB instances: standalone instances, read replicas, and members of clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from rdsrepl.aws import engines, identifiers, resources, session, statuses
from rdsrepl.aws.engines import Topology
from rdsrepl.config import Aws, Target
from rdsrepl.errors import NotFound, Refused
from rdsrepl.plan import AwsCall, Condition, Plan, Wait, require_same, version_as_requested
from rdsrepl.text.commands import command, shell

# Describe calls can still return the old state.
_ATTACH_CONFIRMATIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Instance:
    """A DB instance, as DescribeDBInstances returns it.

    Attributes:
        endpoint: the host name; None while the instance is being created.
        parameter_group_status: ``in-sync``, ``pending-reboot``, ``applying``, ``failed-to-apply``, …
        replica_of: the identifier (or ARN, in another region) of the source of a read replica.
        replicas: its read replicas.
        allocated_storage_gib: 0 or 1 on Aurora, whose storage belongs to the cluster.
        max_allocated_storage_gib: the limit of storage autoscaling; None if it is off.
        resource_id: ``db-…``; part of the name of the physical slot of a replica.
        pending_modifications: what is queued for the maintenance window, by its name in the API.
    """

    instance_id: str
    engine: str
    engine_version: str
    status: str
    instance_class: str
    endpoint: str | None = None
    port: int | None = None
    cluster_id: str | None = None
    availability_zone: str | None = None
    multi_az: bool = False
    parameter_group: str = ""
    parameter_group_status: str = ""
    replica_of: str | None = None
    replicas: tuple[str, ...] = ()
    allocated_storage_gib: int = 0
    max_allocated_storage_gib: int | None = None
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
    def source_id(self) -> str | None:
        """The identifier of the source of a read replica, also of one in another region; None for others."""
        return None if self.replica_of is None else self.replica_of.rsplit(":", 1)[-1]

    @property
    def topology(self) -> Topology:
        """The topology that the instance runs in."""
        return engines.topology(self.engine, in_cluster=self.cluster_id is not None)


@dataclass(frozen=True, slots=True)
class NewInstance:
    """What ``create`` creates; None uses the AWS default.

    Attributes:
        replica_of: the source of a read replica, which has the login and the storage of its source.
        password: of the master user; None lets RDS generate one and store it in Secrets Manager.
    """

    instance_id: str
    instance_class: str
    engine_version: str | None = None
    replica_of: str | None = None
    cluster_id: str | None = None
    storage_gib: int | None = None
    storage_type: str | None = None
    iops: int | None = None
    multi_az: bool = False
    subnet_group: str | None = None
    security_groups: tuple[str, ...] = ()
    parameter_group: str | None = None
    master_user: str = "dbadmin"
    password: str | None = field(default=None, repr=False)
    database_name: str | None = None
    port: int | None = None
    deletion_protection: bool = False


def ls(aws: Aws) -> tuple[Instance, ...]:
    """Return every PostgreSQL instance of the region (DescribeDBInstances).

    Raises:
        Error: AWS refused.
    """
    return tuple(map(_instance, resources.ls(aws, "instance")))


def get(aws: Aws, instance_id: str) -> Instance:
    """Return one instance.

    Raises:
        NotFound: it does not exist in the region.
        Refused: the engine is not PostgreSQL.
    """
    return _instance(resources.get(aws, "instance", instance_id))


def of_cluster(aws: Aws, cluster_id: str) -> tuple[Instance, ...]:
    """Return the instances of a cluster.

    Raises:
        Error: AWS refused.
    """
    filters = {"Filters": [{"Name": "db-cluster-id", "Values": [cluster_id]}]}
    return tuple(map(_instance, session.pages(aws, "rds", "DescribeDBInstances", "DBInstances", filters)))


def check_name(name: str) -> str:
    """Return NAME in lower case, as AWS stores it, if it is valid for a new instance (CreateDBInstance).

    Raises:
        BadValue: it is not valid.
    """
    return identifiers.check(name, "an instance", longest=63)


def require_replicable(aws: Aws, source: str) -> None:
    """Make sure that AWS creates a read replica of an instance.

    It does not if RDS manages the password of the master user (RDS User Guide, "Limitations for Secrets Manager
    integration with Amazon RDS"; all engines except SQL Server).

    Raises:
        NotFound: there is no such instance.
        Refused: RDS manages the password.
    """
    if ":" in source:  # the ARN of an instance in another region
        return
    if get(aws, source).master_secret is not None:
        raise Refused(
            f"AWS creates no read replica of instance {source}: RDS manages the password of its master user",
            hint="set a password of your own, which deletes the secret of RDS: "
            + shell(
                "aws rds modify-db-instance --db-instance-identifier {} --no-manage-master-user-password "
                "--master-user-password PASSWORD --apply-immediately",
                source,
            ),
        )


def require_available(instance: Instance) -> None:
    """Refuse a change while another operation is in progress, or while the status needs a repair.

    Raises:
        NotAvailable: the instance is not available.
    """
    resources.require_available("instance", instance.instance_id, instance.status)


def existing(aws: Aws, new: NewInstance) -> Instance | None:
    """Return the existing instance with this name, if any.

    Raises:
        Error: AWS refused.
    """
    try:
        return get(aws, new.instance_id)
    except NotFound:
        return None


def create(new: NewInstance, *, existing: Instance | None = None, timeout_seconds: float) -> Plan:
    """Plan to create an instance, a member of an Aurora cluster or a read replica, and wait until it is available.

    AWS accepts no parameter group for a new read replica of engine postgres; ``attach`` attaches it afterwards.

    Args:
        new: the instance to create.
        existing: the existing instance with this name, if any; the plan waits for it.
        timeout_seconds: the timeout of the wait.

    Raises:
        AlreadyExists: an instance with this name exists and differs.
    """
    common: dict[str, Any] = {
        "DBInstanceIdentifier": new.instance_id,
        "DBInstanceClass": new.instance_class,
    }
    group = {"DBParameterGroupName": new.parameter_group}
    standalone: dict[str, Any] = {
        "StorageType": new.storage_type,
        "Iops": new.iops,
        "MultiAZ": new.multi_az or None,
        "DBSubnetGroupName": new.subnet_group,
        "VpcSecurityGroupIds": list(new.security_groups) or None,
        "Port": new.port,
        "DeletionProtection": new.deletion_protection or None,
    }
    if new.replica_of is not None:
        operation, kind = "CreateDBInstanceReadReplica", f"read replica of {new.replica_of}"
        request = {**common, **standalone, "SourceDBInstanceIdentifier": new.replica_of}
    elif new.cluster_id is not None:
        operation, kind = "CreateDBInstance", f"in cluster {new.cluster_id}"
        request = {**common, **group, "DBClusterIdentifier": new.cluster_id, "Engine": "aurora-postgresql"}
    else:
        operation, kind = "CreateDBInstance", ""
        request = {
            **common,
            **group,
            **standalone,
            "Engine": "postgres",
            "EngineVersion": new.engine_version,
            "AllocatedStorage": new.storage_gib,
            "MasterUsername": new.master_user,
            "MasterUserPassword": new.password,
            "ManageMasterUserPassword": True if new.password is None else None,
            "DBName": new.database_name,
        }
    request = {key: value for key, value in request.items() if value is not None}
    summary = f"create instance {new.instance_id} {kind}".rstrip()
    if existing is not None:
        _require_same(existing, new, engine=request.get("Engine"))
        if state(existing).met:
            return Plan(summary, (), unchanged="the instance already exists as requested")
        wait = wait_available(new.instance_id, timeout_seconds)
        return Plan(summary, (wait,), (f"instance {new.instance_id} already exists: the plan only waits for it",))
    return Plan(
        summary,
        (
            AwsCall(summary, "rds", operation, request, frozenset({"MasterUserPassword"}), effect="create"),
            wait_available(new.instance_id, timeout_seconds),
        ),
    )


def _require_same(existing: Instance, new: NewInstance, *, engine: object) -> None:
    # A replica gets its group afterwards, and has the login, storage and version of its source.
    group = None if new.replica_of is not None else new.parameter_group and new.parameter_group.lower()
    standalone = new.replica_of is None and new.cluster_id is None
    compared: dict[str, tuple[object, object]] = {
        "status": (existing.status, existing.status if existing.status != statuses.DELETING else statuses.AVAILABLE),
        "engine": (existing.engine, engine),
        "version": (version_as_requested(existing.engine_version, new.engine_version), new.engine_version),
        "class": (existing.instance_class, new.instance_class),
        "source": (existing.source_id or "none", new.replica_of or "none"),
        "cluster": (existing.cluster_id or "none", new.cluster_id or "none"),
        "storage": (existing.allocated_storage_gib, new.storage_gib if standalone else None),
        "storage type": (existing.storage_type, new.storage_type),
        "IOPS": (existing.iops, new.iops),
        "multi-AZ": (existing.multi_az, new.multi_az or None),
        "parameter group": (existing.parameter_group, group),
        "master user": (existing.master_user, new.master_user if standalone else None),
        "first database": (existing.database_name, new.database_name),
        "port": (existing.port, new.port if existing.port is not None else None),
        "deletion protection": (existing.deletion_protection, new.deletion_protection or None),
    }
    hint = f"choose another name, or show it: {command('instance show {}', new.instance_id)}"
    require_same(f"instance {new.instance_id}", compared, hint=hint)


def delete(instance: Instance, *, final_snapshot: str | None, timeout_seconds: float) -> Plan:
    """Plan to delete an instance, unless its deletion is in progress, and wait until it is deleted (DeleteDBInstance).

    Raises:
        Refused: deletion protection is on.
    """
    name = instance.instance_id
    kept = resources.snapshot_warning(final_snapshot)
    if instance.cluster_id is not None:
        kept = f"the instance is a member of cluster {instance.cluster_id}, which keeps its data"
    elif instance.replica_of is not None:
        kept = f"the instance is a read replica of {instance.replica_of}; RDS takes no final snapshot of a read replica"
    return resources.deletion(
        "instance",
        name,
        (delete_call(name, final_snapshot=final_snapshot),),
        kept=kept,
        status=instance.status,
        is_protected=instance.deletion_protection,
        status_of=partial(_status, instance_id=name),
        timeout_seconds=timeout_seconds,
    )


def delete_call(instance_id: str, *, final_snapshot: str | None = None) -> AwsCall:
    """Return the call that deletes an instance; it is skipped if the deletion is in progress (DeleteDBInstance)."""
    status_of = partial(_status, instance_id=instance_id)
    return resources.delete_call("instance", instance_id, final_snapshot=final_snapshot, status_of=status_of)


def _status(target: Target, *, instance_id: str) -> str:
    return get(target.aws, instance_id).status


def wait_available(instance_id: str, timeout_seconds: float) -> Wait:
    """Return the step that waits until an instance is available."""
    probe = partial(_available, instance_id=instance_id)
    return Wait(f"wait until instance {instance_id} is available", probe, timeout_seconds)


def attach(instance_id: str, group: str, *, timeout_seconds: float) -> tuple[AwsCall, Wait]:
    """Return the steps that attach a parameter group; static parameters take effect at a reboot (ModifyDBInstance)."""
    # Without ApplyImmediately, which would also apply every queued modification; a group does not need it.
    request = {"DBInstanceIdentifier": instance_id, "DBParameterGroupName": group}
    return (
        AwsCall(
            f"attach group {group} to instance {instance_id}",
            "rds",
            "ModifyDBInstance",
            request,
            needed=partial(_has_other_group, instance_id=instance_id, group=group),
            condition="unless it uses it already",
            effect="change",
        ),
        Wait(
            f"wait until instance {instance_id} uses it",
            partial(_attached, instance_id=instance_id, group=group),
            timeout_seconds,
            _ATTACH_CONFIRMATIONS,
        ),
    )


def _attached(target: Target, *, instance_id: str, group: str) -> Condition:
    instance = get(target.aws, instance_id)
    met = (
        statuses.is_usable(instance.status)
        and instance.parameter_group == group
        and instance.parameter_group_status != "applying"
    )
    text = f"{instance_id} {instance.status}, group {instance.parameter_group} {instance.parameter_group_status}"
    return Condition(met, text, failed=state(instance).failed, remedy=state(instance).remedy)


def _has_other_group(target: Target, *, instance_id: str, group: str) -> bool:
    return get(target.aws, instance_id).parameter_group != group


def _available(target: Target, *, instance_id: str) -> Condition:
    instance = get(target.aws, instance_id)
    return state(instance)


def state(instance: Instance) -> Condition:
    """Return whether an instance is available, or needs a repair."""
    text = f"{instance.instance_id} {instance.status}"
    if statuses.is_dead_end(instance.status):
        remedy = statuses.remedy(instance.status, "instance", instance.instance_id)
        return Condition(False, text, failed=f"the status is {instance.status}", remedy=remedy)
    facts = {"endpoint": f"{instance.endpoint}:{instance.port}"}
    return Condition(statuses.is_usable(instance.status), text, facts=facts)


def _instance(row: Mapping[str, Any]) -> Instance:
    endpoint = row.get("Endpoint") or {}
    groups = row.get("DBParameterGroups") or [{}]
    return Instance(
        instance_id=row["DBInstanceIdentifier"],
        status=row["DBInstanceStatus"],
        instance_class=row["DBInstanceClass"],
        endpoint=endpoint.get("Address"),
        port=endpoint.get("Port"),
        cluster_id=row.get("DBClusterIdentifier"),
        availability_zone=row.get("AvailabilityZone"),
        multi_az=bool(row.get("MultiAZ")),
        parameter_group=groups[0].get("DBParameterGroupName", ""),
        parameter_group_status=groups[0].get("ParameterApplyStatus", ""),
        replica_of=row.get("ReadReplicaSourceDBInstanceIdentifier"),
        replicas=tuple(row.get("ReadReplicaDBInstanceIdentifiers") or ()),
        max_allocated_storage_gib=row.get("MaxAllocatedStorage"),
        resource_id=row.get("DbiResourceId", ""),
        arn=row.get("DBInstanceArn", ""),
        database_name=row.get("DBName"),
        **resources.common_fields(row),
    )
