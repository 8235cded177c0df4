"""Promote a read replica to a standalone instance (PromoteReadReplica)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rdsrepl.aws import instances, statuses
from rdsrepl.aws.instances import Instance
from rdsrepl.config import Target
from rdsrepl.errors import BadValue, Refused
from rdsrepl.plan import AwsCall, Condition, Plan, Wait
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted

# Describe calls can still return the replica as it was before the call.
_CONFIRMATIONS: Final = 3
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")


@dataclass(frozen=True, slots=True)
class Backups:
    """The automated backups of the promoted instance; None uses the AWS default.

    Attributes:
        retention_days: 0 to 35; 0 takes none. AWS keeps them for one day.
        window: ``hh24:mi-hh24:mi`` in UTC.
    """

    retention_days: int | None = None
    window: str | None = None

    def __post_init__(self) -> None:
        if self.window is not None and _WINDOW.fullmatch(self.window) is None:
            raise BadValue(f"{self.window!r} is not a backup window", hint="for example 03:00-03:30, in UTC")


def promote(instance: Instance, *, backups: Backups, timeout_seconds: float) -> Plan:
    """Plan to promote a read replica, and wait until it is a standalone instance.

    The plan is empty for an instance that is no read replica, so that a promotion that was interrupted converges.

    Raises:
        Refused: the instance is a member of a cluster.
    """
    name = instance.instance_id
    if instance.cluster_id is not None:
        raise Refused(
            f"instance {name} is a member of cluster {instance.cluster_id}, not a read replica",
            hint=f"fail over the cluster: {command('cluster failover {}', instance.cluster_id)}",
        )
    title = f"promote read replica {name}"
    if instance.replica_of is None and statuses.is_usable(instance.status):
        return Plan(title, (), unchanged=f"instance {name} is not a read replica: it is a standalone instance")
    return Plan(title, steps(instance, backups=backups, timeout_seconds=timeout_seconds), warnings(instance, backups))


def steps(instance: Instance, *, backups: Backups, timeout_seconds: float) -> tuple[AwsCall, Wait]:
    """Return the steps that promote a read replica, and wait until it is a standalone instance."""
    name = instance.instance_id
    request: dict[str, Any] = {
        "DBInstanceIdentifier": name,
        "BackupRetentionPeriod": backups.retention_days,
        "PreferredBackupWindow": backups.window,
    }
    return (
        AwsCall(
            f"promote read replica {name}",
            "rds",
            "PromoteReadReplica",
            {key: value for key, value in request.items() if value is not None},
            needed=partial(_is_replica, instance_id=name),
            condition="if it is still a read replica",
            reason=f"{_source(instance)} goes on running",
            effect="change",
        ),
        Wait(
            f"wait until instance {name} is promoted and available",
            partial(_promoted, instance_id=name),
            timeout_seconds,
            _CONFIRMATIONS,
        ),
    )


def warnings(instance: Instance, backups: Backups) -> tuple[str, ...]:
    """Return the consequences of a promotion.

    Source: RDS User Guide, "Promoting a read replica to be a standalone DB instance"; API reference.
    """
    source = _source(instance)
    days = backups.retention_days
    kept = (
        "AWS keeps automated backups for 1 day"
        if days is None
        else f"automated backups are kept for {counted(days, 'day')}"
    )
    return (
        f"{source} goes on running and accepts writes: stop any transactions from being written to it, and wait for "
        "all updates to be made to the read replica; what it commits afterwards is on it alone",
        f"{instance.instance_id} is rebooted, and cannot become a read replica again",
        "automated backups are off, so the instance cannot be restored to a point in time" if days == 0 else kept,
        "AWS refuses while the replica is in the backing-up status; the call is repeated until it is available",
    )


def _source(instance: Instance) -> str:
    return instance.source_id or "its former source"


def _is_replica(target: Target, *, instance_id: str) -> bool:
    return instances.get(target.aws, instance_id).replica_of is not None


def _promoted(target: Target, *, instance_id: str) -> Condition:
    instance = instances.get(target.aws, instance_id)
    condition = instances.state(instance)
    if instance.replica_of is None or condition.failed is not None:
        return condition
    return Condition(False, f"{condition.state}, still a read replica")
