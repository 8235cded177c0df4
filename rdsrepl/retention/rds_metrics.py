"""Read the CloudWatch metrics of the server: free storage, and the WAL it writes.

CloudWatch is asked only if a cluster or an instance is named, and for at most some seconds. A failure becomes a note,
and the slots are shown without the metrics.
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
    """The CloudWatch metrics of the server.

    Attributes:
        storage: the free storage for WAL; None if unknown, as on Aurora PostgreSQL, which has no metric for how much
            its volume can grow (``AuroraVolumeBytesLeftTotal`` is Aurora MySQL only).
        wal_rate: bytes of WAL a second (``TransactionLogsGeneration``).
        metrics: the newest values by their CloudWatch names, in CloudWatch's units.
        instance_id: the writer, which the metrics belong to.
        notes: what could not be read, and why.
    """

    storage: Storage | None = None
    wal_rate: Rate | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    instance_id: str | None = None
    notes: tuple[str, ...] = ()


def read(target: Target) -> RdsMetrics:
    """Return the metrics of the target's server; no metrics if the target names no cluster or instance.

    Raises:
        UsageError: the profile, the region or the endpoint is not valid.
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
        return RdsMetrics(notes=(f"could not read the free storage from CloudWatch: {exc.message}{remedy}",))


def _read(target: Target) -> RdsMetrics:
    from rdsrepl.aws import locations, metrics

    server = locations.server_of(target)
    if server is None or (writer := server.writer_id) is None:
        return RdsMetrics(notes=("could not read CloudWatch metrics: the cluster has no writer now",))
    values = metrics.latest(target.aws, METRICS, {"DBInstanceIdentifier": writer})
    storage = free_storage(values, server.cluster, server.instance)
    generation = values.get("TransactionLogsGeneration")
    notes = []
    if storage is None and (server.cluster is None or server.cluster.kind != "aurora"):
        notes.append("CloudWatch has no free storage for this server yet; give it with --free-space SIZE")
    return RdsMetrics(
        storage=storage,
        wal_rate=Rate(generation, 0.0, "CloudWatch") if generation is not None and generation > 0 else None,
        metrics=values,
        instance_id=writer,
        notes=tuple(notes),
    )


def free_storage(values: Mapping[str, float], cluster: Cluster | None, instance: Instance | None) -> Storage | None:
    """Return the free storage for WAL: of the dedicated log volume, or of the instance; None for Aurora."""
    # WAL is on the dedicated log volume if the instance has one. That volume does not grow automatically.
    if (free := values.get("FreeStorageSpaceLogVolume")) is not None:
        return Storage(int(free), source="CloudWatch, log volume")
    if (cluster is not None and cluster.kind == "aurora") or (free := values.get("FreeStorageSpace")) is None:
        return None
    may_grow = 0
    if instance is not None and instance.max_allocated_storage_gib is not None:
        may_grow = max(0, instance.max_allocated_storage_gib - instance.allocated_storage_gib) * _GIB
    return Storage(int(free), may_grow, "CloudWatch")
