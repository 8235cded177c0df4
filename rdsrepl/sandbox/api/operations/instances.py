"""The RDS operations on DB instances: standalone instances, read replicas and members of clusters."""

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
from rdsrepl.sandbox.api.server_controller import Controller
from rdsrepl.sandbox.api.service import Service, describes_all, operation
from rdsrepl.sandbox.api.types import Parameters, Result
from rdsrepl.sandbox.servers.postgres_server import HOST

# Parameters that a member of a Multi-AZ DB cluster gets from its cluster.
_CLUSTER_PARAMETERS: Final = (
    "DBInstanceClass",
    "AllocatedStorage",
    "Iops",
    "StorageType",
    "EngineVersion",
    "MasterUserPassword",
    "DBParameterGroupName",
    "MultiAZ",
)
_REBOOTABLE: Final = ("available", "incompatible-parameters")


@operation("CreateDBInstance")
def create(service: Service, p: Parameters) -> Result:
    """Create a standalone instance, or a member of an Aurora cluster."""
    controller = service.require_controller()
    identifier = check_identifier("DBInstanceIdentifier", p["DBInstanceIdentifier"], MAX_NAME_LENGTH)
    if "DBClusterIdentifier" in p:
        return _create_member(service, controller, identifier, p)
    if p["Engine"] == "aurora-postgresql":
        message = "An instance of aurora-postgresql needs a DB cluster: DBClusterIdentifier."
        raise fault("InvalidParameterCombination", message)
    release, programs = find_release(controller, p["Engine"], p.get("EngineVersion"))
    user, password = master_credentials(p, required=True)
    group = attachable_group(service, "instance", p.get("DBParameterGroupName"), release)
    if "AllocatedStorage" not in p:
        raise fault("InvalidParameterCombination", "An instance needs the parameter AllocatedStorage.")
    kind, size, iops = checked_storage(p, default="gp3")
    check_subnet_group(p)
    multi_az = p.get("MultiAZ", False)
    zone = _zone(service, p)
    instance = Instance(
        identifier,
        release.engine,
        release.version,
        engine_catalog.instance_class(p["DBInstanceClass"]).name,
        user,
        new_resource_id("db"),
        zone,
        group.name,
        group.name,
        now(),
        dbname=p.get("DBName"),
        multi_az=multi_az,
        secondary_zone=_other_zone(service, zone) if multi_az else None,
        allocated_gib=size,
        max_allocated_gib=p.get("MaxAllocatedStorage"),
        storage_type=kind,
        iops=iops,
        deletion_protection=p.get("DeletionProtection", False),
        iam_auth=p.get("EnableIAMDatabaseAuthentication", False),
        public=p.get("PubliclyAccessible", False),
        encrypted=p.get("StorageEncrypted", False),
        backup_days=p.get("BackupRetentionPeriod", 1),
    )
    if p.get("ManageMasterUserPassword"):
        controller.manage_secret(instance, password)
    _save(service, controller, instance)
    controller.create([controller.new_server(instance, programs, source=None)], password)
    return {"DBInstance": instance_result(service, controller.records.get(Instance, identifier))}


