"""Measures the CloudWatch metrics of an instance and sends them to moto, which runs in this process."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rdsrepl.sandbox.api.records import Instance
from rdsrepl.sandbox.api.types import ACCOUNT
from rdsrepl.sandbox.servers.postgres_server import PostgresServer

NAMESPACE: Final = "AWS/RDS"
_GIB: Final = 1024**3
# Metrics that are younger than this are not measured again.
_MIN_INTERVAL_SECONDS: Final = 1.0

_QUERY: Final = """
    WITH here AS (
        SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn
    )
    SELECT pg_is_in_recovery(),
           pg_wal_lsn_diff(here.lsn, '0/0')::bigint,
           (SELECT max(pg_wal_lsn_diff(here.lsn, restart_lsn))::bigint FROM pg_catalog.pg_replication_slots),
           (SELECT max(pg_wal_lsn_diff(here.lsn, restart_lsn))::bigint
            FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical'),
           (SELECT max(age(datfrozenxid)) FROM pg_catalog.pg_database),
           (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),
           CASE WHEN pg_is_in_recovery() AND pg_last_wal_receive_lsn() <> pg_last_wal_replay_lsn()
                THEN extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 ELSE 0 END
    FROM here
"""


@dataclass(frozen=True, slots=True)
class _WalSample:
    at: float
    lsn: int


class MetricsPublisher:
    """Sends the metrics of the instances of one region."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._lock = threading.Lock()
        self._samples: dict[str, _WalSample] = {}

    def publish(self, instance: Instance, server: PostgresServer) -> None:
        """Measure and send the metrics of an instance, at most once a second.

        Args:
            instance: the instance.
            server: its running server.

        Raises:
            Error: the server does not answer.
        """
        with self._lock:
            before, now = self._samples.get(instance.identifier), time.monotonic()
            if before is not None and now - before.at < _MIN_INTERVAL_SECONDS:
                return
            with closing(server.administer()) as conn:
                row = conn.execute(_QUERY).fetchone()
            assert row is not None
            standby, lsn, lag, logical_lag, xids, sessions, replica_lag = row
            self._samples[instance.identifier] = _WalSample(now, lsn)
        written = 0.0 if before is None else max(0, lsn - before.lsn) / (now - before.at)
        aurora = instance.engine == "aurora-postgresql"
        free = instance.allocated_gib * _GIB - _size_bytes(server.data_dir)
        values: dict[str, tuple[float | None, str]] = {
            "FreeLocalStorage" if aurora else "FreeStorageSpace": (max(0, free), "Bytes"),
            "TransactionLogsDiskUsage": (_size_bytes(server.data_dir / "pg_wal"), "Bytes"),
            "TransactionLogsGeneration": (written, "Bytes/Second"),
            "ReplicationSlotDiskUsage": (_size_bytes(server.data_dir / "pg_replslot"), "Bytes"),
            "OldestReplicationSlotLag": (lag, "Bytes"),
            "OldestLogicalReplicationSlotLag": (logical_lag, "Bytes"),
            "MaximumUsedTransactionIDs": (xids, "Count"),
            "DatabaseConnections": (sessions, "Count"),
            "ReplicaLag": (replica_lag if standby else None, "Seconds"),
        }
        dimensions = [{"Name": "DBInstanceIdentifier", "Value": instance.identifier}]
        _send(
            self._region,
            [
                {"MetricName": name, "Dimensions": dimensions, "Value": float(value), "Unit": unit}
                for name, (value, unit) in values.items()
                if value is not None
            ],
        )


def _send(region: str, data: list[dict[str, Any]]) -> None:
    from moto.backends import get_backend

    backend: Any = get_backend("cloudwatch")[ACCOUNT][region]
    backend.put_metric_data(NAMESPACE, data)


def _size_bytes(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size  # noqa: PTH116, PTH118 - thousands of files
    return total
