"""Read the server state for ``slot lag``, ``slot check`` and ``slot prune``, and report what could not be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from rdsrepl.cli.console import note, warn
from rdsrepl.retention.forecast import Storage

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.retention.rds_metrics import RdsMetrics
    from rdsrepl.retention.server_state import ServerState, SlotSampler


def read_rds_metrics(ctx: typer.Context, target: Target, free_bytes: int | None) -> RdsMetrics:
    """Return the metrics of RDS; report what could not be read.

    Args:
        ctx: the command's context.
        target: the database.
        free_bytes: the free storage from ``--free-space``, which takes precedence over CloudWatch.
    """
    from dataclasses import replace

    from rdsrepl.retention import rds_metrics

    metrics = rds_metrics.read(target)
    for text in metrics.notes:
        note(ctx, text)
    return metrics if free_bytes is None else replace(metrics, storage=Storage(free_bytes, source="--free-space"))


def read_server_state(
    ctx: typer.Context, conn: Connection, metrics: RdsMetrics, *, sampler: SlotSampler | None = None
) -> ServerState:
    """Return the state of the server and its slots; warn once a run if the clocks are not reliable."""
    from rdsrepl.retention import server_state

    state = server_state.read(
        conn, storage=metrics.storage, wal_rate=metrics.wal_rate, notes=metrics.notes, sampler=sampler
    )
    doubt = state.clock_doubt
    if doubt is not None and "rdsrepl.clock_doubt" not in ctx.meta:
        ctx.meta["rdsrepl.clock_doubt"] = doubt
        warn(ctx, doubt)
    return state