@operation("CreateDBInstanceReadReplica")
def create_replica(service: Service, p: Parameters) -> Result:
    """Create a read replica of a standalone instance or of a replica."""
    controller = service.require_controller()
    identifier = check_identifier("DBInstanceIdentifier", p["DBInstanceIdentifier"], MAX_NAME_LENGTH)
    if "SourceDBInstanceIdentifier" not in p:
        message = "SourceDBInstanceIdentifier is required; the sandbox does not support read replicas of clusters."
        raise fault("InvalidParameterCombination", message)
    if "DBParameterGroupName" in p:
        message = "A parameter group can't be specified during Read Replica creation for the following DB engine: "
        raise fault("InvalidParameterCombination", f"{message}postgres")
    with service.store.lock:
        source = controller.records.get_available(Instance, p["SourceDBInstanceIdentifier"])
        if source.cluster is not None:
            message = f"{source.identifier} is a member of a DB cluster and cannot have read replicas."
            raise fault("InvalidDBInstanceStateFault", message)
        if source.backup_days == 0:
            message = f"Automated backups are not enabled for this database instance: {source.identifier}."
            raise fault("InvalidDBInstanceStateFault", message)
        if source.secret_arn is not None:
            message = (
                f"Creating read replicas for source instance with engine {source.engine} where "
                "ManageMasterUserPassword is enabled is not supported."
            )
            raise fault("InvalidParameterValue", message)
        release = same_major(source.engine, source.version, None)
        group = attachable_group(service, "instance", source.parameter_group, release)
        zone = _zone(service, p) if "AvailabilityZone" in p else _other_zone(service, source.zone)
        instance = Instance(
            identifier,
            source.engine,
            source.version,
            engine_catalog.instance_class(p.get("DBInstanceClass", source.instance_class)).name,
            source.master_user,
            new_resource_id("db"),
            zone,
            group.name,
            group.name,
            now(),
            source=source.identifier,
            dbname=source.dbname,
            multi_az=p.get("MultiAZ", False),
            allocated_gib=p.get("AllocatedStorage", source.allocated_gib),
            storage_type=p.get("StorageType", source.storage_type),
            iops=p.get("Iops", source.iops),
            deletion_protection=p.get("DeletionProtection", False),
            iam_auth=p.get("EnableIAMDatabaseAuthentication", source.iam_auth),
            backup_days=0,
        )
        _save(service, controller, instance)
    source_server = controller.actions.state().server(source.identifier)
    assert source_server is not None
    controller.create([controller.new_server(instance, source_server.binaries, source=source.identifier)])
    return {"DBInstance": instance_result(service, controller.records.get(Instance, identifier))}


@operation("DescribeDBInstances")
def describe_instances(service: Service, p: Parameters) -> Result:
    """Return instances."""

    def fields(shown: Result) -> Mapping[str, str | Collection[str]]:
        cluster = shown["DBClusterIdentifier"]
        return {
            "db-instance-id": (shown["DBInstanceIdentifier"], shown["DBInstanceArn"]),
            "db-cluster-id": () if cluster is None else (cluster, service.arn("cluster", cluster)),
            "dbi-resource-id": shown["DbiResourceId"],
            "engine": shown["Engine"],
        }

    page, marker = describe(service, "instance", p, describe_all(service), fields)
    return {"DBInstances": page, "Marker": marker}


@describes_all("instance")
def describe_all(service: Service) -> dict[str, Result]:
    """Return the description of every instance, by identifier."""
    return {record.identifier: instance_result(service, record) for record in Records(service.store).all(Instance)}


@operation("ModifyDBInstance")
def modify(service: Service, p: Parameters) -> Result:
    """Modify an instance; changes that need a restart are applied at once only with ``ApplyImmediately``."""
    controller = service.require_controller()
    records = controller.records
    if "NewDBInstanceIdentifier" in p:
        raise fault("InvalidParameterCombination", "The sandbox does not rename instances.")
    with service.store.lock:
        instance = records.get_available(Instance, p["DBInstanceIdentifier"])
        cluster = records.find(Cluster, instance.cluster) if instance.cluster else None
        if (
            cluster is not None
            and cluster.multi_az
            and (refused := [name for name in _CLUSTER_PARAMETERS if name in p])
        ):
            message = (
                f"{refused[0]} cannot be changed on {instance.identifier}: it is a member of the Multi-AZ DB cluster "
                f"{cluster.identifier}. Modify the DB cluster instead."
            )
            raise fault("InvalidParameterCombination", message)
        release = same_major(instance.engine, instance.version, p.get("EngineVersion"))
        wanted = p.get("DBParameterGroupName")
        group = attachable_group(service, "instance", wanted, release) if wanted else None
        _, password = master_credentials(p, required=False)
        if group is not None and group.name != instance.parameter_group:
            # The name changes at once and the values after a reboot, with and without ApplyImmediately.
            instance.parameter_group, instance.parameter_status = group.name, "applying"
        instance.deletion_protection = p.get("DeletionProtection", instance.deletion_protection)
        instance.iam_auth = p.get("EnableIAMDatabaseAuthentication", instance.iam_auth)
        instance.backup_days = p.get("BackupRetentionPeriod", instance.backup_days)
        instance.max_allocated_gib = p.get("MaxAllocatedStorage", instance.max_allocated_gib)
        instance.promotion_tier = p.get("PromotionTier", instance.promotion_tier)
        instance.certificate = p.get("CACertificateIdentifier", instance.certificate)
        instance.public = p.get("PubliclyAccessible", instance.public)
        has_new_class = _change_size(service, instance, p, release.version)
        update_secret(controller, instance, p, password)
        records.put(instance)
    identifier = instance.identifier

    def job() -> None:
        if password:
            controller.set_password(identifier, instance.master_user, password)
        with records.edit(Instance, identifier) as one:
            if one.parameter_status == "applying":
                one.parameter_status = "pending-reboot"
        if has_new_class:
            controller.actions.reboot(identifier)

    controller.run_in_background(job, "modifying", None, [identifier])
    return {"DBInstance": instance_result(service, records.get(Instance, identifier))}


