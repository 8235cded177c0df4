"""RDS's operations on DB clusters: Multi-AZ DB clusters, and Aurora's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from rdsrepl.sandbox.api import engine_catalog, other_engines, paging, secrets
from rdsrepl.sandbox.api.controller import Fleet, fleet_of
from rdsrepl.sandbox.api.engine_catalog import EngineVersion
from rdsrepl.sandbox.api.faults import Fault, fault
from rdsrepl.sandbox.api.parameter_groups import Group, default_name
from rdsrepl.sandbox.api.records import (
    Cluster,
    Instance,
    ParameterStatus,
    Records,
    Snapshot,
    check_identifier,
    new_resource_id,
    now,
    slot_name,
    zones,
)
from rdsrepl.sandbox.api.server_settings import settings
from rdsrepl.sandbox.api.service import Kind, Parameters, Result, Service, operation, view
from rdsrepl.sandbox.servers import binaries
from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.servers.postgres_server import HOST, READER_HOST
from rdsrepl.sandbox.state import ServerState

SUBNET_GROUP: Final = "default"
MEMBERS: Final = 3
MOST_CLUSTERS: Final = 40
MOST_INSTANCES: Final = 40
_LONGEST: Final = 63
_LONGEST_MULTI_AZ: Final = 52
_RESERVED_USERS: Final = (
    *("rdsadmin", "rdsrepladmin", "rds_superuser", "rds_replication", "rds_password", "rds_iam"),
    *("public", "none"),
)
_FILTERS: Final = ("db-cluster-id", "db-cluster-resource-id", "engine")


@operation("CreateDBCluster", needs_servers=True)
def create(service: Service, p: Parameters) -> Result:
    """Make a cluster: a Multi-AZ one with its members, or Aurora's without any yet."""
    fleet = fleet_of(service)
    release, programs = find_release(fleet, p["Engine"], p.get("EngineVersion"))
    multi_az = release.engine == "postgres"
    identifier = check_identifier(
        "DBClusterIdentifier", p["DBClusterIdentifier"], _LONGEST_MULTI_AZ if multi_az else _LONGEST
    )
    user, password = credentials(p, required=True)
    group = attachable(service, "cluster", p.get("DBClusterParameterGroupName"), release)
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
    _choose_storage(cluster, p)
    with service.store.lock:
        fleet.records.refuse(Cluster, identifier)
        if len(fleet.records.all(Cluster)) >= MOST_CLUSTERS:
            raise fault("DBClusterQuotaExceededFault", "The quota of DB clusters is reached.")
        members = _members(service, cluster) if multi_az else []
        for member in members:
            fleet.records.refuse(Instance, member.identifier)
        check_quota(fleet.records, len(members))
        if p.get("ManageMasterUserPassword"):
            fleet.manage_secret(cluster, password)
        elif not multi_az:
            cluster.password = password  # its first instance needs it
        fleet.records.put(cluster)
        for member in members:
            fleet.records.put(member)
    fleet.listen(identifier)
    if multi_az:
        entries: list[ServerState] = []
        for member in members:
            entries.append(entry(fleet, member, programs, source=entries[0].name if entries else None))
        fleet.create(entries, password, cluster=identifier)
    else:
        fleet.settle(identifier, (), lambda: None, status="creating")
    return {"DBCluster": described(service, fleet.records.get(Cluster, identifier))}


@operation("DescribeDBClusters")
def describe(service: Service, p: Parameters) -> Result:
    """Answer with clusters."""
    records = Records(service.store)
    name = p.get("DBClusterIdentifier")
    others = other_engines.described(service, "cluster")
    known = {*every(service), *service.consistency.known("cluster"), *others}
    names = [plain_name(name)] if name else sorted(known)
    chosen = {}
    for identifier in names:
        record = records.find(Cluster, identifier)
        fresh = None if record is None else described(service, record)
        shown = others.get(identifier) or service.consistency.view("cluster", identifier, fresh)
        if shown is None:
            if name:
                raise fault("DBClusterNotFoundFault", f"DBCluster {name} not found.")
            continue
        own = (shown["DBClusterIdentifier"], shown["DBClusterArn"])
        fields = dict(zip(_FILTERS, (own, shown["DbClusterResourceId"], shown["Engine"]), strict=True))
        if paging.passes(p, fields):
            chosen[identifier] = shown
    page, marker = paging.page(chosen, p)
    return {"DBClusters": page, "Marker": marker}


