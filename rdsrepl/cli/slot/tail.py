"""``rdsrepl slot tail`` and ``rdsrepl slot peek``: stream a slot's changes, or read a few and consume nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli.command_classes import ReadCommand
from rdsrepl.cli.completion import complete_sink
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options, set_log_format
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.options import duration_option
from rdsrepl.cli.slot.requested_snapshot_options import RequestedSnapshotFlags
from rdsrepl.cli.slot.service_options import ServiceOptions
from rdsrepl.cli.slot.snapshot_options import SnapshotFlags
from rdsrepl.cli.slot.tail_debezium_options import DebeziumFlags
from rdsrepl.cli.slot.tail_file_options import FileFlags
from rdsrepl.cli.slot.tail_kinesis_options import KinesisFlags
from rdsrepl.cli.slot.tail_options import STREAM_PANEL, ChangeOptions, SlotArgument, SlotOptions, StopOptions
from rdsrepl.cli.slot.tail_progress import ProgressReporter, report
from rdsrepl.cli.targets import database_target, other_target

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.tail.options import TailOptions
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.progress import Observer
    from rdsrepl.tail.run import HookSession, SlotCreation, TailResult
    from rdsrepl.tail.sinks.base import Sink


@with_bundles
def tail(
    ctx: typer.Context,
    slot: SlotArgument,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SINK",
            help="Write to this sink: - is standard output, file:PATH a file, kinesis:STREAM a stream (name or ARN).",
            rich_help_panel=STREAM_PANEL,
            autocompletion=complete_sink,
        ),
    ] = "-",
    changes: ChangeOptions,
    start: SlotOptions,
    stop: StopOptions,
    file: FileFlags,
    kinesis: KinesisFlags,
    debezium: DebeziumFlags,
    snapshot_with: SnapshotFlags,
    requested: RequestedSnapshotFlags,
    service: ServiceOptions,
) -> None:
    """Stream a slot's changes to standard output, a file or Kinesis, at least once and in commit order.

    A position is confirmed to the server only when the output has it. After a lost connection, a restart or a failover
    the stream resumes. Ctrl-C stops cleanly: what was received is delivered and confirmed.

    Example: rdsrepl slot tail orders_cdc --publication orders --format json > orders.jsonl
    """
    from rdsrepl.tail.model import TableFilter
    from rdsrepl.tail.options import TailOptions

    set_log_format(ctx, service.log_format)
    place = requested.place()
    to_kinesis, to_file = kinesis.options(to, changes.format), file.options(to)
    options = TailOptions(
        slot,
        changes.format_or_default(to_stdout=to_kinesis is None and to_file is None),
        publications=tuple(changes.publication or ()),
        plugin_options=changes.plugin_options(),
        tables=TableFilter(tuple(changes.table or ()), place.tables),
        from_lsn=start.from_lsn,
        stop=stop.conditions(),
        confirm=not start.no_confirm,
        at_least_once=start.at_least_once,
        active_wait_seconds=start.wait_active,
        kinesis=to_kinesis,
        file=to_file,
        heartbeat=service.heartbeat_options(),
        metrics=service.metrics_options(),
        accept_gap=start.accept_gap,
        allow_missing_publication=start.allow_missing_publication,
        receive_timeout_seconds=start.receive_timeout,
        debezium=debezium.options(changes.format),
        create=start.create,
        behind=None if start.behind is None else other_target(ctx, start.behind, "--behind"),
    )
    target = database_target(ctx)
    creation = snapshot_with.creation(ctx, target, options, place) or _WithoutSnapshot(ctx, target, options)
    report(
        ctx,
        options,
        _run(
            ctx,
            target,
            options,
            creation,
            lambda observer: requested.opener(ctx, target, options, observer, place, was_copied=snapshot_with.snapshot),
        ),
    )


@with_bundles
def peek(
    ctx: typer.Context,
    slot: SlotArgument,
    changes: ChangeOptions,
    debezium: DebeziumFlags,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Print at most N changes.")] = 10,
    timeout: Annotated[float, duration_option("--timeout", help="Wait at most this long.")] = 30.0,
) -> None:
    """Print a slot's next changes and consume nothing.

    Ends after N changes, at the current end of the WAL, or after the timeout, also within a transaction.

    Example: rdsrepl slot peek orders_cdc --limit 5
    """
    from rdsrepl.tail.model import TableFilter
    from rdsrepl.tail.options import StopConditions, TailOptions

    options = TailOptions(
        slot,
        changes.format_or_default(to_stdout=True),
        publications=tuple(changes.publication or ()),
        plugin_options=changes.plugin_options(),
        tables=TableFilter(tuple(changes.table or ())),
        stop=StopConditions(until_now=True, limit=limit, duration_seconds=timeout),
        confirm=False,
        active_wait_seconds=0.0,
        debezium=debezium.options(changes.format),
    )
    summary = _run(ctx, database_target(ctx), options).summary
    if summary.progress.changes == 0:
        is_empty = summary.reason == options.stop.until_reason
        note(ctx, f"slot {slot}: {'no changes' if is_empty else summary.reason}")


def _run(
    ctx: typer.Context,
    target: Target,
    options: TailOptions,
    creation: SlotCreation | None = None,
    hook: Callable[[Observer], Callable[[PreflightResult], HookSession | None]] | None = None,
) -> TailResult:
    from rdsrepl.render import colours
    from rdsrepl.tail import run
    from rdsrepl.tail.wal_position import WalPositionPoller

    watch = WalPositionPoller(target)
    reporter = ProgressReporter(ctx, watch)
    try:
        return run.run(
            target,
            options,
            reporter,
            colour=colours(sys.stdout) and not global_options(ctx).no_color,
            watch=watch,
            creation=creation,
            open_hook=None if hook is None else hook(reporter),
        )
    finally:
        if creation is not None:
            creation.close()
        watch.stop()
        reporter.clear()


@dataclass(frozen=True, slots=True)
class _WithoutSnapshot:
    """Creates the slot of ``--create``."""

    ctx: typer.Context
    target: Target
    options: TailOptions

    def create(self, checked: PreflightResult, sink: Sink) -> int:  # noqa: ARG002
        return _create(self.ctx, self.target, self.options.slot_name, self.options.create or "")

    def close(self) -> None:
        pass


def _create(ctx: typer.Context, target: Target, slot: str, plugin: str) -> int:
    from rdsrepl import apply
    from rdsrepl.cli.progress import Progress
    from rdsrepl.postgres import connection, slot_plans

    with connection.open(target) as conn:
        plan = slot_plans.create(conn, slot, plugin=plugin)
    if not plan.steps:
        return 0  # another session created it in the meantime
    progress = Progress(ctx)
    try:
        outcomes = apply.run(
            plan,
            target,
            done=lambda outcome: None,
            waiting=lambda step, seconds, states: progress.update(step.summary, seconds, states),
        )
    finally:
        progress.clear()
    position = outcomes[0].returned.get("lsn", "")
    note(ctx, f"created slot {slot} ({plugin}) at {position}: changes committed from now on are in it")
    return 0


def register(app: typer.Typer) -> None:
    """Add the verbs to ``rdsrepl slot``."""
    app.command("tail", cls=ReadCommand)(tail)
    app.command("peek", cls=ReadCommand)(peek)