@operation("RebootDBInstance")
def reboot(service: Service, p: Parameters) -> Result:
    """Restart an instance with the values of its groups; with a failover, move it to its other zone instead."""
    controller = service.require_controller()
    with service.store.lock:
        instance = controller.records.get(Instance, p["DBInstanceIdentifier"])
        cluster = controller.records.find(Cluster, instance.cluster) if instance.cluster else None
        if instance.status not in _REBOOTABLE:
            raise invalid_state(instance)
        if cluster is not None and cluster.status != "available":
            message = f"Cluster {cluster.identifier} is not in available state: its status is {cluster.status}."
            raise fault("InvalidDBInstanceStateFault", message)
        if p.get("ForceFailover"):
            if not instance.multi_az:
                message = "Reboot Instance with Failover cannot be used for DB Instances that are not Multi-AZ."
                raise fault("InvalidParameterCombination", message)
            instance.zone, instance.secondary_zone = instance.secondary_zone or instance.zone, instance.zone
            controller.records.put(instance)
            controller.records.add_event("RDS-EVENT-0049", instance.identifier)
        controller.reboot([instance.identifier], applies=not p.get("ForceFailover", False))
    return {"DBInstance": instance_result(service, controller.records.get(Instance, instance.identifier))}


@operation("PromoteReadReplica")
def promote(service: Service, p: Parameters) -> Result:
    """Promote a read replica to a standalone instance."""
    controller = service.require_controller()
    with service.store.lock:
        instance = controller.records.get_available(Instance, p["DBInstanceIdentifier"])
        if instance.source is None:
            raise fault("InvalidDBInstanceStateFault", f"{instance.identifier} is not a read replica.")
        instance.backup_days = p.get("BackupRetentionPeriod", 1)
        controller.records.put(instance)
        controller.promote(instance.identifier)
    return {"DBInstance": instance_result(service, controller.records.get(Instance, instance.identifier))}


@operation("DeleteDBInstance")
def delete(service: Service, p: Parameters) -> Result:
    """Delete an instance; its read replicas are promoted."""
    controller = service.require_controller()
    records = controller.records
    with service.store.lock:
        instance = records.get(Instance, p["DBInstanceIdentifier"])
        cluster = records.find(Cluster, instance.cluster) if instance.cluster else None
        if instance.status in ("creating", "deleting", "modifying", "rebooting"):
            raise invalid_state(instance)
        if cluster is not None and cluster.multi_az:
            message = f"{instance.identifier} is a member of a Multi-AZ DB cluster; delete the cluster instead."
            raise fault("InvalidDBInstanceStateFault", message)
        if instance.deletion_protection:
            message = "Cannot delete protected DB Instance, please disable deletion protection and try again."
            raise fault("InvalidParameterCombination", message)
        snapshot = None
        if cluster is None and instance.source is None:
            snapshot = create_final_snapshot(records, p, instance)
        elif "FinalDBSnapshotIdentifier" in p:
            what = "a member of a DB cluster" if cluster is not None else "a read replica"
            message = f"FinalDBSnapshotIdentifier can not be specified when deleting {what}."
            raise fault("InvalidParameterCombination", message)
        answer = instance_result(service, instance) | {"DBInstanceStatus": "deleting"}
        controller.manage_secret(instance, None)
        records.put(instance)
        controller.delete(instance.identifier, snapshot)
    return {"DBInstance": answer}


