"""Which parameter group is attached where, and what its values come to there: joins groups, clusters and instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rdsrepl.aws import clusters, engines, instances, locations, parameter_groups
from rdsrepl.aws.clusters import Cluster
from rdsrepl.aws.instances import Instance
from rdsrepl.aws.parameter_groups import ParameterGroup
from rdsrepl.aws.resources import ResourceKind
from rdsrepl.config import Aws, Target
from rdsrepl.parameters import formulas, instance_classes
from rdsrepl.parameters.instance_classes import Hardware


@dataclass(frozen=True, slots=True)
class AttachTarget:
    """What a group is attached to: a cluster with its writer, or an instance of no cluster.

    Attributes:
        instance: the writer where there is a cluster; None while it has none.
    """

    cluster: Cluster | None
    instance: Instance | None

    @property
    def kind(self) -> ResourceKind:
        """Which kind of group holds the replication parameters there: a member's are its cluster's."""
        return "cluster" if self.cluster is not None else "instance"

    @property
    def group(self) -> str:
        """The group attached there now."""
        return self._found.parameter_group

    @property
    def description(self) -> str:
        """How messages call it: ``cluster orders``."""
        return f"{self.kind} {self.identifier}"

    @property
    def identifier(self) -> str:
        """The cluster's or the instance's."""
        found = self._found
        return found.cluster_id if isinstance(found, Cluster) else found.instance_id

    @property
    def engine(self) -> tuple[str, str]:
        """The engine's name and version."""
        return self._found.engine, self._found.engine_version

    @property
    def storage_gib(self) -> int | None:
        """Allocated storage; None on Aurora, whose storage grows by itself."""
        return None if engines.is_aurora(self._found.engine) else self._found.allocated_storage_gib or None

    @property
    def hardware(self) -> Hardware | None:
        """The instance class's; None where it is not known."""
        name = self.cluster.instance_class if self.cluster is not None else None
        if name is None and self.instance is not None:
            name = self.instance.instance_class
        return None if name is None else instance_classes.hardware(name)

    @property
    def pending_reboot(self) -> bool:
        """Whether anything there waits for a reboot."""
        if self.cluster is not None:
            return any(member.parameter_group_status == "pending-reboot" for member in self.cluster.members)
        return self.instance is not None and self.instance.parameter_group_status == "pending-reboot"

    @property
    def _found(self) -> Cluster | Instance:
        found = self.cluster if self.cluster is not None else self.instance
        assert found is not None
        return found


def attach_target(target: Target) -> AttachTarget | None:
    """Return what a parameter group is attached to at a target: of a member, its cluster.

    None where the target names neither a cluster nor an instance.

    Raises:
        NotFound: there is none of that name in the region.
    """
    server = locations.server_of(target)
    if server is None:
        return None
    cluster, instance = server.cluster, server.instance
    if cluster is not None and (instance is None or instance.instance_id != cluster.writer):
        instance = None if cluster.writer is None else instances.get(target.aws, cluster.writer)
    return AttachTarget(cluster, instance)


def users(aws: Aws) -> dict[tuple[ResourceKind, str], list[str]]:
    """Return who uses each group, as ``cluster orders`` or ``instance orders-1``, by the group's kind and name.

    Raises:
        Error: AWS refused.
    """
    found: dict[tuple[ResourceKind, str], list[str]] = {}
    for cluster in clusters.ls(aws):
        found.setdefault(("cluster", cluster.parameter_group), []).append(f"cluster {cluster.cluster_id}")
    for instance in instances.ls(aws):
        found.setdefault(("instance", instance.parameter_group), []).append(f"instance {instance.instance_id}")
    return found


def users_of(aws: Aws, group: ParameterGroup) -> list[str]:
    """Return who uses one group; see ``users``."""
    return users(aws).get((group.kind, group.name), [])


def replicas(aws: Aws, instance: Instance) -> tuple[Instance, ...]:
    """Return an instance's read replicas in its own region.

    Raises:
        Error: AWS refused.
    """
    return tuple(instances.get(aws, name) for name in instance.replicas if not name.startswith("arn:"))


def values(aws: Aws, kind: ResourceKind, group: str) -> dict[str, str]:
    """Return what a group's parameters are set to, formulas as they stand.

    Raises:
        NotFound: there is no such group.
    """
    rows = parameter_groups.parameters(aws, kind, group)
    return {row.name: row.value for row in rows if row.value is not None}


def evaluate_all(texts: Mapping[str, str], hardware: Hardware | None) -> dict[str, int | None]:
    """Return what values and formulas come to on a class; what is no number is left out."""
    return {name: formulas.read(value, hardware) for name, value in texts.items() if formulas.is_readable(value)}
