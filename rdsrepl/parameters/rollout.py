"""Plan in which order servers get a parameter group and are rebooted, one at a time.

Five parameters size shared memory, and a hot standby must never have less than its primary (manual, hot standby,
"Administrator's Overview"). They are raised on the standbys first, and lowered on the primary first. Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rdsrepl.aws import clusters, instances, pending_modifications, reboots
from rdsrepl.aws.clusters import Cluster
from rdsrepl.aws.instances import Instance
from rdsrepl.aws.reboots import RestartProbe
from rdsrepl.errors import Refused
from rdsrepl.plan import Plan, Step
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted

SHARED_MEMORY: Final = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)

Values = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class MemoryChanges:
    """Which of the five parameters are raised, and which are lowered."""

    raised: tuple[str, ...]
    lowered: tuple[str, ...]

    def writer_first(self, cluster: Cluster | None) -> bool:
        """Return whether the primary is rebooted before its standbys.

        On Aurora it is, unless a parameter is raised (user guide, "Setting up logical replication").
        """
        return bool(self.lowered) or (cluster is not None and cluster.kind == "aurora" and not self.raised)

    def reboot_order(self, cluster: Cluster | None) -> str:
        """Describe the order and its reason."""
        if self.lowered:
            return f"the primary first, because {', '.join(self.lowered)} are lowered"
        if self.raised:
            return f"standbys first, because {', '.join(self.raised)} are raised"
        return "the writer first, as the Aurora user guide requires" if self.writer_first(cluster) else "standbys first"


def memory_changes(before: Values, after: Values) -> MemoryChanges:
    """Compare the five parameters; one that is unknown before or after counts as unchanged."""
    known = [(name, before.get(name), after.get(name)) for name in SHARED_MEMORY]
    return MemoryChanges(
        tuple(name for name, old, new in known if old is not None and new is not None and new > old),
        tuple(name for name, old, new in known if old is not None and new is not None and new < old),
    )


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How a group is rolled out.

    Attributes:
        reboot: whether servers that need it are rebooted, one at a time.
        timeout_seconds: the timeout of each wait.
        waiting: the identifiers of servers that report values pending a restart.
        servers: what each server is asked over SQL, by identifier; others are not asked.
        with_pending: whether reboots may apply queued modifications.
    """

    reboot: bool
    timeout_seconds: float
    waiting: Collection[str] = ()
    servers: Mapping[str, RestartProbe] = field(default_factory=dict)
    with_pending: bool = False


def attach_to_cluster(
    cluster: Cluster, group: str, changes: MemoryChanges, options: RolloutOptions, members: Sequence[Instance] = ()
) -> Plan:
    """Plan to attach a group to a cluster and, with ``reboot``, to reboot its members one at a time.

    Args:
        cluster: the cluster.
        group: the group's name.
        changes: which shared memory parameters the group changes.
        options: how it is rolled out.
        members: its instances, to check queued modifications.

    Raises:
        NotAvailable: the cluster is not available.
        Refused: some parameters are raised and others lowered, so no order is safe; or modifications are queued.
    """
    clusters.require_available(cluster)
    steps: list[Step] = []
    queued = queued_on(cluster, *members)
    if cluster.parameter_group != group:
        steps += clusters.attach(cluster, group, timeout_seconds=options.timeout_seconds)
    pending = {member.instance_id for member in cluster.members if member.parameter_group_status != "in-sync"}
    pending |= set(options.waiting)
    notes = pending_modifications.kept(queued) if steps else ()
    if options.reboot and (steps or pending):
        if cluster.kind == "multi_az_cluster" and len(cluster.members) > 1:
            _require_one_direction(changes, group)
        notes = pending_modifications.check_reboot(queued, allowed=options.with_pending)
        steps += reboot_cluster(
            cluster, changes, only_needed=True, timeout_seconds=options.timeout_seconds, servers=options.servers
        )
    return Plan(
        f"attach parameter group {group} to cluster {cluster.cluster_id}",
        tuple(steps),
        warnings=(*_warnings(options.reboot, bool(steps), changes, group, cluster), *notes),
        unchanged=f"cluster {cluster.cluster_id} has group {group} already, and no reboot is pending"
        if not pending
        else f"cluster {cluster.cluster_id} has group {group} already; to apply pending values, add --reboot",
    )


def queued_on(*resources: Cluster | Instance) -> dict[str, Mapping[str, str]]:
    """Return the modifications queued for the maintenance window, by cluster or instance."""
    return {
        f"cluster {one.cluster_id}" if isinstance(one, Cluster) else f"instance {one.instance_id}": (
            one.pending_modifications
        )
        for one in resources
    }


