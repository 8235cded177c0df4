"""What ``slot lag``, ``slot check`` and ``slot prune`` share: one look at the slots, with what AWS knows beside it."""

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
    """Return what is known of the server from elsewhere; what could not be found out is said, and goes without.

    Args:
        ctx: the command's context.
        target: the database.
        free_bytes: free storage, where somebody says it; that wins over CloudWatch.
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
    """Look at the slots once; clocks that cannot be trusted are said, once a run."""
    from rdsrepl.retention import server_state

    state = server_state.read(
        conn, storage=metrics.storage, wal_rate=metrics.wal_rate, notes=metrics.notes, sampler=sampler
    )
    doubt = state.clock_doubt
    if doubt is not None and "rdsrepl.clock_doubt" not in ctx.meta:
        ctx.meta["rdsrepl.clock_doubt"] = doubt
        warn(ctx, doubt)
    return state
