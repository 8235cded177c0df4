"""The RDS operations on DB snapshots and DB cluster snapshots.

A snapshot is only a record; nothing can be restored from it.
"""

from __future__ import annotations

from rdsrepl.sandbox.api import paging, types
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.records import (
    Cluster,
    Instance,
    Records,
    Snapshot,
    check_identifier,
    now,
    zones,
)
from rdsrepl.sandbox.api.service import Service, operation
from rdsrepl.sandbox.api.types import Parameters, ResourceKind, Result


@operation("CreateDBClusterSnapshot")
def create_cluster_snapshot(service: Service, p: Parameters) -> Result:
    """Take a snapshot of a cluster."""
    controller = service.require_controller()
    with service.store.lock:
        cluster = controller.records.get_available(Cluster, p["DBClusterIdentifier"])
        made = _create(service, "cluster", cluster, p["DBClusterSnapshotIdentifier"])
        controller.records.put(made)
    return {"DBClusterSnapshot": _cluster_result(service, made)}


@operation("CreateDBSnapshot")
def create_snapshot(service: Service, p: Parameters) -> Result:
    """Take a snapshot of an instance."""
    controller = service.require_controller()
    with service.store.lock:
        instance = controller.records.get_available(Instance, p["DBInstanceIdentifier"])
        if instance.cluster is not None:
            message = f"{instance.identifier} is a member of a DB cluster; create a snapshot of the cluster instead."
            raise fault("InvalidParameterCombination", message)
        made = _create(service, "instance", instance, p["DBSnapshotIdentifier"])
        controller.records.put(made)
    return {"DBSnapshot": _instance_result(service, made)}


@operation("DescribeDBClusterSnapshots")
def describe_cluster_snapshots(service: Service, p: Parameters) -> Result:
    """Return snapshots of clusters."""
    name = p.get("DBClusterSnapshotIdentifier")
    fields = ("db-cluster-id", "db-cluster-snapshot-id")
    chosen = {
        one.identifier: _cluster_result(service, one)
        for one in _find(service, "cluster", name, p.get("DBClusterIdentifier"), p, fields)
    }
    page, marker = paging.page(chosen, p)
    return {"DBClusterSnapshots": page, "Marker": marker}


@operation("DescribeDBSnapshots")
def describe_snapshots(service: Service, p: Parameters) -> Result:
    """Return snapshots of instances."""
    name = p.get("DBSnapshotIdentifier")
    fields = ("db-instance-id", "db-snapshot-id")
    chosen = {
        one.identifier: _instance_result(service, one)
        for one in _find(service, "instance", name, p.get("DBInstanceIdentifier"), p, fields)
    }
    page, marker = paging.page(chosen, p)
    return {"DBSnapshots": page, "Marker": marker}


@operation("DeleteDBClusterSnapshot")
def delete_cluster_snapshot(service: Service, p: Parameters) -> Result:
    """Delete a snapshot of a cluster."""
    snapshot = _delete(service, "cluster", p["DBClusterSnapshotIdentifier"])
    return {"DBClusterSnapshot": _cluster_result(service, snapshot)}


@operation("DeleteDBSnapshot")
def delete_snapshot(service: Service, p: Parameters) -> Result:
    """Delete a snapshot of an instance."""
    snapshot = _delete(service, "instance", p["DBSnapshotIdentifier"])
    return {"DBSnapshot": _instance_result(service, snapshot)}


def _create(service: Service, kind: ResourceKind, record: Cluster | Instance, name: str) -> Snapshot:
    records = Records(service.store)
    identifier = check_identifier(f"DB{'Cluster' if kind == 'cluster' else ''}SnapshotIdentifier", name, 255)
    records.check_snapshot_unused(kind, identifier)
    made = new_snapshot(records, record, identifier)
    made.status = "available"
    return made


def _delete(service: Service, kind: ResourceKind, name: str) -> Snapshot:
    records = Records(service.store)
    with service.store.lock:
        snapshot = records.snapshot(kind, name)
        if snapshot.status != "available":
            wrong = "InvalidDBClusterSnapshotStateFault" if kind == "cluster" else "InvalidDBSnapshotStateFault"
            raise fault(wrong, f"{name} is {snapshot.status}.")
        records.drop(snapshot)
    snapshot.status = "deleted"
    return snapshot


