"""In what order a parameter group comes into force: what is attached, what is rebooted, one server at a time.

A hot standby must never have less room in shared memory than its primary (manual, "Administrator's Overview" of hot
standby), so five parameters are raised on standbys first and lowered on the primary first. Pure: the nouns' data come
in, a plan goes out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rdsrepl.aws import clusters, instances, pending_modifications, reboots
from rdsrepl.aws.clusters import Cluster
from rdsrepl.aws.instances import Instance
from rdsrepl.aws.reboots import Server
from rdsrepl.errors import Refused
from rdsrepl.plan import Plan, Step
from rdsrepl.text.commands import command

SHARED_MEMORY: Final = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)

Values = Mapping[str, int | None]
_NO_SERVERS: Final[Mapping[str, Server]] = {}


@dataclass(frozen=True, slots=True)
class MemoryChanges:
    """Which of the five parameters grow, and which shrink."""

    raised: tuple[str, ...]
    lowered: tuple[str, ...]

    def writer_first(self, cluster: Cluster | None) -> bool:
        """Say whether the primary is rebooted before its standbys, where both wait for a reboot.

        On Aurora it is, as its user guide says ("Setting up logical replication"), unless one of the five grows.
        """
        return bool(self.lowered) or (cluster is not None and cluster.kind == "aurora" and not self.raised)

    def reboot_order(self, cluster: Cluster | None) -> str:
        """Return the order and its reason."""
        if self.lowered:
            return f"the primary first, because {', '.join(self.lowered)} become smaller"
        if self.raised:
            return f"standbys first, because {', '.join(self.raised)} become larger"
        return "the writer first, as Aurora's guide says" if self.writer_first(cluster) else "standbys first"


def memory_changes(before: Values, after: Values) -> MemoryChanges:
    """Compare the five parameters; one that is unknown on either side counts as unchanged."""
    known = [(name, before.get(name), after.get(name)) for name in SHARED_MEMORY]
    return MemoryChanges(
        tuple(name for name, old, new in known if old is not None and new is not None and new > old),
        tuple(name for name, old, new in known if old is not None and new is not None and new < old),
    )


def attach_to_cluster(
    cluster: Cluster,
    group: str,
    changes: MemoryChanges,
    *,
    reboot: bool,
    timeout_seconds: float,
    members: Sequence[Instance] = (),
    waiting: Collection[str] = (),
    servers: Mapping[str, Server] = _NO_SERVERS,
    with_pending: bool = False,
) -> Plan:
    """Plan to attach a group to a cluster and, if wanted, to reboot its members one at a time.

    Args:
        cluster: the one.
        group: the group's name.
        changes: what changes.
        reboot: whether the members are rebooted that need it.
        timeout_seconds: how long each wait may take.
        members: its instances, for what is queued on them.
        waiting: the members whose servers say themselves that values wait for a restart.
        servers: by identifier, what they are asked over SQL; one that is not there is not asked.
        with_pending: whether the reboots may set off queued modifications.

    Raises:
        NotAvailable: the cluster is in the middle of something else.
        Refused: some of the five parameters grow and others shrink, so no order is safe; or modifications are queued.
    """
    clusters.require_available(cluster)
    steps: list[Step] = []
    queued = queued_on(cluster, *members)
    if cluster.parameter_group != group:
        steps += clusters.attach(cluster, group, timeout_seconds=timeout_seconds)
    pending = {member.instance_id for member in cluster.members if member.parameter_group_status != "in-sync"}
    pending |= set(waiting)
    notes = pending_modifications.kept(queued) if steps else ()
    if reboot and (steps or pending):
        if cluster.kind == "multi_az_cluster" and len(cluster.members) > 1:
            _require_one_direction(changes, group)
        notes = pending_modifications.check_reboot(queued, allowed=with_pending)
        steps += reboot_cluster(cluster, changes, only_needed=True, timeout_seconds=timeout_seconds, servers=servers)
    return Plan(
        f"attach parameter group {group} to cluster {cluster.cluster_id}",
        tuple(steps),
        warnings=(
            *_warnings(reboot, bool(steps), changes, group, cluster),
            *notes,
        ),
        unchanged=f"cluster {cluster.cluster_id} has group {group} already, and nothing waits for a reboot"
        if not pending
        else f"cluster {cluster.cluster_id} has group {group} already; add --reboot for what is pending",
    )


def queued_on(*found: Cluster | Instance) -> dict[str, Mapping[str, str]]:
    """Return what is queued for the maintenance window, by what it is queued on."""
    return {
        f"cluster {one.cluster_id}" if isinstance(one, Cluster) else f"instance {one.instance_id}": (
            one.pending_modifications
        )
        for one in found
    }


def reboot_cluster(
    cluster: Cluster,
    changes: MemoryChanges,
    *,
    only_needed: bool,
    timeout_seconds: float,
    servers: Mapping[str, Server],
) -> list[Step]:
    """Return the steps that reboot every member of a cluster, or those that need it, one at a time.

    A Multi-AZ DB cluster's writer is rebooted through its cluster; AWS knows no such call for Aurora.
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
    *,
    reboot: bool,
    with_replicas: bool,
    timeout_seconds: float,
    waiting: Collection[str] = (),
    servers: Mapping[str, Server] = _NO_SERVERS,
    with_pending: bool = False,
) -> Plan:
    """Plan to attach a group to an instance and, if wanted, to its read replicas, in the safe order.

    Args:
        instance: the one.
        group: the group's name.
        changes: what changes on the instance.
        replicas: its read replicas by identifier, each with what would change from its values now to the group's.
        reboot: whether they are rebooted, one at a time.
        with_replicas: whether the replicas get the group, too.
        timeout_seconds: how long each wait may take.
        waiting: those whose servers say themselves that values wait for a restart.
        servers: by identifier, what they are asked over SQL; one that is not there is not asked.
        with_pending: whether the reboots may set off queued modifications.

    Raises:
        NotAvailable: one of them is in the middle of something else.
        Refused: a replica would be left with less than its source, or no order is safe; or modifications are queued.
    """
    instances.require_available(instance)
    followers = [replica for replica, _ in replicas.values()]
    if not with_replicas:
        small = {name: change.raised for name, (_, change) in replicas.items() if change.raised}
        if small:
            name, parameters = next(iter(small.items()))
            raise Refused(
                f"read replica {name} has less than {group} gives its source: {', '.join(parameters)}",
                hint="a standby with less than its primary stops replaying; raise the replicas first: add "
                "--with-replicas, or attach a group of theirs to them",
            )
    steps: list[Step] = []
    chosen = followers if with_replicas else []
    for one in chosen:
        instances.require_available(one)
    if chosen:
        _require_one_direction(changes, group)
    notes: list[str] = []
    for one in [instance, *chosen] if changes.lowered else [*chosen, instance]:
        attached = one.parameter_group == group
        if not attached:
            steps += instances.attach(one.instance_id, group, timeout_seconds=timeout_seconds)
        if reboot and (not attached or one.parameter_group_status != "in-sync" or one.instance_id in waiting):
            notes += pending_modifications.check_reboot(queued_on(one), allowed=with_pending)
            steps += reboots.steps(
                one.instance_id, timeout_seconds=timeout_seconds, only_needed=True, server=servers.get(one.instance_id)
            )
        elif not attached:
            notes += pending_modifications.kept(queued_on(one))
    return Plan(
        f"attach parameter group {group} to instance {instance.instance_id}"
        + (f" and its {len(chosen)} read replicas" if chosen else ""),
        tuple(steps),
        warnings=(
            *_warnings(reboot, bool(steps), changes if chosen else None, group, None),
            *notes,
        ),
        unchanged=f"instance {instance.instance_id} has group {group} already, and nothing waits for a reboot"
        if instance.parameter_group_status == "in-sync"
        else f"instance {instance.instance_id} has group {group} already; add --reboot for what is pending",
    )


