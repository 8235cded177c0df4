"""The RDS operations on DB clusters: Multi-AZ DB clusters and Aurora clusters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from rdsrepl.sandbox.api import engine_catalog
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.operations.checks import (
    MAX_NAME_LENGTH,
    SUBNET_GROUP,
    attachable_group,
    check_quota,
    check_subnet_group,
    checked_storage,
    find_release,
    master_credentials,
    same_major,
    update_secret,
)
from rdsrepl.sandbox.api.operations.db_snapshots import create_final_snapshot
from rdsrepl.sandbox.api.operations.describe import (
    FIXED_MEMBERS,
    HOSTED_ZONE,
    describe,
    secret_result,
    shown_group_status,
)
from rdsrepl.sandbox.api.parameter_groups import default_name
from rdsrepl.sandbox.api.records import (
    Cluster,
    Instance,
    Records,
    check_identifier,
    invalid_state,
    new_resource_id,
    now,
    zones,
)
from rdsrepl.sandbox.api.service import Service, describes_all, operation
from rdsrepl.sandbox.api.types import DEFAULT_PORT, Parameters, Result
from rdsrepl.sandbox.servers.postgres_server import HOST, READER_HOST
from rdsrepl.sandbox.state import ServerState

MEMBERS: Final = 3
MAX_CLUSTERS: Final = 40
_MAX_MULTI_AZ_NAME_LENGTH: Final = 52


@operation("CreateDBCluster")
def create(service: Service, p: Parameters) -> Result:
    """Create a cluster: a Multi-AZ DB cluster with its members, or an Aurora cluster without members."""
    controller = service.require_controller()
    release, programs = find_release(controller, p["Engine"], p.get("EngineVersion"))
    multi_az = release.engine == "postgres"
    identifier = check_identifier(
        "DBClusterIdentifier", p["DBClusterIdentifier"], _MAX_MULTI_AZ_NAME_LENGTH if multi_az else MAX_NAME_LENGTH
    )
    user, password = master_credentials(p, required=True)
    group = attachable_group(service, "cluster", p.get("DBClusterParameterGroupName"), release)
    check_subnet_group(p)
    cluster = Cluster(
        identifier,
        release.engine,
        release.version,
        user,
        new_resource_id("cluster"),
        group.name,
        now(),
        dbname=p.get("DatabaseName"),
        deletion_protection=p.get("DeletionProtection", False),
        iam_auth=p.get("EnableIAMDatabaseAuthentication", False),
        backup_days=p.get("BackupRetentionPeriod", 1),
        encrypted=p.get("StorageEncrypted", False),
    )
    _set_storage(cluster, p)
    with service.store.lock:
        controller.records.check_unused(Cluster, identifier)
        if len(controller.records.all(Cluster)) >= MAX_CLUSTERS:
            raise fault("DBClusterQuotaExceededFault", "The quota of DB clusters is reached.")
        members = _members(service, cluster) if multi_az else []
        for member in members:
            controller.records.check_unused(Instance, member.identifier)
        check_quota(controller.records, len(members))
        if p.get("ManageMasterUserPassword"):
            controller.manage_secret(cluster, password)
        elif not multi_az:
            cluster.password = password  # for its first instance
        controller.records.put(cluster)
        for member in members:
            controller.records.put(member)
    controller.add_cluster_endpoints(identifier)
    if multi_az:
        entries: list[ServerState] = []
        for member in members:
            entries.append(controller.new_server(member, programs, source=entries[0].name if entries else None))
        controller.create(entries, password, cluster=identifier)
    else:
        controller.run_in_background(lambda: None, "creating", identifier, ())
    return {"DBCluster": cluster_result(service, controller.records.get(Cluster, identifier))}


@operation("DescribeDBClusters")
def describe_clusters(service: Service, p: Parameters) -> Result:
    """Return clusters."""

    def fields(shown: Result) -> Mapping[str, str | Collection[str]]:
        return {
            "db-cluster-id": (shown["DBClusterIdentifier"], shown["DBClusterArn"]),
            "db-cluster-resource-id": shown["DbClusterResourceId"],
            "engine": shown["Engine"],
        }

    page, marker = describe(service, "cluster", p, describe_all(service), fields)
    return {"DBClusters": page, "Marker": marker}


@describes_all("cluster")
def describe_all(service: Service) -> dict[str, Result]:
    """Return the description of every cluster, by identifier."""
    return {record.identifier: cluster_result(service, record) for record in Records(service.store).all(Cluster)}


@operation("ModifyDBCluster")
def modify(service: Service, p: Parameters) -> Result:
    """Modify a cluster."""
    controller = service.require_controller()
    records = controller.records
    if "NewDBClusterIdentifier" in p:
        raise fault("InvalidParameterCombination", "The sandbox does not rename clusters.")
    with service.store.lock:
        cluster = records.get_available(Cluster, p["DBClusterIdentifier"])
        release = same_major(cluster.engine, cluster.version, p.get("EngineVersion"))
        wanted = p.get("DBClusterParameterGroupName")
        group = attachable_group(service, "cluster", wanted, release) if wanted else None
        has_new_group = group is not None and group.name != cluster.parameter_group
        _, password = master_credentials(p, required=False)
        if not cluster.multi_az and {"DBClusterInstanceClass", "Iops", "AllocatedStorage"} & p.keys():
            raise fault(
                "InvalidParameterCombination", "Aurora clusters have no instance class or storage of their own."
            )
        has_new_class = p.get("DBClusterInstanceClass", cluster.instance_class) != cluster.instance_class
        wanted_storage = _apply_or_queue(cluster, p, release.version)
        cluster.parameter_group = group.name if group is not None else cluster.parameter_group
        cluster.deletion_protection = p.get("DeletionProtection", cluster.deletion_protection)
        cluster.iam_auth = p.get("EnableIAMDatabaseAuthentication", cluster.iam_auth)
        cluster.backup_days = p.get("BackupRetentionPeriod", cluster.backup_days)
        if cluster.multi_az:
            _set_storage(cluster, wanted_storage, current=cluster)
        update_secret(controller, cluster, p, password)
        records.put(cluster)
        for member in records.members(cluster.identifier):
            _copy_cluster_settings(member, cluster)
            if has_new_group:
                member.cluster_status = "applying"
            records.put(member)

    def job() -> None:
        writer = next((entry.name for entry in controller.actions.state().members(cluster.identifier)), None)
        if password and writer is not None:
            controller.set_password(writer, cluster.master_user, password)
        for member in records.members(cluster.identifier):
            if member.cluster_status == "applying":
                controller.attach_cluster_group(member.identifier)
            if has_new_class:
                controller.actions.reboot(member.identifier)

    controller.run_in_background(job, "modifying", cluster.identifier, ())
    return {"DBCluster": cluster_result(service, records.get(Cluster, cluster.identifier))}


@operation("RebootDBCluster")
def reboot(service: Service, p: Parameters) -> Result:
    """Restart the writer of a Multi-AZ DB cluster."""
    controller = service.require_controller()
    with service.store.lock:
        cluster = controller.records.get_available(Cluster, p["DBClusterIdentifier"])
        if not cluster.multi_az:
            message = "RebootDBCluster is for Multi-AZ DB clusters; reboot the instances of an Aurora cluster instead."
            raise fault("InvalidParameterCombination", message)
        writer = controller.actions.state().members(cluster.identifier)[0].name
        # RDS shows this in the status of the cluster, not of the writer.
        controller.reboot([writer], cluster=cluster.identifier)
    return {"DBCluster": cluster_result(service, controller.records.get(Cluster, cluster.identifier))}


@operation("FailoverDBCluster")
def fail_over(service: Service, p: Parameters) -> Result:
    """Make a reader the writer: the given one, else the one with the lowest promotion tier."""
    controller = service.require_controller()
    with service.store.lock:
        cluster = controller.records.get_available(Cluster, p["DBClusterIdentifier"])
        records = {member.identifier: member for member in controller.records.members(cluster.identifier)}
        members = [entry.name for entry in controller.actions.state().members(cluster.identifier)]
        ready = [name for name in members[1:] if records[name].status == "available"]
        target = p.get("TargetDBInstanceIdentifier", "").lower()
        if target and target not in records:
            raise fault("InvalidParameterValue", f"{target} is not a member of the DB cluster {cluster.identifier}.")
        if target == members[0]:
            raise fault("InvalidDBInstanceStateFault", f"{target} is the writer of {cluster.identifier} already.")
        if not ready or (target and target not in ready):
            message = f"The DB cluster {cluster.identifier} has no reader that is available to fail over to."
            raise fault("InvalidDBClusterStateFault", message)
        controller.fail_over(cluster.identifier, target or min(ready, key=lambda name: records[name].promotion_tier))
    return {"DBCluster": cluster_result(service, controller.records.get(Cluster, cluster.identifier))}


@operation("DeleteDBCluster")
def delete(service: Service, p: Parameters) -> Result:
    """Delete a cluster, and the members of a Multi-AZ DB cluster with it."""
    controller = service.require_controller()
    records = controller.records
    with service.store.lock:
        cluster = records.get(Cluster, p["DBClusterIdentifier"])
        if cluster.status not in ("available", "failed"):
            raise invalid_state(cluster)
        if cluster.deletion_protection:
            message = "Cannot delete protected Cluster, please disable deletion protection and try again."
            raise fault("InvalidParameterCombination", message)
        members = [one for one in records.members(cluster.identifier) if one.status != "deleting"]
        if members and not cluster.multi_az:
            message = "Cluster cannot be deleted, it still contains DB instances in non-deleting state."
            raise fault("InvalidDBClusterStateFault", message)
        snapshot = create_final_snapshot(records, p, cluster)
        answer = cluster_result(service, cluster) | {"Status": "deleting"}
        controller.manage_secret(cluster, None)
        records.put(cluster)
        controller.delete_cluster(cluster.identifier, snapshot)
    return {"DBCluster": answer}


def cluster_result(service: Service, cluster: Cluster) -> Result:
    """Return a cluster as RDS describes it."""
    records = Records(service.store)
    members = {member.identifier: member for member in records.members(cluster.identifier)}
    state = service.controller.actions.state() if service.controller is not None else None
    entries = state.members(cluster.identifier) if state is not None else ()
    port = state.port("writer", cluster.identifier) if state is not None else None
    has_reader = state is not None and state.port("reader", cluster.identifier) is not None
    own_host = state is not None and state.port("reader-host", cluster.identifier) == port
    known = zones(service.region)
    return {
        "DBClusterIdentifier": cluster.identifier,
        "DBClusterArn": service.arn("cluster", cluster.identifier),
        "DbClusterResourceId": cluster.resource_id,
        "Status": cluster.status,
        "Engine": cluster.engine,
        "EngineVersion": cluster.version,
        "EngineMode": "provisioned",
        "DatabaseName": cluster.dbname,
        "MasterUsername": cluster.master_user,
        "MasterUserSecret": secret_result(cluster),
        "Endpoint": HOST if port else None,
        "ReaderEndpoint": (READER_HOST if own_host else HOST) if has_reader else None,
        "Port": port or DEFAULT_PORT,
        "MultiAZ": cluster.multi_az or len({member.zone for member in members.values()}) > 1,
        "AvailabilityZones": known,
        "DBClusterParameterGroup": cluster.parameter_group,
        "DBSubnetGroup": SUBNET_GROUP,
        "DBClusterMembers": [
            {
                "DBInstanceIdentifier": entry.name,
                "IsClusterWriter": entry.source is None,
                "DBClusterParameterGroupStatus": shown_group_status(service, members[entry.name].cluster_status),
                "PromotionTier": members[entry.name].promotion_tier,
            }
            for entry in sorted(entries, key=lambda entry: entry.name)
            if entry.name in members
        ],
        "AllocatedStorage": cluster.allocated_gib or 1,
        "StorageType": cluster.storage_type,
        "Iops": cluster.iops,
        "DBClusterInstanceClass": cluster.instance_class,
        "PendingModifiedValues": cluster.pending or None,
        "BackupRetentionPeriod": cluster.backup_days,
        "ClusterCreateTime": cluster.created,
        "EarliestRestorableTime": cluster.created,
        "LatestRestorableTime": now(),
        "StorageEncrypted": cluster.encrypted,
        "IAMDatabaseAuthenticationEnabled": cluster.iam_auth,
        "DeletionProtection": cluster.deletion_protection,
        "HttpEndpointEnabled": False,
        "ActivityStreamStatus": "stopped",
        "CrossAccountClone": False,
        "PubliclyAccessible": False if cluster.multi_az else None,
        "HostedZoneId": HOSTED_ZONE,
        "AssociatedRoles": [],
        "ReadReplicaIdentifiers": [],
        **FIXED_MEMBERS,
    }


def _members(service: Service, cluster: Cluster) -> list[Instance]:
    """Return the instances of a new Multi-AZ cluster."""
    family = engine_catalog.family_of(cluster.engine, cluster.version)
    made = [
        Instance(
            f"{cluster.identifier}-instance-{number}",
            cluster.engine,
            cluster.version,
            cluster.instance_class or "",
            cluster.master_user,
            new_resource_id("db"),
            zone,
            default_name(family),
            default_name(family),
            cluster.created,
            cluster=cluster.identifier,
            active_cluster_group=cluster.parameter_group,
            dbname=cluster.dbname,
        )
        for number, zone in enumerate(zones(service.region)[:MEMBERS], 1)
    ]
    for member in made:
        _copy_cluster_settings(member, cluster)
    return made


def _copy_cluster_settings(member: Instance, cluster: Cluster) -> None:
    """Copy the settings of a cluster that its members share to a member."""
    member.version, member.iam_auth, member.backup_days = cluster.version, cluster.iam_auth, cluster.backup_days
    member.encrypted = cluster.encrypted
    member.storage_type, member.iops = cluster.storage_type, cluster.iops
    if cluster.instance_class is not None and cluster.allocated_gib is not None:
        member.instance_class, member.allocated_gib = cluster.instance_class, cluster.allocated_gib


def _set_storage(cluster: Cluster, p: Parameters, current: Cluster | None = None) -> None:
    """Set the instance class and the storage of a cluster.

    Raises:
        Fault: a Multi-AZ DB cluster lacks one of them, an Aurora cluster has one, or a value is not valid.
    """
    if not cluster.multi_az:
        if "DBClusterInstanceClass" in p or "AllocatedStorage" in p:
            message = "DBClusterInstanceClass and AllocatedStorage are for Multi-AZ DB clusters only."
            raise fault("InvalidParameterCombination", message)
        return
    before: Mapping[str, Any] = {}
    if current is not None:
        before = {
            "DBClusterInstanceClass": current.instance_class,
            "AllocatedStorage": current.allocated_gib,
            "StorageType": current.storage_type,
            "Iops": current.iops,
        }
    chosen = {**before, **p}
    for name in ("DBClusterInstanceClass", "AllocatedStorage"):
        if name not in chosen:
            raise fault("InvalidParameterCombination", f"A Multi-AZ DB cluster needs the parameter {name}.")
    if not engine_catalog.instance_class(chosen["DBClusterInstanceClass"]).clusters:
        message = f"The DB instance class {chosen['DBClusterInstanceClass']} is not supported for Multi-AZ DB clusters."
        raise fault("InvalidParameterCombination", message)
    cluster.instance_class = chosen["DBClusterInstanceClass"]
    cluster.storage_type, cluster.allocated_gib, cluster.iops = checked_storage(chosen, default="io1")


def _apply_or_queue(cluster: Cluster, p: Parameters, version: str) -> Parameters:
    """Queue changes for the maintenance window, or apply them with all queued ones; return the parameters to apply."""
    wanted: dict[str, Any] = {}
    if version != cluster.version:
        wanted["EngineVersion"] = version
    if cluster.multi_az:
        wanted |= {name: p[name] for name in ("AllocatedStorage", "Iops", "StorageType") if name in p}
    others = {name: value for name, value in p.items() if name not in wanted}
    if not p.get("ApplyImmediately", False):
        cluster.pending |= wanted
        return others
    wanted = {**cluster.pending, **wanted}
    cluster.pending = {}
    cluster.version = wanted.get("EngineVersion", cluster.version)
    return {**others, **wanted}