def _find(
    service: Service, kind: ResourceKind, name: str | None, source: str | None, p: Parameters, filters: tuple[str, str]
) -> list[Snapshot]:
    """Return the requested snapshots; FILTERS are the filters for the source and the name of a snapshot."""
    records = Records(service.store)
    candidates = [records.snapshot(kind, name)] if name else records.all(Snapshot)
    chosen = []
    for one in candidates:
        fields = {filters[0]: one.source, filters[1]: one.identifier, "snapshot-type": "manual", "engine": one.engine}
        if (
            one.kind == kind
            and source in (None, one.source)
            and p.get("SnapshotType", "manual") == "manual"
            and paging.matches_filters(p, fields)
        ):
            chosen.append(one)
    return chosen


def _cluster_result(service: Service, snapshot: Snapshot) -> Result:
    return {
        "DBClusterSnapshotIdentifier": snapshot.identifier,
        "DBClusterSnapshotArn": service.arn("cluster-snapshot", snapshot.identifier),
        "DBClusterIdentifier": snapshot.source,
        "DbClusterResourceId": snapshot.source_resource_id,
        "AvailabilityZones": zones(service.region),
        "ClusterCreateTime": snapshot.source_created,
        **_common_result(snapshot),
    }


def _instance_result(service: Service, snapshot: Snapshot) -> Result:
    return {
        "DBSnapshotIdentifier": snapshot.identifier,
        "DBSnapshotArn": service.arn("snapshot", snapshot.identifier),
        "DBInstanceIdentifier": snapshot.source,
        "DbiResourceId": snapshot.source_resource_id,
        "AvailabilityZone": snapshot.zone,
        "InstanceCreateTime": snapshot.source_created,
        "OriginalSnapshotCreateTime": snapshot.created,
        "Iops": snapshot.iops,
        "Encrypted": False,
        **_common_result(snapshot),
    }


def _common_result(snapshot: Snapshot) -> Result:
    return {
        "SnapshotCreateTime": snapshot.created,
        "Engine": snapshot.engine,
        "EngineVersion": snapshot.version,
        "AllocatedStorage": snapshot.allocated_gib,
        "StorageType": snapshot.storage_type,
        "Status": snapshot.status,
        "Port": types.DEFAULT_PORT,
        "VpcId": "vpc-0a1b2c3d4e5f60718",
        "MasterUsername": snapshot.master_user,
        "LicenseModel": "postgresql-license",
        "SnapshotType": "manual",
        "PercentProgress": 100 if snapshot.status == "available" else 0,
        "IAMDatabaseAuthenticationEnabled": snapshot.iam_auth,
        "TagList": [],
    }


def create_final_snapshot(records: Records, p: Parameters, record: Cluster | Instance) -> Snapshot | None:
    """Save the record of the final snapshot that a deletion requests, with the status ``creating``; None without one.

    Raises:
        Fault: the parameters are missing or exclude each other, or the name is not valid or in use.
    """
    kind: ResourceKind = "cluster" if isinstance(record, Cluster) else "instance"
    name, skip = p.get("FinalDBSnapshotIdentifier"), p.get("SkipFinalSnapshot", False)
    if skip and name:
        message = "FinalDBSnapshotIdentifier can not be specified when deleting with SkipFinalSnapshot."
        raise fault("InvalidParameterCombination", message)
    if not skip and not name:
        message = "FinalDBSnapshotIdentifier is required unless SkipFinalSnapshot is specified."
        raise fault("InvalidParameterCombination", message)
    if not name:
        return None
    identifier = check_identifier("FinalDBSnapshotIdentifier", name, 255)
    snapshot = new_snapshot(records, record, identifier)
    records.check_snapshot_unused(kind, identifier)
    records.put(snapshot)
    return snapshot


def new_snapshot(records: Records, record: Cluster | Instance, identifier: str) -> Snapshot:
    """Return a snapshot of a cluster or an instance, which is not saved yet."""
    members: list[Instance] = records.members(record.identifier) if isinstance(record, Cluster) else [record]
    return Snapshot(
        identifier,
        "cluster" if isinstance(record, Cluster) else "instance",
        record.identifier,
        record.resource_id,
        record.engine,
        record.version,
        record.master_user,
        record.allocated_gib or 1,
        record.storage_type,
        now(),
        record.created,
        members[0].zone if members else "",
        iops=record.iops,
        iam_auth=record.iam_auth,
    )
