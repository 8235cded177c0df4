"""DB instances: single ones, read replicas, and the members of clusters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from rdsrepl.aws import identifiers, session
from rdsrepl.config import Aws, Target
from rdsrepl.errors import NotAvailable, NotFound, Refused
from rdsrepl.plan import AwsCall, Condition, Plan, Wait
from rdsrepl.text.commands import command

POSTGRES_ENGINES: Final = ("postgres", "aurora-postgresql")
# In none of these does a wait for `available` ever end (RDS user guide, "DB instance status").
_DEAD_ENDS: Final = frozenset(
    [
        "failed",
        "incompatible-parameters",
        "incompatible-restore",
        "incompatible-network",
        "incompatible-option-group",
        "inaccessible-encryption-credentials",
        "deleting",
    ]
)
# How long a reboot that was asked for may take to show in the status; longer, and it was over before we looked.
_REBOOT_SHOWS_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Instance:
    """A DB instance, as DescribeDBInstances gives it.

    Attributes:
        endpoint: the host name; None while it is being created.
        parameter_group_status: ``in-sync``, ``pending-reboot``, ``applying``, ``failed-to-apply``, …
        replica_of: the source's identifier (or ARN, from another region) when it is a read replica.
        replicas: its own read replicas.
        allocated_storage_gib: 0 or 1 on Aurora, whose storage belongs to the cluster.
        max_allocated_storage_gib: where storage autoscaling ends; None when it is off.
        resource_id: ``db-…``; part of the name of the physical slot a replica uses.
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