@view("cluster")
def every(service: Service) -> dict[str, Result]:
    """Return every cluster as it is, described."""
    return {cluster.identifier: described(service, cluster) for cluster in Records(service.store).all(Cluster)}


def plain_name(name: str) -> str:
    """Return an identifier, of an ARN the one in it, as it is kept."""
    return (name.rpartition(":")[2] if name.startswith("arn:") else name).lower()


@operation("ModifyDBCluster", needs_servers=True)
def modify(service: Service, p: Parameters) -> Result:
    """Change a cluster."""
    fleet = fleet_of(service)
    records = fleet.records
    if "NewDBClusterIdentifier" in p:
        raise fault("InvalidParameterCombination", "The sandbox does not rename clusters.")
    with service.store.lock:
        cluster = available(records, p["DBClusterIdentifier"])
        release = same_major(cluster.engine, cluster.version, p.get("EngineVersion"))
        wanted = p.get("DBClusterParameterGroupName")
        group = attachable(service, "cluster", wanted, release) if wanted else None
        regrouped = group is not None and group.name != cluster.parameter_group
        _, password = credentials(p, required=False)
        if not cluster.multi_az and {"DBClusterInstanceClass", "Iops", "AllocatedStorage"} & p.keys():
            raise fault(
                "InvalidParameterCombination", "Aurora clusters have no instance class or storage of their own."
            )
        reclassed = p.get("DBClusterInstanceClass", cluster.instance_class) != cluster.instance_class
        wanted_storage = _queued(cluster, p, release.version)
        cluster.parameter_group = group.name if group is not None else cluster.parameter_group
        cluster.deletion_protection = p.get("DeletionProtection", cluster.deletion_protection)
        cluster.iam_auth = p.get("EnableIAMDatabaseAuthentication", cluster.iam_auth)
        cluster.backup_days = p.get("BackupRetentionPeriod", cluster.backup_days)
        if cluster.multi_az:
            _choose_storage(cluster, wanted_storage, current=cluster)
        if password:
            fleet.manage_secret(cluster, password if _managed(p, cluster) else None)
        elif p.get("ManageMasterUserPassword") is False:
            fleet.manage_secret(cluster, None)
        records.put(cluster)
        for member in records.members(cluster.identifier):
            _follow(member, cluster)
            if regrouped:
                member.cluster_status = "applying"
            records.put(member)

    def job() -> None:
        writer = next((entry.name for entry in fleet.state().members(cluster.identifier)), None)
        if password and writer is not None:
            fleet.set_password(writer, cluster.master_user, password)
        for member in records.members(cluster.identifier):
            if member.cluster_status == "applying":
                fleet.regroup(member.identifier)
            if reclassed:
                fleet.restart(member.identifier)

    fleet.settle(cluster.identifier, (), job)
    return {"DBCluster": described(service, records.get(Cluster, cluster.identifier))}


@operation("RebootDBCluster", needs_servers=True)
def reboot(service: Service, p: Parameters) -> Result:
    """Restart a Multi-AZ cluster's writer."""
    fleet = fleet_of(service)
    with service.store.lock:
        cluster = available(fleet.records, p["DBClusterIdentifier"])
        if not cluster.multi_az:
            message = "RebootDBCluster is for Multi-AZ DB clusters; reboot the instances of an Aurora cluster instead."
            raise fault("InvalidParameterCombination", message)
        writer = fleet.state().members(cluster.identifier)[0].name
        # Its own status says so, the writer's does not.
        fleet.reboot([writer], cluster=cluster.identifier)
    return {"DBCluster": described(service, fleet.records.get(Cluster, cluster.identifier))}


