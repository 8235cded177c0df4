"""Reboots: the call, and how it is known that the server was restarted by it. Joins instances, clusters and events.

A status that is ``available`` proves nothing, as describes lag behind and ``rebooting`` may never show. So a server
that can be asked over SQL must say that it runs since another moment than before the call. Where it cannot be asked,
an RDS event, the status ``rebooting`` of what was told to reboot, or parameters that are no longer pending will do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rdsrepl.aws import clusters, instances, locations, session, statuses
from rdsrepl.aws.clusters import Cluster
from rdsrepl.aws.instances import Instance
from rdsrepl.config import Aws, Target
from rdsrepl.errors import Error
from rdsrepl.plan import AwsCall, Condition, Wait

# Describes may still show what was before the reboot.
_CONFIRMATIONS: Final = 2
_EVENT_MINUTES: Final = 60
_RESTARTED: Final = re.compile(r"\brestarted\b|failover completed", re.IGNORECASE)
_PENDING: Final = "pending-reboot"
_APPLYING: Final = "applying"


class Server(Protocol):
    """What a server itself says over SQL."""

    def started(self, target: Target) -> str | None:
        """Return since when it runs; None where it cannot be asked."""

    def needs_restart(self, target: Target) -> bool | None:
        """Say whether values wait for a restart; None where it cannot be asked."""


@dataclass(frozen=True, slots=True)
class _Before:
    """How it was before the call.

    Attributes:
        started: since when the server ran; None where it could not be asked.
        events: what RDS had reported; None where that was not needed, or not allowed.
        is_pending: a parameter group waited for the reboot.
    """

    started: str | None
    events: frozenset[tuple[str, str]] | None
    is_pending: bool


def steps(
    instance_id: str,
    *,
    timeout_seconds: float,
    cluster: Cluster | None = None,
    failover: bool = False,
    only_needed: bool = False,
    server: Server | None = None,
) -> tuple[AwsCall, Wait]:
    """Return the steps that reboot one server and wait until it is back (RebootDBInstance, RebootDBCluster).

    Args:
        instance_id: which.
        timeout_seconds: how long it may take.
        cluster: a Multi-AZ DB cluster whose writer it is: that is rebooted through its cluster.
        failover: to its standby in another zone (Multi-AZ instances); parameters that are pending stay so.
        only_needed: leave the call out when by then nothing waits for a restart any more.
        server: what the server says over SQL; None leaves that out.
    """
    reboot = _Reboot(instance_id, cluster is not None, failover, only_needed, server)
    summary = f"reboot instance {instance_id}" + (" with failover" if failover else "")
    operation, request = "RebootDBInstance", {"DBInstanceIdentifier": instance_id}
    if cluster is not None:
        summary = f"reboot cluster {cluster.cluster_id}, which reboots its writer"
        operation, request = "RebootDBCluster", {"DBClusterIdentifier": cluster.cluster_id}
    parameters: dict[str, Any] = {**request, **({"ForceFailover": True} if failover else {})}
    condition = "if it still needs that" if only_needed else ""
    return (
        AwsCall(summary, "rds", operation, parameters, needed=reboot.needed, condition=condition),
        Wait(f"wait until instance {instance_id} is back", reboot.probe, timeout_seconds, _CONFIRMATIONS),
    )


def needed(target: Target, instance: Instance, server: Server) -> bool:
    """Say whether a server's values wait for a restart, as it says itself over SQL; no where it cannot be asked."""
    return bool(_needs_restart(server, target, instance))