@dataclass(frozen=True, slots=True)
class NewInstance:
    """What ``create`` shall make; None leaves it to AWS.

    Attributes:
        replica_of: makes it a read replica of that instance; the login and the storage are the source's.
        password: the master user's; None lets RDS make one and keep it in Secrets Manager.
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
    found = session.pages(aws, "rds", "DescribeDBInstances", "DBInstances")
    return tuple(instance for instance in map(_instance, found) if instance.engine in POSTGRES_ENGINES)


def get(aws: Aws, instance_id: str) -> Instance:
    """Return one instance.

    Raises:
        NotFound: there is none of that name in the region.
    """
    answer = session.call(aws, "rds", "DescribeDBInstances", {"DBInstanceIdentifier": instance_id})
    return _instance(answer["DBInstances"][0])


def of_cluster(aws: Aws, cluster_id: str) -> tuple[Instance, ...]:
    """Return a cluster's member instances.

    Raises:
        Error: AWS refused.
    """
    filters = {"Filters": [{"Name": "db-cluster-id", "Values": [cluster_id]}]}
    return tuple(_all(aws, filters))


def check_name(name: str) -> str:
    """Return NAME as AWS keeps it, in lower case, if a new instance may have it (CreateDBInstance).

    Raises:
        BadValue: it may not.
    """
    return identifiers.check(name, "an instance", longest=63)


def require_available(instance: Instance) -> None:
    """Refuse work on an instance that is in the middle of something else.

    Raises:
        NotAvailable: it is.
    """
    if instance.status != "available":
        raise NotAvailable(
            f"instance {instance.instance_id} is {instance.status}, not available",
            hint=f"wait for it: {command('instance show {}', instance.instance_id)}",
        )


def create(new: NewInstance, *, timeout_seconds: float) -> Plan:
    """Plan to make an instance, a member of an Aurora cluster or a read replica, and wait until it is available."""
    common: dict[str, Any] = {
        "DBInstanceIdentifier": new.instance_id,
        "DBInstanceClass": new.instance_class,
        "DBParameterGroupName": new.parameter_group,
    }
    alone: dict[str, Any] = {
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
        request = {**common, **alone, "SourceDBInstanceIdentifier": new.replica_of}
    elif new.cluster_id is not None:
        operation, kind = "CreateDBInstance", f"in cluster {new.cluster_id}"
        request = {**common, "DBClusterIdentifier": new.cluster_id, "Engine": "aurora-postgresql"}
    else:
        operation, kind = "CreateDBInstance", ""
        request = {
            **common,
            **alone,
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
    return Plan(
        summary,
        (
            AwsCall(summary, "rds", operation, request, frozenset({"MasterUserPassword"})),
            wait_available(new.instance_id, timeout_seconds),
        ),
    )


def reboot(instance_id: str, *, timeout_seconds: float, failover: bool = False, only_pending: bool = False) -> Plan:
    """Plan to reboot one instance and wait until it is back (RebootDBInstance).

    Args:
        instance_id: which.
        timeout_seconds: how long it may take.
        failover: to its standby in another zone (Multi-AZ instances).
        only_pending: leave the call out when by then nothing waits for a reboot any more.
    """
    request = {"DBInstanceIdentifier": instance_id, **({"ForceFailover": True} if failover else {})}
    call = AwsCall(
        f"reboot instance {instance_id}" + (" with failover" if failover else ""),
        "rds",
        "RebootDBInstance",
        request,
        needed=partial(_pending, instance_id=instance_id) if only_pending else None,
        condition="if it is still pending-reboot" if only_pending else "",
    )
    # Where something was pending, being in sync proves the reboot; else the reboot itself must have been seen.
    probe = partial(in_sync, instance_id=instance_id) if only_pending else Rebooted(instance_id)
    wait = Wait(f"wait until instance {instance_id} is back", probe, timeout_seconds)
    return Plan(f"reboot instance {instance_id}", (call, wait), warnings=("its connections break",))


def delete(instance: Instance, *, final_snapshot: str | None, timeout_seconds: float) -> Plan:
    """Plan to delete an instance and wait until it is gone (DeleteDBInstance).

    Raises:
        Refused: it is protected against deletion.
    """
    if instance.deletion_protection:
        raise Refused(
            f"instance {instance.instance_id} is protected against deletion",
            hint="take the protection off knowingly: aws rds modify-db-instance --no-deletion-protection "
            f"--db-instance-identifier {instance.instance_id}",
        )
    request: dict[str, Any] = {
        "DBInstanceIdentifier": instance.instance_id,
        "SkipFinalSnapshot": final_snapshot is None,
    }
    if final_snapshot is not None:
        request["FinalDBSnapshotIdentifier"] = final_snapshot
    kept = f"the final snapshot {final_snapshot} is kept" if final_snapshot else "no snapshot is taken: all is lost"
    if instance.cluster_id is not None:
        kept = f"it is a member of cluster {instance.cluster_id}, which keeps its data"
    elif instance.replica_of is not None:
        kept = f"it is a read replica of {instance.replica_of}; RDS takes no final snapshot of one"
    return Plan(
        f"delete instance {instance.instance_id}",
        (
            AwsCall(f"delete instance {instance.instance_id}", "rds", "DeleteDBInstance", request),
            Wait(
                f"wait until instance {instance.instance_id} is gone",
                partial(_gone, instance_id=instance.instance_id),
                timeout_seconds,
            ),
        ),
        warnings=(kept,),
    )


def wait_available(instance_id: str, timeout_seconds: float) -> Wait:
    """Return the step that waits until an instance is available."""
    probe = partial(_available, instance_id=instance_id)
    return Wait(f"wait until instance {instance_id} is available", probe, timeout_seconds)


class Rebooted:
    """A probe: an instance that was told to reboot is back, and nothing waits for a reboot any more."""

    def __init__(self, instance_id: str) -> None:
        self._instance_id = instance_id
        self._first_look: float | None = None
        self._seen_down = False

    def __call__(self, target: Target) -> Condition:
        """Look."""
        if self._first_look is None:
            self._first_look = time.monotonic()
        instance = get(target.aws, self._instance_id)
        condition = _state(instance)
        if instance.status != "available":
            self._seen_down = True
            return condition
        groups = {instance.parameter_group_status, *cluster_group_status(target.aws, instance).values()} - {""}
        waited = time.monotonic() - self._first_look > _REBOOT_SHOWS_SECONDS
        # In sync proves a reboot only where something was pending: so a reboot must have been seen, or had its time.
        met = groups <= {"in-sync"} and (self._seen_down or waited)
        return Condition(met, f"{instance.instance_id} available, parameters {', '.join(sorted(groups))}")


def in_sync(target: Target, *, instance_id: str) -> Condition:
    """Look whether an instance is available and runs with its groups' values: the probe behind ``reboot``."""
    instance = get(target.aws, instance_id)
    condition = _state(instance)
    if instance.status != "available":
        return condition
    groups = {instance.parameter_group_status, *cluster_group_status(target.aws, instance).values()} - {""}
    return Condition(groups <= {"in-sync"}, f"{instance_id} available, parameters {', '.join(sorted(groups))}")


