"""DB instances: single ones, read replicas, and the members of clusters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rdsrepl.aws import session
from rdsrepl.config import Aws

POSTGRES_ENGINES = ("postgres", "aurora-postgresql")


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