class _Reboot:
    """One server's reboot; remembers how it was before."""

    def __init__(
        self, instance_id: str, through_cluster: bool, failover: bool, only_needed: bool, server: Server | None
    ) -> None:
        self._instance_id = instance_id
        self._through_cluster = through_cluster
        self._failover = failover
        self._only_needed = only_needed
        self._server = server
        self._before: _Before | None = None
        self._was_seen = False

    def needed(self, target: Target) -> bool:
        """Look whether the call is still needed, and how it is before it."""
        instance = instances.get(target.aws, self._instance_id)
        cluster = _cluster_of(target.aws, instance)
        if self._before is not None:
            # An attempt whose answer was lost may have been carried out.
            return self._proof(target, instance, cluster) is None
        is_pending = _PENDING in _group_states(instance, cluster)
        if self._only_needed and not is_pending and not _needs_restart(self._server, target, instance):
            return False
        started = _started(self._server, target, instance)
        events = _events(target.aws, self._instance_id) if started is None else None
        self._before = _Before(started, events, is_pending)
        return True

    def probe(self, target: Target) -> Condition:
        """Look whether the server was restarted and everything is available again."""
        instance = instances.get(target.aws, self._instance_id)
        cluster = _cluster_of(target.aws, instance)
        told = cluster.status if self._through_cluster and cluster is not None else instance.status
        self._was_seen = self._was_seen or told == statuses.REBOOTING
        condition = instances.state(instance)
        if condition.failed is not None:
            return condition
        said = [condition.state]
        if cluster is not None:
            members = {one.instance_id: one.status for one in instances.of_cluster(target.aws, cluster.cluster_id)}
            others = [f"{name} {status}" for name, status in members.items() if not statuses.is_usable(status)]
            said += [f"cluster {cluster.status}", *(other for other in others if other != condition.state)]
            # Never two servers of a cluster at once.
            if not statuses.is_usable(cluster.status) or others:
                end = clusters.dead_end(cluster, members)
                return Condition(False, ", ".join(said), failed=end.failed, remedy=end.remedy)
        if not condition.met:
            return condition
        proof = None
        if self._before is not None:
            proof = self._proof(target, instance, cluster)
            if proof is None:
                return Condition(False, ", ".join([*said, "its restart has not been seen yet"]))
        groups = _group_states(instance, cluster)
        said.append(f"parameters {', '.join(sorted(groups))}")
        # A describe that lags behind still says pending when the server itself has all its values.
        is_pending = _PENDING in groups and _needs_restart(self._server, target, instance) is not False
        met = _APPLYING not in groups and (self._failover or not is_pending)
        facts = {**condition.facts, **({"restarted": proof} if proof is not None else {})}
        return Condition(met, ", ".join(said), facts=facts)

    def _proof(self, target: Target, instance: Instance, cluster: Cluster | None) -> str | None:
        """Return what proves the restart; None as long as nothing does."""
        before = self._before
        assert before is not None
        if before.started is not None:
            started = _started(self._server, target, instance)
            return f"the server runs since {started}" if started not in (None, before.started) else None
        if before.events is not None:
            found = _events(target.aws, self._instance_id) or frozenset()
            for date, message in sorted(found - before.events):
                return f"RDS event {date}: {message}"
        if self._was_seen:
            return f"the status {statuses.REBOOTING} was seen"
        if before.is_pending and _group_states(instance, cluster) <= {"in-sync"}:
            return "the parameters are in-sync"
        return None


def _started(server: Server | None, target: Target, instance: Instance) -> str | None:
    if server is None or instance.endpoint is None or instance.port is None:
        return None
    return server.started(locations.at_endpoint(target, instance.endpoint, instance.port))


def _needs_restart(server: Server | None, target: Target, instance: Instance) -> bool | None:
    if server is None or instance.endpoint is None or instance.port is None:
        return None
    return server.needs_restart(locations.at_endpoint(target, instance.endpoint, instance.port))


def _cluster_of(aws: Aws, instance: Instance) -> Cluster | None:
    return None if instance.cluster_id is None else clusters.get(aws, instance.cluster_id)


def _group_states(instance: Instance, cluster: Cluster | None) -> set[str]:
    of_cluster = [
        member.parameter_group_status
        for member in (cluster.members if cluster is not None else ())
        if member.instance_id == instance.instance_id
    ]
    return {instance.parameter_group_status, *of_cluster} - {""}


def _events(aws: Aws, instance_id: str) -> frozenset[tuple[str, str]] | None:
    """Return the restarts of the last hour that RDS reports; None where they cannot be listed (DescribeEvents)."""
    request: Mapping[str, Any] = {
        "SourceType": "db-instance",
        "SourceIdentifier": instance_id,
        "Duration": _EVENT_MINUTES,
    }
    try:
        rows = list(session.pages(aws, "rds", "DescribeEvents", "Events", request))
    except Error:
        return None
    found = ((str(row.get("Date", "")), str(row.get("Message", ""))) for row in rows)
    return frozenset((date, message) for date, message in found if _RESTARTED.search(message))