def instance_result(service: Service, instance: Instance) -> Result:
    """Return an instance as RDS describes it."""
    records = Records(service.store)
    state = service.controller.actions.state() if service.controller is not None else None
    port = state.port("instance", instance.identifier) if state is not None else None
    cluster = records.find(Cluster, instance.cluster) if instance.cluster else None
    status = shown_group_status(service, instance.parameter_status)
    return {
        "DBInstanceIdentifier": instance.identifier,
        "DBInstanceArn": service.arn("db", instance.identifier),
        "DbiResourceId": instance.resource_id,
        "DBInstanceClass": instance.instance_class,
        "DBInstanceStatus": instance.status,
        "Engine": instance.engine,
        "EngineVersion": instance.version,
        "MasterUsername": instance.master_user,
        "MasterUserSecret": secret_result(instance),
        "DBName": instance.dbname,
        "Endpoint": {"Address": HOST, "Port": port, "HostedZoneId": HOSTED_ZONE} if port else None,
        "DbInstancePort": 0,
        "AllocatedStorage": instance.allocated_gib,
        "MaxAllocatedStorage": instance.max_allocated_gib,
        "StorageType": instance.storage_type,
        "Iops": instance.iops,
        "InstanceCreateTime": instance.created,
        "AvailabilityZone": instance.zone,
        "MultiAZ": instance.multi_az,
        "SecondaryAvailabilityZone": instance.secondary_zone,
        "DBParameterGroups": [{"DBParameterGroupName": instance.parameter_group, "ParameterApplyStatus": status}],
        "DBSubnetGroup": {
            "DBSubnetGroupName": SUBNET_GROUP,
            "DBSubnetGroupDescription": SUBNET_GROUP,
            "SubnetGroupStatus": "Complete",
        },
        "DBClusterIdentifier": cluster.identifier if cluster is not None else None,
        "PromotionTier": instance.promotion_tier if cluster is not None else None,
        "ReadReplicaSourceDBInstanceIdentifier": instance.source,
        "ReadReplicaDBInstanceIdentifiers": [one.identifier for one in records.replicas(instance.identifier)],
        "PendingModifiedValues": instance.pending,
        "BackupRetentionPeriod": instance.backup_days,
        "LatestRestorableTime": now() if instance.backup_days else None,
        "LicenseModel": "postgresql-license",
        "PubliclyAccessible": instance.public,
        "StorageEncrypted": instance.encrypted,
        "CACertificateIdentifier": instance.certificate,
        "CertificateDetails": {"CAIdentifier": instance.certificate},
        "DeletionProtection": instance.deletion_protection,
        "IAMDatabaseAuthenticationEnabled": instance.iam_auth,
        "PerformanceInsightsEnabled": False,
        "MonitoringInterval": 0,
        "BackupTarget": "region",
        "DedicatedLogVolume": False,
        "DBSecurityGroups": [],
        "OptionGroupMemberships": [],
        **FIXED_MEMBERS,
    }