def require_group_fits(group_family: str, family: str, what: str) -> None:
    """Refuse a group of another engine or version than what it is to be attached to.

    Raises:
        Refused: the families differ.
    """
    if group_family != family:
        raise Refused(
            f"the group is for {group_family}, and {what} needs one for {family}",
            hint=f"make one: {command('param-group create NAME --family {}', family)}",
        )


def _require_one_direction(changes: MemoryChanges, group: str) -> None:
    if changes.raised and changes.lowered:
        raise Refused(
            f"group {group} raises {', '.join(changes.raised)} "
            f"and lowers {', '.join(changes.lowered)}: no order is safe",
            hint="do it in two steps: first a group that only raises, then one that only lowers",
        )


def _warnings(
    reboot: bool, anything: bool, changes: MemoryChanges | None, group: str, cluster: Cluster | None
) -> tuple[str, ...]:
    if not anything:
        return ()
    if not reboot:
        where = ("--cluster {} ", (cluster.cluster_id,)) if cluster is not None else ("", ())
        again = command(f"param-group attach {{}} {where[0]}--reboot", group, *where[1])
        return (f"static parameters take effect after a reboot: {again}",)
    order = f"; {changes.reboot_order(cluster)}" if changes is not None else ""
    return (f"each server that needs it is rebooted, one at a time, and its connections break{order}",)
