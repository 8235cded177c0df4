"""Creates the records of the first cluster of a sandbox, its parameter group and the entries of its servers."""

from __future__ import annotations

from typing import Final

from rdsrepl.errors import Unsupported
from rdsrepl.sandbox.api import engine_catalog, parameter_catalog
from rdsrepl.sandbox.api.parameter_groups import GroupValue, ParameterGroups, StoredGroup, default_name
from rdsrepl.sandbox.api.records import Cluster, Instance, Records, new_resource_id, now, slot_name, zones
from rdsrepl.sandbox.api.server_settings import AttachedGroups, settings
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.api.types import REGION
from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.state import EndpointState, ServerState, State

INSTANCE_CLASS: Final = "db.m5d.large"
ALLOCATED_GIB: Final = 100
IOPS: Final = 3000


def seed_cluster(home: SandboxDirectory, state: State, name: str, *, standby: bool, default_group: bool) -> State:
    """Write the records of a Multi-AZ cluster; return the state with its servers and endpoints, to be created.

    Args:
        home: the directory of the sandbox, whose API does not run.
        state: a state without servers.
        name: the name of the cluster.
        standby: whether it has a reader.
        default_group: whether it has the family's default parameter group, else one with logical replication on.

    Raises:
        Unsupported: RDS does not have this version of PostgreSQL.
    """
    major = state.version[0]
    if major not in parameter_catalog.MAJORS:
        raise Unsupported(
            f"the sandbox does not support PostgreSQL {major}", hint="use other programs: --postgres-bin DIR"
        )
    store = Store(home.aws_file)
    groups, records = ParameterGroups(store), Records(store)
    family = f"postgres{major}"
    group = default_name(family) if default_group else _make_group(groups, name, family).name
    wanted = settings(groups, AttachedGroups(INSTANCE_CLASS, cluster=group), state.binaries)
    version, created = ".".join(map(str, state.version[:2])), now()
    records.put(
        Cluster(
            name,
            "postgres",
            version,
            state.user,
            new_resource_id("cluster"),
            group,
            created,
            status="available",
            dbname=state.dbname,
            instance_class=INSTANCE_CLASS,
            allocated_gib=ALLOCATED_GIB,
            storage_type="io1",
            iops=IOPS,
        )
    )
    servers: list[ServerState] = []
    for number, zone in enumerate(zones(REGION)[: 2 if standby else 1], 1):
        instance = Instance(
            f"{name}-instance-{number}",
            "postgres",
            version,
            INSTANCE_CLASS,
            state.user,
            new_resource_id("db"),
            zone,
            default_name(family),
            default_name(family),
            created,
            status="available",
            cluster=name,
            active_cluster_group=group,
            dbname=state.dbname,
            allocated_gib=ALLOCATED_GIB,
            storage_type="io1",
            iops=IOPS,
        )
        records.put(instance)
        servers.append(
            ServerState(
                instance.identifier,
                state.bin_dir,
                state.version,
                cluster=name,
                source=servers[0].name if servers else None,
                slot=slot_name(REGION, instance.resource_id),
                settings=wanted,
            )
        )
    for server in servers:
        state = state.with_server(server)
    readers = (EndpointState("reader", name), EndpointState("reader-host", name)) if standby else ()
    members = (EndpointState("instance", server.name) for server in servers)
    return state.with_endpoints(EndpointState("writer", name), *readers, *members)


def _make_group(groups: ParameterGroups, name: str, family: str) -> StoredGroup:
    changes = {"rds.logical_replication": GroupValue("1", "pending-reboot")}
    if "sync_replication_slots" in engine_catalog.defaults(family, "cluster"):
        # RDS synchronizes the slots of such a cluster to its readers without being asked.
        changes["sync_replication_slots"] = changes["hot_standby_feedback"] = GroupValue("1", "immediate")
    return groups.create(StoredGroup(name, "cluster", family, "The sandbox's: logical replication is on", changes))