def _create_member(service: Service, controller: Controller, identifier: str, p: Parameters) -> Result:
    """Create a member of an Aurora cluster; the first member is the writer."""
    with service.store.lock:
        cluster = controller.records.get(Cluster, p["DBClusterIdentifier"])
        if cluster.status not in ("available", "creating"):
            message = f"Cluster {cluster.identifier} is not in available state: its status is {cluster.status}."
            raise fault("InvalidDBClusterStateFault", message)
        if cluster.multi_az:
            message = "Members cannot be added to a Multi-AZ DB cluster."
            raise fault("InvalidParameterCombination", message)
        if p["Engine"] != cluster.engine:
            message = f"The engine of a member must be that of its cluster: {cluster.engine}"
            raise fault("InvalidParameterCombination", message)
        if forbidden := {"MasterUsername", "MasterUserPassword", "AllocatedStorage", "DBName"} & p.keys():
            message = f"The requested DB Instance will be a member of a DB Cluster. Set {min(forbidden)} on that."
            raise fault("InvalidParameterCombination", message)
        release = same_major(cluster.engine, cluster.version, p.get("EngineVersion"))
        _, programs = find_release(controller, cluster.engine, cluster.version)
        group = attachable_group(service, "instance", p.get("DBParameterGroupName"), release)
        if not engine_catalog.instance_class(p["DBInstanceClass"]).aurora:
            message = f"RDS does not support creating an Aurora instance of the class {p['DBInstanceClass']}."
            raise fault("InvalidParameterCombination", message)
        members = controller.actions.state().members(cluster.identifier)
        if members and not members[0].port:
            message = f"The first instance of {cluster.identifier} is still being created."
            raise fault("InvalidDBClusterStateFault", message)
        taken = {member.zone for member in controller.records.members(cluster.identifier)}
        free = [zone for zone in zones(service.region) if zone not in taken] or zones(service.region)
        instance = Instance(
            identifier,
            cluster.engine,
            cluster.version,
            p["DBInstanceClass"],
            cluster.master_user,
            new_resource_id("db"),
            p.get("AvailabilityZone") or free[0],
            group.name,
            group.name,
            now(),
            cluster=cluster.identifier,
            active_cluster_group=cluster.parameter_group,
            promotion_tier=p.get("PromotionTier", 1),
            dbname=cluster.dbname,
            allocated_gib=1,
            storage_type="aurora",
            iam_auth=cluster.iam_auth,
            encrypted=cluster.encrypted,
            public=p.get("PubliclyAccessible", False),
        )
        _save(service, controller, instance)
        made = controller.new_server(instance, programs, source=members[0].name if members else None)
        controller.create([made], cluster.password or "")
    return {"DBInstance": instance_result(service, controller.records.get(Instance, identifier))}


def _save(service: Service, controller: Controller, instance: Instance) -> None:
    """Save the record of a new instance.

    Raises:
        Fault: its identifier is in use, or the quota is reached.
    """
    with service.store.lock:
        controller.records.check_unused(Instance, instance.identifier)
        check_quota(controller.records, 1)
        controller.records.put(instance)


def _change_size(service: Service, instance: Instance, p: Parameters, version: str) -> bool:
    """Apply or queue changes of class, storage, version and zones; return whether the server has to restart.

    Raises:
        Fault: the class or the storage is not valid.
    """
    wanted: dict[str, Any] = {}
    if (name := p.get("DBInstanceClass", instance.instance_class)) != instance.instance_class:
        wanted["DBInstanceClass"] = engine_catalog.instance_class(name).name
    if instance.cluster is None and {"AllocatedStorage", "StorageType", "Iops"} & p.keys():
        current = {
            "AllocatedStorage": instance.allocated_gib,
            "StorageType": instance.storage_type,
            "Iops": instance.iops,
        }
        kind, size, iops = checked_storage({**current, **p}, default="gp3")
        if size < instance.allocated_gib:
            raise fault("InvalidParameterCombination", "Requested storage size is smaller than the current one.")
        chosen = {"AllocatedStorage": size, "StorageType": kind, "Iops": iops}
        wanted |= {key: value for key, value in chosen.items() if value is not None and value != current[key]}
    if version != instance.version:
        wanted["EngineVersion"] = version
    if p.get("MultiAZ", instance.multi_az) != instance.multi_az:
        wanted["MultiAZ"] = p["MultiAZ"]
    if not p.get("ApplyImmediately", False):
        instance.pending |= wanted
        return False
    wanted = {**instance.pending, **wanted}
    instance.pending = {}
    instance.instance_class = wanted.get("DBInstanceClass", instance.instance_class)
    instance.allocated_gib = wanted.get("AllocatedStorage", instance.allocated_gib)
    instance.storage_type = wanted.get("StorageType", instance.storage_type)
    instance.iops = wanted.get("Iops", instance.iops)
    instance.version = wanted.get("EngineVersion", instance.version)
    instance.multi_az = wanted.get("MultiAZ", instance.multi_az)
    instance.secondary_zone = _other_zone(service, instance.zone) if instance.multi_az else None
    return "DBInstanceClass" in wanted


def _zone(service: Service, p: Parameters) -> str:
    known = zones(service.region)
    zone = p.get("AvailabilityZone", known[0])
    if zone not in known:
        raise fault("InvalidParameterValue", f"Invalid availability zone: {zone}")
    return str(zone)


def _other_zone(service: Service, zone: str) -> str:
    return next(other for other in zones(service.region) if other != zone)
