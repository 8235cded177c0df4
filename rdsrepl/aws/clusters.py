"""DB clusters: Multi-AZ DB clusters of RDS, and Aurora's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rdsrepl.aws import session
from rdsrepl.config import Aws

Kind = Literal["multi_az_cluster", "aurora"]


@dataclass(frozen=True, slots=True)
class Member:
    """An instance of a cluster.

    Attributes:
        parameter_group_status: of the cluster's group on this member: ``in-sync``, ``pending-reboot``, …
    """

    instance_id: str
    is_writer: bool
    parameter_group_status: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """A DB cluster, as DescribeDBClusters gives it.

    Attributes:
        kind: ``multi_az_cluster`` (engine postgres) or ``aurora``.
        endpoint: the writer's host name.
        members: the writer first.
        instance_class: of a Multi-AZ DB cluster; Aurora's members have their own.
        resource_id: ``cluster-…``.
    """

    cluster_id: str
    kind: Kind
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

    @property
    def writer(self) -> str | None:
        """The writer's instance identifier; None while there is none."""
        return next((member.instance_id for member in self.members if member.is_writer), None)


def ls(aws: Aws) -> tuple[Cluster, ...]:
    """Return every PostgreSQL cluster of the region (DescribeDBClusters).

    Raises:
        Error: AWS refused.
    """
    found = session.pages(aws, "rds", "DescribeDBClusters", "DBClusters")
    return tuple(_cluster(row) for row in found if row["Engine"] in ("postgres", "aurora-postgresql"))


def get(aws: Aws, cluster_id: str) -> Cluster:
    """Return one cluster.

    Raises:
        NotFound: there is none of that name in the region.
    """
    answer = session.call(aws, "rds", "DescribeDBClusters", {"DBClusterIdentifier": cluster_id})
    return _cluster(answer["DBClusters"][0])


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
        kind="aurora" if row["Engine"].startswith("aurora") else "multi_az_cluster",
        engine=row["Engine"],
        engine_version=row["EngineVersion"],
        status=row["Status"],
        endpoint=row.get("Endpoint"),
        reader_endpoint=row.get("ReaderEndpoint"),
        port=row.get("Port"),
        parameter_group=row.get("DBClusterParameterGroup", ""),
        members=tuple(sorted(members, key=lambda member: (not member.is_writer, member.instance_id))),
        availability_zones=tuple(row.get("AvailabilityZones") or ()),
        instance_class=row.get("DBClusterInstanceClass"),
        allocated_storage_gib=row.get("AllocatedStorage") or 0,
        storage_type=row.get("StorageType"),
        iops=row.get("Iops"),
        master_user=row.get("MasterUsername"),
        master_secret=(row.get("MasterUserSecret") or {}).get("SecretArn"),
        iam_auth=bool(row.get("IAMDatabaseAuthenticationEnabled")),
        resource_id=row.get("DbClusterResourceId", ""),
        arn=row.get("DBClusterArn", ""),
        database_name=row.get("DatabaseName"),
        deletion_protection=bool(row.get("DeletionProtection")),
    )
