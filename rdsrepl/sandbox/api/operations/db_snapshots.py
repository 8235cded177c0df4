"""RDS's operations on what surrounds clusters and instances: snapshots, subnet groups, events, certificates.

A snapshot is a record of what was there and how large it was; nothing can be restored from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from rdsrepl.sandbox.api import engine_catalog, paging, tags
from rdsrepl.sandbox.api.controller import fleet_of
from rdsrepl.sandbox.api.faults import fault
from rdsrepl.sandbox.api.operations import clusters, instances
from rdsrepl.sandbox.api.records import (
    DEFAULT_SUBNET_GROUP,
    VPC,
    Cluster,
    Instance,
    Records,
    Snapshot,
    SubnetGroup,
    check_identifier,
    zones,
)
from rdsrepl.sandbox.api.service import Parameters, Result, Service, operation

SnapshotKind = Literal["cluster", "instance"]
_CERTIFICATES: Final = ("rds-ca-ecc384-g1", "rds-ca-rsa2048-g1", "rds-ca-rsa4096-g1")
_DEFAULT_MINUTES: Final = 60
_SOURCES: Final = ("db-instance", "db-cluster", "db-snapshot", "db-cluster-snapshot", "db-parameter-group")


@operation("CreateDBClusterSnapshot", needs_servers=True)
def create_cluster_snapshot(service: Service, p: Parameters) -> Result:
    """Take a snapshot of a cluster."""
    fleet = fleet_of(service)
    with service.store.lock:
        cluster = clusters.available(fleet.records, p["DBClusterIdentifier"])
        made = _create(service, "cluster", cluster, p["DBClusterSnapshotIdentifier"])
        writer = next((entry.name for entry in fleet.state().members(cluster.identifier)), None)
        made.data_bytes = fleet.data_bytes(writer) if writer is not None else 0
        fleet.records.put(made)
    return {"DBClusterSnapshot": _cluster_described(service, made)}


@operation("CreateDBSnapshot", needs_servers=True)
def create_snapshot(service: Service, p: Parameters) -> Result:
    """Take a snapshot of an instance."""
    fleet = fleet_of(service)
    with service.store.lock:
        instance = instances.available(fleet.records, p["DBInstanceIdentifier"])
        if instance.cluster is not None:
            message = f"{instance.identifier} is a member of a DB cluster: take a snapshot of that."
            raise fault("InvalidParameterCombination", message)
        made = _create(service, "instance", instance, p["DBSnapshotIdentifier"])
        made.data_bytes = fleet.data_bytes(instance.identifier)
        fleet.records.put(made)
    return {"DBSnapshot": _instance_described(service, made)}


@operation("DescribeDBClusterSnapshots")
def describe_cluster_snapshots(service: Service, p: Parameters) -> Result:
    """Answer with snapshots of clusters."""
    name = p.get("DBClusterSnapshotIdentifier")
    fields = ("db-cluster-id", "db-cluster-snapshot-id")
    chosen = {
        one.identifier: _cluster_described(service, one)
        for one in _chosen(service, "cluster", name, p.get("DBClusterIdentifier"), p, fields)
    }
    page, marker = paging.page(chosen, p)
    return {"DBClusterSnapshots": page, "Marker": marker}


@operation("DescribeDBSnapshots")
def describe_snapshots(service: Service, p: Parameters) -> Result:
    """Answer with snapshots of instances."""
    name = p.get("DBSnapshotIdentifier")
    fields = ("db-instance-id", "db-snapshot-id")
    chosen = {
        one.identifier: _instance_described(service, one)
        for one in _chosen(service, "instance", name, p.get("DBInstanceIdentifier"), p, fields)
    }
    page, marker = paging.page(chosen, p)
    return {"DBSnapshots": page, "Marker": marker}


@operation("DeleteDBClusterSnapshot")
def delete_cluster_snapshot(service: Service, p: Parameters) -> Result:
    """Remove a snapshot of a cluster."""
    gone = _delete(service, "cluster", p["DBClusterSnapshotIdentifier"])
    return {"DBClusterSnapshot": _cluster_described(service, gone)}


@operation("DeleteDBSnapshot")
def delete_snapshot(service: Service, p: Parameters) -> Result:
    """Remove a snapshot of an instance."""
    gone = _delete(service, "instance", p["DBSnapshotIdentifier"])
    return {"DBSnapshot": _instance_described(service, gone)}


@operation("CreateDBSubnetGroup")
def create_subnet_group(service: Service, p: Parameters) -> Result:
    """Make a subnet group; nobody asks whether its subnets exist."""
    records = Records(service.store)
    name = check_identifier("DBSubnetGroupName", p["DBSubnetGroupName"], 255)
    if name == DEFAULT_SUBNET_GROUP:
        raise fault("InvalidParameterValue", f"The name {name} is RDS's own.")
    group = SubnetGroup(name, p["DBSubnetGroupDescription"], list(p["SubnetIds"]))
    if len(group.subnets) < 2:
        message = "The DB subnet group doesn't meet Availability Zone (AZ) coverage requirement: at least 2 AZs."
        raise fault("DBSubnetGroupDoesNotCoverEnoughAZs", message)
    with service.store.lock:
        records.refuse(SubnetGroup, name)
        tags.put(service.store, service.arn("subgrp", name), p.get("Tags", ()))
        records.put(group)
    return {"DBSubnetGroup": _subnets_described(service, group)}


@operation("DescribeDBSubnetGroups")
def describe_subnet_groups(service: Service, p: Parameters) -> Result:
    """Answer with subnet groups; ``default`` is always there."""
    records = Records(service.store)
    default = SubnetGroup(DEFAULT_SUBNET_GROUP, "default", ["subnet-0a", "subnet-0b", "subnet-0c"])
    groups = {one.identifier: one for one in (default, *records.all(SubnetGroup))}
    name = p.get("DBSubnetGroupName", "").lower()
    if name and name not in groups:
        raise fault("DBSubnetGroupNotFoundFault", f"DBSubnetGroup {name} not found.")
    paging.passes(p, {})
    chosen = {key: _subnets_described(service, group) for key, group in groups.items() if name in ("", key)}
    page, marker = paging.page(chosen, p)
    return {"DBSubnetGroups": page, "Marker": marker}


@operation("DeleteDBSubnetGroup")
def delete_subnet_group(service: Service, p: Parameters) -> Result:
    """Remove a subnet group that nothing uses."""
    records = Records(service.store)
    with service.store.lock:
        group = records.get(SubnetGroup, p["DBSubnetGroupName"])
        used: list[Cluster | Instance] = [*records.all(Cluster), *records.all(Instance)]
        if any(one.subnet_group == group.identifier for one in used):
            raise fault("InvalidDBSubnetGroupStateFault", f"{group.identifier} is in use.")
        tags.drop(service.store, service.arn("subgrp", group.identifier))
        records.drop(group)
    return {}


@operation("DescribeEvents")
def describe_events(service: Service, p: Parameters) -> Result:
    """Answer with what happened, oldest first: of the last hour, unless another time is asked for."""
    identifier, source_type = p.get("SourceIdentifier"), p.get("SourceType")
    if source_type not in (None, *_SOURCES):
        raise fault("InvalidParameterValue", f"Invalid source type: {source_type}")
    if identifier is not None and source_type is None:
        raise fault("InvalidParameterCombination", "SourceType is needed along with SourceIdentifier.")
    until: datetime = p.get("EndTime") or datetime.now(UTC)
    since: datetime = p.get("StartTime") or until - timedelta(minutes=p.get("Duration") or _DEFAULT_MINUTES)
    wanted = set(p.get("EventCategories", ()))
    paging.passes(p, {})
    chosen: dict[str, Result] = {}
    with service.store.lock:
        for key, event in service.store.section("events").items():
            if (
                identifier in (None, event["identifier"])
                and source_type in (None, event["source_type"])
                and since <= datetime.fromisoformat(event["at"]) <= until
                and (not wanted or wanted & set(event["categories"]))
            ):
                chosen[key] = _event_described(service, event)
    page, marker = paging.page(chosen, p)
    return {"Events": page, "Marker": marker}


@operation("DescribeCertificates")
def describe_certificates(service: Service, p: Parameters) -> Result:
    """Answer with the certificate authorities that RDS has; the sandbox's servers have no TLS."""
    wanted = p.get("CertificateIdentifier")
    if wanted not in (None, *_CERTIFICATES):
        raise fault("CertificateNotFoundFault", f"Certificate not found: {wanted}")
    paging.passes(p, {})
    chosen = {
        name: {
            "CertificateIdentifier": name,
            "CertificateType": "CA",
            "ValidFrom": datetime(2021, 5, 25, tzinfo=UTC),
            "ValidTill": datetime(2061, 5, 25, tzinfo=UTC),
            "CertificateArn": f"arn:aws:rds:{service.region}::cert:{name}",
            "CustomerOverride": False,
        }
        for name in _CERTIFICATES
        if wanted in (None, name)
    }
    page, marker = paging.page(chosen, p)
    return {"Certificates": page, "Marker": marker, "DefaultCertificateForNewLaunches": "rds-ca-rsa2048-g1"}


