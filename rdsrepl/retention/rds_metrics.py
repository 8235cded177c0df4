"""What AWS knows of the server around the slots: free storage, how fast WAL is written, what may still grow.

CloudWatch is asked where a cluster or an instance is named, for a few seconds at most. Nothing here fails: what could
not be found out is a note, and the slots are shown without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rdsrepl.retention.forecast import Rate, Storage

if TYPE_CHECKING:
    from rdsrepl.aws.clusters import Cluster
    from rdsrepl.aws.instances import Instance
    from rdsrepl.config import Target

METRICS: Final = (
    "FreeStorageSpace",
    "FreeStorageSpaceLogVolume",
    "FreeLocalStorage",
    "TransactionLogsDiskUsage",
    "TransactionLogsGeneration",
    "OldestLogicalReplicationSlotLag",
    "OldestReplicationSlotLag",
    "ReplicationSlotDiskUsage",
)
_TIMEOUT_SECONDS: Final = 5.0
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class RdsMetrics:
    """What is known from elsewhere than the database.

    Attributes:
        storage: the room for WAL; None where nobody knows it, as on Aurora PostgreSQL, which has no metric for what
            its volume may still grow (``AuroraVolumeBytesLeftTotal`` is Aurora MySQL's).
        wal_rate: bytes of WAL a second (``TransactionLogsGeneration``).
        metrics: the newest values by CloudWatch's names, in its units.
        instance_id: the writer, whose metrics these are.
        notes: what could not be found out, and why.
    """

    storage: Storage | None = None
    wal_rate: Rate | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    instance_id: str | None = None
    notes: tuple[str, ...] = ()


def read(target: Target) -> RdsMetrics:
    """Ask AWS, where the target names a cluster or an instance.

    Raises:
        UsageError: the profile, the region or the endpoint is wrong.
    """
    if not target.aws.identifier:
        return RdsMetrics()
    from rdsrepl.aws import session
    from rdsrepl.errors import Error, UsageError

    try:
        with session.short_timeouts(_TIMEOUT_SECONDS):
            return _read(target)
    except UsageError:
        raise
    except Error as exc:
        remedy = f" ({exc.hint})" if exc.hint else ""
        return RdsMetrics(notes=(f"CloudWatch does not say how much storage is free: {exc.message}{remedy}",))


def _read(target: Target) -> RdsMetrics:
    from rdsrepl.aws import locations, metrics

    server = locations.server_of(target)
    if server is None or (writer := server.writer_id) is None:
        return RdsMetrics(notes=("the cluster has no writer now, so CloudWatch was not asked",))
    found = metrics.latest(target.aws, METRICS, {"DBInstanceIdentifier": writer})
    storage = _storage(found, server.cluster, server.instance)
    generation = found.get("TransactionLogsGeneration")
    notes = []
    if storage is None and (server.cluster is None or server.cluster.kind != "aurora"):
        notes.append("CloudWatch has no free storage yet for this server; --free-space SIZE says it")
    return RdsMetrics(
        storage=storage,
        wal_rate=Rate(generation, 0.0, "CloudWatch") if generation is not None and generation > 0 else None,
        metrics=found,
        instance_id=writer,
        notes=tuple(notes),
    )


def _storage(found: Mapping[str, float], cluster: Cluster | None, instance: Instance | None) -> Storage | None:
    """Return the room WAL has: a log volume of its own, or the instance's storage; Aurora's volume has no figure."""
    # WAL lies on the log volume, where there is one; and that does not grow by itself.
    if (free := found.get("FreeStorageSpaceLogVolume")) is not None:
        return Storage(int(free), source="CloudWatch, log volume")
    if (cluster is not None and cluster.kind == "aurora") or (free := found.get("FreeStorageSpace")) is None:
        return None
    may_grow = 0
    if instance is not None and instance.max_allocated_storage_gib is not None:
        may_grow = max(0, instance.max_allocated_storage_gib - instance.allocated_storage_gib) * _GIB
    return Storage(int(free), may_grow, "CloudWatch")