@operation("FailoverDBCluster", needs_servers=True)
def fail_over(service: Service, p: Parameters) -> Result:
    """Make a reader the writer: the one that is named, else the one of the lowest promotion tier."""
    fleet = fleet_of(service)
    with service.store.lock:
        cluster = available(fleet.records, p["DBClusterIdentifier"])
        records = {member.identifier: member for member in fleet.records.members(cluster.identifier)}
        members = [entry.name for entry in fleet.state().members(cluster.identifier)]
        ready = [name for name in members[1:] if records[name].status == "available"]
        target = p.get("TargetDBInstanceIdentifier", "").lower()
        if target and target not in records:
            raise fault("InvalidParameterValue", f"{target} is not a member of the DB cluster {cluster.identifier}.")
        if target == members[0]:
            raise fault("InvalidDBInstanceStateFault", f"{target} is the writer of {cluster.identifier} already.")
        if not ready or (target and target not in ready):
            message = f"The DB cluster {cluster.identifier} has no reader that is available to fail over to."
            raise fault("InvalidDBClusterStateFault", message)
        fleet.fail_over(cluster.identifier, target or min(ready, key=lambda name: records[name].promotion_tier))
    return {"DBCluster": described(service, fleet.records.get(Cluster, cluster.identifier))}


@operation("DeleteDBCluster", needs_servers=True)
def delete(service: Service, p: Parameters) -> Result:
    """Remove a cluster, a Multi-AZ one with its members."""
    fleet = fleet_of(service)
    records = fleet.records
    with service.store.lock:
        cluster = records.get(Cluster, p["DBClusterIdentifier"])
        if cluster.status not in ("available", "failed"):
            raise _state(cluster)
        if cluster.deletion_protection:
            message = "Cannot delete protected Cluster, please disable deletion protection and try again."
            raise fault("InvalidParameterCombination", message)
        members = [one for one in records.members(cluster.identifier) if one.status != "deleting"]
        if members and not cluster.multi_az:
            message = "Cluster cannot be deleted, it still contains DB instances in non-deleting state."
            raise fault("InvalidDBClusterStateFault", message)
        snapshot = final_snapshot(records, p, cluster)
        answer = described(service, cluster) | {"Status": "deleting"}
        fleet.manage_secret(cluster, None)
        records.put(cluster)
        fleet.delete_cluster(cluster.identifier, snapshot)
    return {"DBCluster": answer}