def _create(service: Service, kind: SnapshotKind, record: Cluster | Instance, name: str) -> Snapshot:
    records = Records(service.store)
    identifier = check_identifier(f"DB{'Cluster' if kind == 'cluster' else ''}SnapshotIdentifier", name, 255)
    records.refuse_snapshot(kind, identifier)
    made = clusters.snapshot_of(records, record, identifier)
    made.status = "available"
    return made


def _delete(service: Service, kind: SnapshotKind, name: str) -> Snapshot:
    records = Records(service.store)
    with service.store.lock:
        snapshot = records.snapshot(kind, name)
        if snapshot.status != "available":
            wrong = "InvalidDBClusterSnapshotStateFault" if kind == "cluster" else "InvalidDBSnapshotStateFault"
            raise fault(wrong, f"{name} is {snapshot.status}.")
        records.drop(snapshot)
    snapshot.status = "deleted"
    return snapshot


def _chosen(
    service: Service, kind: SnapshotKind, name: str | None, of: str | None, p: Parameters, fields: tuple[str, str]
) -> list[Snapshot]:
    records = Records(service.store)
    found = [records.snapshot(kind, name)] if name else records.all(Snapshot)
    return [
        one
        for one in found
        if one.kind == kind
        and of in (None, one.of)
        and p.get("SnapshotType", "manual") == "manual"
        and paging.passes(
            p, {fields[0]: one.of, fields[1]: one.identifier, "snapshot-type": "manual", "engine": one.engine}
        )
    ]


