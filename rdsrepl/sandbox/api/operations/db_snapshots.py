"""RDS's operations on what surrounds clusters and instances: snapshots, subnet groups, events, certificates.

A snapshot is a record of what was there and how large it was; nothing can be restored from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from rdsrepl.sandbox.api import engine_catalog, paging
from rdsrepl.sandbox.api.controller import fleet_of
from rdsrepl.sandbox.api.faults import fault
from rdsrepl.sandbox.api.operations import clusters, instances
from rdsrepl.sandbox.api.records import (
    Cluster,
    Instance,
    Records,
    Snapshot,
    check_identifier,
    zones,
)
from rdsrepl.sandbox.api.service import Parameters, Result, Service, operation

SnapshotKind = Literal["cluster", "instance"]
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
        "VpcId": "vpc-0a1b2c3d4e5f60718",
        "MasterUsername": snapshot.master_user,
        "LicenseModel": "postgresql-license",
        "SnapshotType": "manual",
        "PercentProgress": 100 if snapshot.status == "available" else 0,
        "IAMDatabaseAuthenticationEnabled": snapshot.iam_auth,
        "TagList": [],
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
