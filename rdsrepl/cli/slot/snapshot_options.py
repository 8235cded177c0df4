"""The options of ``slot tail`` for the rows that the tables have before the stream begins."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.console import note, warn
from rdsrepl.cli.options import flag_option
from rdsrepl.cli.progress import Progress
from rdsrepl.cli.slot.tail_options import STREAM_PANEL
from rdsrepl.errors import BadValue, Refused
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.snapshot import initial_copy
    from rdsrepl.snapshot.state import Place
    from rdsrepl.tail.options import TailOptions
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.sinks.base import Sink

_TIMEOUT_SECONDS: Final = 60.0
_MOST_NAMES: Final = 5


@dataclass(frozen=True, slots=True)
class SnapshotFlags:
    """Whether and how the rows of the tables are copied first."""

    snapshot: Annotated[
        bool,
        flag_option(
            "--snapshot",
            help="With --create pgoutput, write the rows that the tables have before the first change.",
            panel=STREAM_PANEL,
        ),
    ] = False
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            max=32,
            help="Read the tables of --snapshot with N processes.",
            rich_help_panel=STREAM_PANEL,
        ),
    ] = 2

    def creation(self, ctx: typer.Context, target: Target, options: TailOptions, place: Place) -> Creation | None:
        """Return what creates the slot behind a snapshot; None without ``--snapshot``.

        Raises:
            BadValue: another option does not fit.
        """
        if not self.snapshot:
            return None
        if options.create != "pgoutput":
            raise BadValue(
                "--snapshot creates the slot where the snapshot ends",
                hint="add --create pgoutput; for a slot that exists, drop it first or create one with another name",
            )
        if options.format.value not in ("json", "debezium", "wal2json"):
            raise BadValue(
                f"--snapshot does not support --format {options.format.value}",
                hint="--format json, debezium or wal2json",
            )
        if not options.confirm:
            raise BadValue("--snapshot creates a slot, and --no-confirm reads one again", hint="omit one of them")
        return Creation(ctx, target, options, place, self.workers)


class Creation:
    """Creates the slot behind a snapshot."""

    def __init__(self, ctx: typer.Context, target: Target, options: TailOptions, place: Place, workers: int) -> None:
        """Start the processes; nothing else is done before ``create``."""
        from rdsrepl.snapshot.workers import Workers

        self._ctx, self._target, self._options, self._place = ctx, target, options, place
        self._workers = Workers(workers)

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def create(self, checked: PreflightResult, sink: Sink) -> int:
        """Copy the tables and create the slot; return how many batches the sink got."""
        from rdsrepl.snapshot import initial

        ctx, options = self._ctx, self._options
        if not options.at_least_once:
            _require_empty(options)
        progress = Progress(ctx)
        try:
            copied = initial.copy(
                self._target,
                options,
                checked,
                sink,
                workers=self._workers,
                place=self._place,
                timeout_seconds=_TIMEOUT_SECONDS,
                progress=lambda now: progress.update("snapshot", now.seconds, [_state(now)]),
                warn=lambda text: warn(ctx, text),
            )
        finally:
            progress.clear()
        note(
            ctx,
            f"snapshot of {counted(copied.tables, 'table')}: {counted(copied.rows, 'row', grouped=True)}; "
            f"slot {options.slot_name} begins at {copied.position}",
        )
        if copied.failure is not None:
            warn(
                ctx,
                f"{copied.failure}: the stream begins, and reads {counted(len(copied.left), 'table')} beside it in "
                f"chunks: {', '.join(copied.left[:_MOST_NAMES])}{' …' if len(copied.left) > _MOST_NAMES else ''}",
            )
        return copied.batches


def _state(now: initial_copy.Progress) -> str:
    rate = f", {now.rows / now.seconds:,.0f} rows/s" if now.seconds else ""
    left = now.seconds * (now.all_ranges - now.ranges) / now.ranges if now.ranges else None
    rest = f", about {format_duration(left)} left" if left is not None else ""
    return f"{now.table}: {counted(now.rows, 'row', grouped=True)}{rate}, {now.ranges} of {now.all_ranges} ranges{rest}"


def _require_empty(options: TailOptions) -> None:
    """Make sure that a file which the snapshot goes to is empty: rows of a copy that did not end would come again.

    Raises:
        Refused: it is not.
    """
    if options.kinesis is not None:
        return
    if options.file is not None:
        size = options.file.path.stat().st_size if options.file.path.exists() else 0
    else:
        status = os.fstat(1)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    if size:
        raise Refused(
            "the output file is not empty: a snapshot begins a new file",
            hint="remove it or name another one; or append, with rows that it may have already: --at-least-once",
        )