def _cluster_described(service: Service, snapshot: Snapshot) -> Result:
    return {
        "DBClusterSnapshotIdentifier": snapshot.identifier,
        "DBClusterSnapshotArn": service.arn("cluster-snapshot", snapshot.identifier),
        "DBClusterIdentifier": snapshot.of,
        "DbClusterResourceId": snapshot.of_resource_id,
        "AvailabilityZones": zones(service.region),
        "ClusterCreateTime": snapshot.of_created,
        **_both(snapshot),
    }


def _instance_described(service: Service, snapshot: Snapshot) -> Result:
    return {
        "DBSnapshotIdentifier": snapshot.identifier,
        "DBSnapshotArn": service.arn("snapshot", snapshot.identifier),
        "DBInstanceIdentifier": snapshot.of,
        "DbiResourceId": snapshot.of_resource_id,
        "AvailabilityZone": snapshot.zone,
        "InstanceCreateTime": snapshot.of_created,
        "OriginalSnapshotCreateTime": snapshot.created,
        "Iops": snapshot.iops,
        "Encrypted": False,
        **_both(snapshot),
    }


def _both(snapshot: Snapshot) -> Result:
    return {
        "SnapshotCreateTime": snapshot.created,
        "Engine": snapshot.engine,
        "EngineVersion": snapshot.version,
        "AllocatedStorage": snapshot.allocated_gib,
        "StorageType": snapshot.storage_type,
        "Status": snapshot.status,
        "Port": engine_catalog.PORT,
        "VpcId": VPC,
        "MasterUsername": snapshot.master_user,
        "LicenseModel": "postgresql-license",
        "SnapshotType": "manual",
        "PercentProgress": 100 if snapshot.status == "available" else 0,
        "IAMDatabaseAuthenticationEnabled": snapshot.iam_auth,
        "TagList": [],
    }


def _subnets_described(service: Service, group: SubnetGroup) -> Result:
    known = zones(service.region)
    return {
        "DBSubnetGroupName": group.identifier,
        "DBSubnetGroupDescription": group.description,
        "DBSubnetGroupArn": service.arn("subgrp", group.identifier),
        "VpcId": VPC,
        "SubnetGroupStatus": "Complete",
        "Subnets": [
            {
                "SubnetIdentifier": subnet,
                "SubnetAvailabilityZone": {"Name": known[number % len(known)]},
                "SubnetStatus": "Active",
            }
            for number, subnet in enumerate(group.subnets)
        ],
    }


def _event_described(service: Service, event: Mapping[str, Any]) -> Result:
    kind = "cluster" if event["source_type"] == "db-cluster" else "db"
    return {
        "SourceIdentifier": event["identifier"],
        "SourceType": event["source_type"],
        "Message": event["message"],
        "EventCategories": event["categories"],
        "Date": event["at"],
        "SourceArn": service.arn(kind, event["identifier"]),
    }
