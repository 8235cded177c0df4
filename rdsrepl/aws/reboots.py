"""Reboot a server and verify that it was restarted. Combines instances, clusters and events.

The status ``available`` proves nothing: describe calls lag, and ``rebooting`` may never be visible. A server that
answers over SQL must report a later start time than before the call. Otherwise one of these is the proof: an RDS event,
the status ``rebooting`` of the resource, or parameters that are no longer pending.
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

# Describe calls can still return the state before the reboot.
_CONFIRMATIONS: Final = 2
_EVENT_MINUTES: Final = 60
_RESTARTED: Final = re.compile(r"\brestarted\b|failover completed", re.IGNORECASE)
_PENDING: Final = "pending-reboot"
_APPLYING: Final = "applying"


class RestartProbe(Protocol):
    """Reads over SQL what a server reports about restarts."""

    def started(self, target: Target) -> str | None:
        """Return the start time of the server; None if it does not answer."""

    def needs_restart(self, target: Target) -> bool | None:
        """Return whether settings are pending a restart; None if the server does not answer."""


@dataclass(frozen=True, slots=True)
class _Before:
    """The state before the call.

    Attributes:
        started: the start time of the server; None if it did not answer.
        events: the restarts that RDS had reported; None if they were not needed or not readable.
        is_pending: a parameter group was pending a reboot.
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
    server: RestartProbe | None = None,
) -> tuple[AwsCall, Wait]:
    """Return the steps that reboot one server and wait until it is available (RebootDBInstance, RebootDBCluster).

    Args:
        instance_id: the server.
        timeout_seconds: the timeout of the wait.
        cluster: the Multi-AZ DB cluster whose writer is rebooted; the call names the cluster.
        failover: fail over to the standby in another zone (Multi-AZ instances); pending parameters stay pending.
        only_needed: skip the call if nothing is pending a restart at that time.
        server: reads the start time over SQL; None skips that.
    """
    reboot = _Reboot(instance_id, cluster is not None, failover, only_needed, server)
    summary = f"reboot instance {instance_id}" + (" with failover" if failover else "")
    operation, request = "RebootDBInstance", {"DBInstanceIdentifier": instance_id}
    if cluster is not None:
        summary = f"reboot cluster {cluster.cluster_id}, which reboots its writer"
        operation, request = "RebootDBCluster", {"DBClusterIdentifier": cluster.cluster_id}
    parameters: dict[str, Any] = {**request, **({"ForceFailover": True} if failover else {})}
    condition = "if it still needs a reboot" if only_needed else ""
    return (
        AwsCall(summary, "rds", operation, parameters, needed=reboot.needed, condition=condition, effect="change"),
        Wait(f"wait until instance {instance_id} is available again", reboot.probe, timeout_seconds, _CONFIRMATIONS),
    )


def needed(target: Target, instance: Instance, server: RestartProbe) -> bool:
    """Return whether a server reports settings that are pending a restart; False if it does not answer."""
    return bool(_needs_restart(server, target, instance))