def described(service: Service, cluster: Cluster) -> Result:
    """Return a cluster as RDS describes it."""
    fleet = service.fleet
    records = Records(service.store)
    members = {member.identifier: member for member in records.members(cluster.identifier)}
    state = fleet.state() if isinstance(fleet, Fleet) else None
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
        "MasterUserSecret": secret(cluster),
        "Endpoint": HOST if port else None,
        "ReaderEndpoint": (READER_HOST if own_host else HOST) if has_reader else None,
        "Port": port or engine_catalog.PORT,
        "MultiAZ": cluster.multi_az or len({member.zone for member in members.values()}) > 1,
        "AvailabilityZones": known,
        "DBClusterParameterGroup": cluster.parameter_group,
        "DBSubnetGroup": SUBNET_GROUP,
        "DBClusterMembers": [
            {
                "DBInstanceIdentifier": entry.name,
                "IsClusterWriter": entry.source is None,
                "DBClusterParameterGroupStatus": group_status(service, members[entry.name].cluster_status),
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
        "PreferredBackupWindow": "03:00-03:30",
        "PreferredMaintenanceWindow": "sun:05:00-sun:05:30",
        "ClusterCreateTime": cluster.created,
        "EarliestRestorableTime": cluster.created,
        "LatestRestorableTime": now(),
        "StorageEncrypted": cluster.encrypted,
        "IAMDatabaseAuthenticationEnabled": cluster.iam_auth,
        "DeletionProtection": cluster.deletion_protection,
        "HttpEndpointEnabled": False,
        "ActivityStreamStatus": "stopped",
        "CopyTagsToSnapshot": False,
        "CrossAccountClone": False,
        "AutoMinorVersionUpgrade": True,
        "PubliclyAccessible": False if cluster.multi_az else None,
        "NetworkType": "IPV4",
        "HostedZoneId": "Z2R2ITUGPM61AM",
        "VpcSecurityGroups": [{"VpcSecurityGroupId": "sg-0a1b2c3d4e5f60718", "Status": "active"}],
        "AssociatedRoles": [],
        "ReadReplicaIdentifiers": [],
        "TagList": [],
    }


def group_status(service: Service, status: ParameterStatus) -> ParameterStatus:
    """Return the status of a parameter group on a server as it is described."""
    hidden = service.consistency.delays.hide_pending and status == "pending-reboot"
    return "in-sync" if hidden else status


def available(records: Records, identifier: str) -> Cluster:
    """Return a cluster that can be changed now.

    Raises:
        Fault: there is none, or its status is another.
    """
    cluster = records.get(Cluster, identifier)
    if cluster.status != "available":
        raise _state(cluster)
    return cluster


def find_release(fleet: Fleet, engine: str, version: str | None) -> tuple[EngineVersion, Binaries]:
    """Return a release of an engine, and the programs that stand for it.

    Raises:
        Fault: there is no such engine or version, or none of its programs is installed.
    """
    state = fleet.state()
    own = Binaries(Path(state.bin_dir), state.version)
    release = engine_catalog.find(engine, version or str(own.major))
    for found in (own, *binaries.machine(), *binaries.wheel()):
        if found.major == release.major:
            if engine == "postgres" and "." not in (version or ""):
                release = engine_catalog.find(engine, ".".join(map(str, found.version[:2])))
            return release, found
    raise fault("InvalidParameterCombination", f"Cannot find version {version} for {engine}")


def same_major(engine: str, current: str, wanted: str | None) -> EngineVersion:
    """Return the release that a change of version leads to; the sandbox's programs stay the same.

    Raises:
        Fault: there is no such version, or it is of another major one.
    """
    release = engine_catalog.find(engine, wanted or current)
    if release.major != int(current.partition(".")[0]):
        message = f"Cannot upgrade {engine} from {current} to {release.version}: the sandbox has no major upgrades"
        raise fault("InvalidParameterCombination", message)
    return release


def attachable(service: Service, kind: Kind, name: str | None, release: EngineVersion) -> Group:
    """Return the group of a name, or the default one, when a release takes it.

    Raises:
        Fault: there is none, or its family is another's.
    """
    wanted = name or default_name(release.family)
    group = service.groups.exists(kind, wanted)
    if group is None:
        missing = "DBClusterParameterGroupNotFoundFault" if kind == "cluster" else "DBParameterGroupNotFoundFault"
        raise fault(missing, f"DB{'Cluster' if kind == 'cluster' else ''}ParameterGroup not found: {wanted}")
    if group.family != release.family:
        raise fault(
            "InvalidParameterCombination",
            f"The Parameter Group {group.name} with DBParameterGroupFamily {group.family} cannot be used for this "
            f"{kind}. Please use a Parameter Group with DBParameterGroupFamily {release.family}",
        )
    return group


def credentials(p: Parameters, *, required: bool) -> tuple[str, str]:
    """Return the master user and a password: the given one, or a new one where RDS is to manage it, or none.

    Raises:
        Fault: they are missing, not allowed, or exclude each other.
    """
    user, password, managed = (
        p.get("MasterUsername", ""),
        p.get("MasterUserPassword"),
        p.get("ManageMasterUserPassword"),
    )
    if required and not user:
        raise fault("InvalidParameterValue", "The parameter MasterUsername must be provided and must not be blank.")
    if user and (not user[0].isalpha() or not user.replace("_", "a").isalnum() or len(user) > 63):
        raise fault("InvalidParameterValue", f"The parameter MasterUsername is not a valid identifier: {user}")
    if user.lower() in _RESERVED_USERS or user.lower().startswith("pg_"):
        message = f"MasterUsername {user} cannot be used as it is a reserved word used by the engine"
        raise fault("InvalidParameterValue", message)
    if password is not None and managed:
        message = "You can't specify MasterUserPassword when ManageMasterUserPassword is turned on."
        raise fault("InvalidParameterCombination", message)
    if password is not None and (len(password) < 8 or len(password) > 128 or set(password) & set('/@" ')):
        message = (
            "The parameter MasterUserPassword is not a valid password: 8 to 128 printable ASCII characters besides "
            "'/', '@', '\"', ' '."
        )
        raise fault("InvalidParameterValue", message)
    if managed:
        return user, secrets.generate()
    if required and password is None:
        message = "The parameter MasterUserPassword must be provided and must not be blank."
        raise fault("InvalidParameterValue", message)
    return user, password or ""


def check_subnet_group(p: Parameters) -> None:
    """Refuse every subnet group but the default one: the sandbox has no networks.

    Raises:
        Fault: the request names another subnet group.
    """
    name = p.get("DBSubnetGroupName", SUBNET_GROUP)
    if name.lower() != SUBNET_GROUP:
        raise fault("DBSubnetGroupNotFoundFault", f"DBSubnetGroup {name} not found.")


def check_quota(records: Records, more: int) -> None:
    """Refuse more instances than an account may have.

    Raises:
        Fault: it would have too many.
    """
    if len(records.all(Instance)) + more > MOST_INSTANCES:
        raise fault("InstanceQuotaExceededFault", "DB Instance quota exceeded")


def entry(fleet: Fleet, instance: Instance, programs: Binaries, *, source: str | None) -> ServerState:
    """Return the state's entry of a server that is to be made for an instance."""
    return ServerState(
        instance.identifier,
        str(programs.bin_dir),
        programs.version,
        cluster=instance.cluster,
        source=source,
        slot=slot_name(fleet.region, instance.resource_id),
        settings=settings(fleet.groups, fleet.attached(instance), programs),
    )


def secret(record: Cluster | Instance) -> Result | None:
    """Return the master secret as RDS describes it."""
    return None if record.secret_arn is None else {"SecretArn": record.secret_arn, "SecretStatus": "active"}


def final_snapshot(records: Records, p: Parameters, record: Cluster | Instance) -> Snapshot | None:
    """Return the snapshot that a deletion is to leave, kept as ``creating``; None where none is wanted.

    Raises:
        Fault: it was not said, said twice, or its name is not allowed or taken.
    """
    kind: Literal["cluster", "instance"] = "cluster" if isinstance(record, Cluster) else "instance"
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
    snapshot = snapshot_of(records, record, identifier)
    records.refuse_snapshot(kind, identifier)
    records.put(snapshot)
    return snapshot


def snapshot_of(records: Records, record: Cluster | Instance, identifier: str) -> Snapshot:
    """Return a snapshot of a cluster or an instance, not kept yet."""
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
        _follow(member, cluster)
    return made


def _follow(member: Instance, cluster: Cluster) -> None:
    """Give a member what it has of its cluster."""
    member.version, member.iam_auth, member.backup_days = cluster.version, cluster.iam_auth, cluster.backup_days
    member.encrypted = cluster.encrypted
    member.storage_type, member.iops = cluster.storage_type, cluster.iops
    if cluster.instance_class is not None and cluster.allocated_gib is not None:
        member.instance_class, member.allocated_gib = cluster.instance_class, cluster.allocated_gib


def _choose_storage(cluster: Cluster, p: Parameters, current: Cluster | None = None) -> None:
    """Take over instance class and storage.

    Raises:
        Fault: a Multi-AZ cluster lacks one of them, an Aurora cluster has one, or it cannot be had.
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
    cluster.storage_type, cluster.allocated_gib, cluster.iops = storage(chosen, default="io1")


def _queued(cluster: Cluster, p: Parameters, version: str) -> Parameters:
    """Queue what waits for the maintenance window, or take over all that is queued; return what holds from now on."""
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


def storage(p: Mapping[str, Any], *, default: str) -> tuple[str, int, int | None]:
    """Return storage type, size in GiB and IOPS.

    Raises:
        Fault: they cannot be had together.
    """
    kind, size, iops = p.get("StorageType") or default, p["AllocatedStorage"], p.get("Iops")
    if kind not in ("gp2", "gp3", "io1", "io2"):
        raise fault("InvalidParameterValue", f"Invalid storage type: {kind}")
    least = 100 if kind in ("io1", "io2") else 20
    if not least <= size <= 65536:
        raise fault("InvalidParameterValue", f"Invalid storage size for {kind}: {size} GiB; {least} to 65536 it can be")
    if kind in ("io1", "io2") and iops is None:
        raise fault("InvalidParameterCombination", f"You must specify an IOPS value for storage type {kind}.")
    return kind, size, iops


def _managed(p: Parameters, cluster: Cluster) -> bool:
    return bool(p.get("ManageMasterUserPassword", cluster.secret_arn is not None))


def _state(cluster: Cluster) -> Fault:
    return fault(
        "InvalidDBClusterStateFault",
        f"Cluster {cluster.identifier} is not in available state: its status is {cluster.status}.",
    )