def reboot_cluster(
    cluster: Cluster,
    changes: MemoryChanges,
    *,
    only_needed: bool,
    timeout_seconds: float,
    servers: Mapping[str, RestartProbe],
) -> list[Step]:
    """Return the steps that reboot every member of a cluster, or those that need it, one at a time.

    The writer of a Multi-AZ DB cluster is rebooted with RebootDBCluster, which Aurora does not have.
    """
    writers = [member.instance_id for member in cluster.members if member.is_writer]
    readers = [member.instance_id for member in cluster.members if not member.is_writer]
    steps: list[Step] = []
    for member in [*writers, *readers] if changes.writer_first(cluster) else [*readers, *writers]:
        steps += reboots.steps(
            member,
            timeout_seconds=timeout_seconds,
            cluster=cluster if member in writers and cluster.kind == "multi_az_cluster" else None,
            only_needed=only_needed,
            server=servers.get(member),
        )
    return steps


def attach_to_instance(
    instance: Instance,
    group: str,
    changes: MemoryChanges,
    replicas: Mapping[str, tuple[Instance, MemoryChanges]],
    options: RolloutOptions,
    *,
    with_replicas: bool,
) -> Plan:
    """Plan to attach a group to an instance and, with ``with_replicas``, to its read replicas, in the safe order.

    Args:
        instance: the instance.
        group: the group's name.
        changes: which shared memory parameters change on the instance.
        replicas: its read replicas by identifier, each with what the group would change there.
        options: how it is rolled out.
        with_replicas: whether the replicas get the group as well.

    Raises:
        NotAvailable: an instance is not available.
        Refused: a replica would have less than its source, no order is safe, or modifications are queued.
    """
    instances.require_available(instance)
    read_replicas = [replica for replica, _ in replicas.values()]
    if not with_replicas:
        small = {name: change.raised for name, (_, change) in replicas.items() if change.raised}
        if small:
            name, parameters = next(iter(small.items()))
            raise Refused(
                f"read replica {name} would have less than its source with {group}: {', '.join(parameters)}",
                hint="replay stops on a standby that has less than its primary; raise the replicas first: add "
                "--with-replicas, or attach another group to them",
            )
    steps: list[Step] = []
    chosen = read_replicas if with_replicas else []
    for one in chosen:
        instances.require_available(one)
    if chosen:
        _require_one_direction(changes, group)
    notes: list[str] = []
    for one in [instance, *chosen] if changes.lowered else [*chosen, instance]:
        attached = one.parameter_group == group
        if not attached:
            steps += instances.attach(one.instance_id, group, timeout_seconds=options.timeout_seconds)
        if options.reboot and (
            not attached or one.parameter_group_status != "in-sync" or one.instance_id in options.waiting
        ):
            notes += pending_modifications.check_reboot(queued_on(one), allowed=options.with_pending)
            steps += reboots.steps(
                one.instance_id,
                timeout_seconds=options.timeout_seconds,
                only_needed=True,
                server=options.servers.get(one.instance_id),
            )
        elif not attached:
            notes += pending_modifications.kept(queued_on(one))
    return Plan(
        f"attach parameter group {group} to instance {instance.instance_id}"
        + (f" and its {counted(len(chosen), 'read replica')}" if chosen else ""),
        tuple(steps),
        warnings=(*_warnings(options.reboot, bool(steps), changes if chosen else None, group, None), *notes),
        unchanged=f"instance {instance.instance_id} has group {group} already, and no reboot is pending"
        if instance.parameter_group_status == "in-sync"
        else f"instance {instance.instance_id} has group {group} already; to apply pending values, add --reboot",
    )


def require_group_fits(group_family: str, family: str, what: str) -> None:
    """Refuse a group for another engine or version than the server's.

    Raises:
        Refused: the families differ.
    """
    if group_family != family:
        raise Refused(
            f"the group is for {group_family}, but {what} needs one for {family}",
            hint=f"create one: {command('param-group create NAME --family {}', family)}",
        )


def _require_one_direction(changes: MemoryChanges, group: str) -> None:
    if changes.raised and changes.lowered:
        raise Refused(
            f"group {group} raises {', '.join(changes.raised)} "
            f"and lowers {', '.join(changes.lowered)}: no order is safe",
            hint="use two steps: first a group that only raises them, then one that only lowers them",
        )


def _warnings(
    reboot: bool, anything: bool, changes: MemoryChanges | None, group: str, cluster: Cluster | None
) -> tuple[str, ...]:
    if not anything:
        return ()
    if not reboot:
        again = command("param-group attach {} --reboot", group)
        if cluster is not None:
            again = command("param-group attach {} --cluster {} --reboot", group, cluster.cluster_id)
        return (f"static parameters take effect after a reboot: {again}",)
    order = f"; {changes.reboot_order(cluster)}" if changes is not None else ""
    return (f"each server that needs it is rebooted, one at a time; its connections are closed{order}",)