class _Reboot:
    """The reboot of one server; stores the state before it."""

    def __init__(
        self, instance_id: str, through_cluster: bool, failover: bool, only_needed: bool, server: RestartProbe | None
    ) -> None:
        self._instance_id = instance_id
        self._through_cluster = through_cluster
        self._failover = failover
        self._only_needed = only_needed
        self._server = server
        self._before: _Before | None = None
        self._was_rebooting = False

    def needed(self, target: Target) -> bool:
        """Return whether the call is still needed; store the state before it."""
        instance = instances.get(target.aws, self._instance_id)
        cluster = _cluster_of(target.aws, instance)
        if self._before is not None:
            # An attempt without a response can have been executed.
            return self._proof(target, instance, cluster) is None
        is_pending = _PENDING in _group_states(instance, cluster)
        if self._only_needed and not is_pending and not _needs_restart(self._server, target, instance):
            return False
        started = _started(self._server, target, instance)
        events = _events(target.aws, self._instance_id) if started is None else None
        self._before = _Before(started, events, is_pending)
        return True

    def probe(self, target: Target) -> Condition:
        """Return whether the server was restarted and everything is available again."""
        instance = instances.get(target.aws, self._instance_id)
        cluster = _cluster_of(target.aws, instance)
        rebooted_status = cluster.status if self._through_cluster and cluster is not None else instance.status
        self._was_rebooting = self._was_rebooting or rebooted_status == statuses.REBOOTING
        condition = instances.state(instance)
        if condition.failed is not None:
            return condition
        texts = [condition.state]
        if cluster is not None:
            members = {one.instance_id: one.status for one in instances.of_cluster(target.aws, cluster.cluster_id)}
            others = [f"{name} {status}" for name, status in members.items() if not statuses.is_usable(status)]
            texts += [f"cluster {cluster.status}", *(other for other in others if other != condition.state)]
            # Never reboot two servers of a cluster at the same time.
            if not statuses.is_usable(cluster.status) or others:
                end = clusters.dead_end(cluster, members)
                return Condition(False, ", ".join(texts), failed=end.failed, remedy=end.remedy)
        if not condition.met:
            return condition
        proof = None
        if self._before is not None:
            proof = self._proof(target, instance, cluster)
            if proof is None:
                return Condition(False, ", ".join([*texts, "restart not confirmed yet"]))
        groups = _group_states(instance, cluster)
        texts.append(f"parameters {', '.join(sorted(groups))}")
        # A lagging describe call still returns pending when the server already has all values.
        is_pending = _PENDING in groups and _needs_restart(self._server, target, instance) is not False
        met = _APPLYING not in groups and (self._failover or not is_pending)
        facts = {**condition.facts, **({"restarted": proof} if proof is not None else {})}
        return Condition(met, ", ".join(texts), facts=facts)

    def _proof(self, target: Target, instance: Instance, cluster: Cluster | None) -> str | None:
        """Return the proof of the restart; None without one."""
        before = self._before
        assert before is not None
        if before.started is not None:
            started = _started(self._server, target, instance)
            return f"the server started at {started}" if started not in (None, before.started) else None
        if before.events is not None:
            events = _events(target.aws, self._instance_id) or frozenset()
            for date, message in sorted(events - before.events):
                return f"RDS event {date}: {message}"
        if self._was_rebooting:
            return f"the status was {statuses.REBOOTING}"
        if before.is_pending and _group_states(instance, cluster) <= {"in-sync"}:
            return "the parameters are in-sync"
        return None


def _started(server: RestartProbe | None, target: Target, instance: Instance) -> str | None:
    if server is None or instance.endpoint is None or instance.port is None:
        return None
    return server.started(locations.at_endpoint(target, instance.endpoint, instance.port))


def _needs_restart(server: RestartProbe | None, target: Target, instance: Instance) -> bool | None:
    if server is None or instance.endpoint is None or instance.port is None:
        return None
    return server.needs_restart(locations.at_endpoint(target, instance.endpoint, instance.port))


def _cluster_of(aws: Aws, instance: Instance) -> Cluster | None:
    return None if instance.cluster_id is None else clusters.get(aws, instance.cluster_id)


def _group_states(instance: Instance, cluster: Cluster | None) -> set[str]:
    member_states = [
        member.parameter_group_status
        for member in (cluster.members if cluster is not None else ())
        if member.instance_id == instance.instance_id
    ]
    return {instance.parameter_group_status, *member_states} - {""}


def _events(aws: Aws, instance_id: str) -> frozenset[tuple[str, str]] | None:
    """Return the restarts of the last hour that RDS reports; None if they are not readable (DescribeEvents)."""
    request: Mapping[str, Any] = {
        "SourceType": "db-instance",
        "SourceIdentifier": instance_id,
        "Duration": _EVENT_MINUTES,
    }
    try:
        rows = list(session.pages(aws, "rds", "DescribeEvents", "Events", request))
    except Error:
        return None
    events = ((str(row.get("Date", "")), str(row.get("Message", ""))) for row in rows)
    return frozenset((date, message) for date, message in events if _RESTARTED.search(message))
