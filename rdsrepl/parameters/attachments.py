"""Read which parameter group is attached to which cluster or instance, and evaluate its values there."""

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
    """What a parameter group is attached to: a cluster, or an instance outside of a cluster.

    Attributes:
        instance: the instance, or the cluster's writer; None while a cluster has no writer.
    """

    cluster: Cluster | None
    instance: Instance | None

    @property
    def kind(self) -> ResourceKind:
        """The kind of group that contains the replication parameters."""
        return "cluster" if self.cluster is not None else "instance"

    @property
    def group(self) -> str:
        """The group that is attached now."""
        return self._resource.parameter_group

    @property
    def description(self) -> str:
        """The text for messages: ``cluster orders``."""
        return f"{self.kind} {self.identifier}"

    @property
    def identifier(self) -> str:
        """The identifier of the cluster or instance."""
        resource = self._resource
        return resource.cluster_id if isinstance(resource, Cluster) else resource.instance_id

    @property
    def engine(self) -> tuple[str, str]:
        """The engine's name and version."""
        return self._resource.engine, self._resource.engine_version

    @property
    def storage_gib(self) -> int | None:
        """Allocated storage; None on Aurora, whose storage grows automatically."""
        return None if engines.is_aurora(self._resource.engine) else self._resource.allocated_storage_gib or None

    @property
    def hardware(self) -> Hardware | None:
        """The vCPU and memory of the instance class; None where they are unknown."""
        name = self.cluster.instance_class if self.cluster is not None else None
        if name is None and self.instance is not None:
            name = self.instance.instance_class
        return None if name is None else instance_classes.hardware(name)

    @property
    def pending_reboot(self) -> bool:
        """Whether a server is pending a reboot."""
        if self.cluster is not None:
            return any(member.parameter_group_status == "pending-reboot" for member in self.cluster.members)
        return self.instance is not None and self.instance.parameter_group_status == "pending-reboot"

    @property
    def _resource(self) -> Cluster | Instance:
        resource = self.cluster if self.cluster is not None else self.instance
        assert resource is not None
        return resource


def attach_target(target: Target) -> AttachTarget | None:
    """Return what a parameter group is attached to at a target: of a member, its cluster.

    None where the target names neither a cluster nor an instance.

    Raises:
        NotFound: the region has none of that name.
    """
    server = locations.server_of(target)
    if server is None:
        return None
    cluster, instance = server.cluster, server.instance
    if cluster is not None and (instance is None or instance.instance_id != cluster.writer):
        instance = None if cluster.writer is None else instances.get(target.aws, cluster.writer)
    return AttachTarget(cluster, instance)


def users(aws: Aws) -> dict[tuple[ResourceKind, str], list[str]]:
    """Return what uses each group, as ``cluster orders`` or ``instance orders-1``, by kind and name of the group.

    Raises:
        Error: AWS refused.
    """
    users_by_group: dict[tuple[ResourceKind, str], list[str]] = {}
    for cluster in clusters.ls(aws):
        users_by_group.setdefault(("cluster", cluster.parameter_group), []).append(f"cluster {cluster.cluster_id}")
    for instance in instances.ls(aws):
        users_by_group.setdefault(("instance", instance.parameter_group), []).append(f"instance {instance.instance_id}")
    return users_by_group


def users_of(aws: Aws, group: ParameterGroup) -> list[str]:
    """Return what uses one group; see ``users``."""
    return users(aws).get((group.kind, group.name), [])


def replicas(aws: Aws, instance: Instance) -> tuple[Instance, ...]:
    """Return an instance's read replicas in its own region.

    Raises:
        Error: AWS refused.
    """
    return tuple(instances.get(aws, name) for name in instance.replicas if not name.startswith("arn:"))


def values(aws: Aws, kind: ResourceKind, group: str) -> dict[str, str]:
    """Return the values of a group's parameters; formulas are not evaluated.

    Raises:
        NotFound: there is no such group.
    """
    rows = parameter_groups.parameters(aws, kind, group)
    return {name: row.value for name, row in rows.items() if row.value is not None}


def evaluate_all(texts: Mapping[str, str], hardware: Hardware | None) -> dict[str, int | None]:
    """Evaluate values and formulas for an instance class; values that are not numbers are skipped."""
    return {name: formulas.read(value, hardware) for name, value in texts.items() if formulas.is_readable(value)}