def attach(instance: Instance, group: str, *, timeout_seconds: float) -> tuple[AwsCall, Wait]:
    """Return the steps that attach a parameter group; it takes effect at the next reboot (ModifyDBInstance)."""
    request = {
        "DBInstanceIdentifier": instance.instance_id,
        "DBParameterGroupName": group,
        "ApplyImmediately": True,
    }
    probe = partial(_attached, instance_id=instance.instance_id, group=group)
    return (
        AwsCall(f"attach group {group} to instance {instance.instance_id}", "rds", "ModifyDBInstance", request),
        Wait(f"wait until instance {instance.instance_id} has it, pending a reboot", probe, timeout_seconds),
    )


def _attached(target: Target, *, instance_id: str, group: str) -> Condition:
    instance = get(target.aws, instance_id)
    met = (
        instance.status == "available"
        and instance.parameter_group == group
        and instance.parameter_group_status == "pending-reboot"
    )
    return Condition(met, f"{instance_id} {instance.status}, parameters {instance.parameter_group_status}")


def cluster_group_status(aws: Aws, instance: Instance) -> dict[str, str]:
    """Return the status of the cluster's parameter group on this member; nothing for an instance of no cluster."""
    if instance.cluster_id is None:
        return {}
    answer = session.call(aws, "rds", "DescribeDBClusters", {"DBClusterIdentifier": instance.cluster_id})
    return {
        member["DBInstanceIdentifier"]: member.get("DBClusterParameterGroupStatus", "")
        for member in answer["DBClusters"][0].get("DBClusterMembers") or ()
        if member["DBInstanceIdentifier"] == instance.instance_id
    }


def _pending(target: Target, *, instance_id: str) -> bool:
    instance = get(target.aws, instance_id)
    states = {instance.parameter_group_status, *cluster_group_status(target.aws, instance).values()}
    return "pending-reboot" in states


def _available(target: Target, *, instance_id: str) -> Condition:
    instance = get(target.aws, instance_id)
    return _state(instance)


def _state(instance: Instance) -> Condition:
    said = f"{instance.instance_id} {instance.status}"
    if instance.status in _DEAD_ENDS:
        events = f"aws rds describe-events --source-type db-instance --source-identifier {instance.instance_id}"
        return Condition(False, said, failed=f"it is {instance.status}", remedy=f"see its events: {events}")
    facts = {"endpoint": f"{instance.endpoint}:{instance.port}"}
    return Condition(instance.status == "available", said, facts=facts)


def _gone(target: Target, *, instance_id: str) -> Condition:
    try:
        instance = get(target.aws, instance_id)
    except NotFound:
        return Condition(True, "gone")
    return Condition(False, f"{instance_id} {instance.status}")


def _all(aws: Aws, parameters: Mapping[str, Any]) -> Iterator[Instance]:
    return map(_instance, session.pages(aws, "rds", "DescribeDBInstances", "DBInstances", parameters))


def _instance(row: Mapping[str, Any]) -> Instance:
    endpoint = row.get("Endpoint") or {}
    groups = row.get("DBParameterGroups") or [{}]
    return Instance(
        instance_id=row["DBInstanceIdentifier"],
        engine=row["Engine"],
        engine_version=row["EngineVersion"],
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
        allocated_storage_gib=row.get("AllocatedStorage") or 0,
        max_allocated_storage_gib=row.get("MaxAllocatedStorage"),
        storage_type=row.get("StorageType"),
        iops=row.get("Iops"),
        master_user=row.get("MasterUsername"),
        master_secret=(row.get("MasterUserSecret") or {}).get("SecretArn"),
        iam_auth=bool(row.get("IAMDatabaseAuthenticationEnabled")),
        resource_id=row.get("DbiResourceId", ""),
        arn=row.get("DBInstanceArn", ""),
        database_name=row.get("DBName"),
        deletion_protection=bool(row.get("DeletionProtection")),
    )
