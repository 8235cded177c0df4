"""``rdsrepl slot tail`` and ``rdsrepl slot peek``: a slot's changes, streamed or only looked at."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.completion import complete_publication, complete_sink, complete_slot
from rdsrepl.cli.console import log_event, note, warn
from rdsrepl.cli.context import LogFormat, global_options, set_log_format
from rdsrepl.cli.options import ReadCommand, duration_option, lsn_option
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.tail.formats.debezium_options import (
    PLACEHOLDER,
    BinaryMode,
    DecimalMode,
    HstoreMode,
    IntervalMode,
    TimeMode,
)
from rdsrepl.tail.pipeline import FormatName
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.tail.engine import Progress
    from rdsrepl.tail.run import Job, Outcome
    from rdsrepl.tail.wal_position import WalWatch

_BEAT_SECONDS: Final = 30.0
_REFRESH_SECONDS: Final = 1.0

_STREAM: Final = "What to stream"
_BOUNDS: Final = "When to stop"
_KINESIS: Final = "To Kinesis"
_DEBEZIUM: Final = "The format debezium, by the names of Debezium's properties"
_SERVICE: Final = "As a service"

Name = Annotated[
    str, typer.Argument(metavar="SLOT", help="The slot.", autocompletion=complete_slot, show_default=False)
]
FormatOption = Annotated[
    FormatName | None,
    typer.Option(
        "--format",
        "-f",
        help="How to print a change; by default pretty on a terminal, json in a pipe or a file.",
        rich_help_panel=_STREAM,
        show_default=False,
    ),
]
PublicationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--publication",
        metavar="NAME",
        help="A publication (pgoutput); may be left out where there is only one.",
        rich_help_panel=_STREAM,
        autocompletion=complete_publication,
    ),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option("--plugin-option", metavar="K=V", help="An option of the output plugin.", rich_help_panel=_STREAM),
]
TableOption = Annotated[
    list[str] | None,
    typer.Option(
        "--table",
        metavar="PATTERN",
        help="Only tables like this: sales.*, or orders in any schema.",
        rich_help_panel=_STREAM,
    ),
]

DebeziumKeys = Annotated[
    bool,
    typer.Option(
        "--debezium-keys",
        show_default=False,
        help='Write {"key":…,"value":…}, and a tombstone after each delete.',
        rich_help_panel=_DEBEZIUM,
    ),
]
DebeziumTime = Annotated[
    TimeMode | None,
    typer.Option(
        "--debezium-time",
        show_default="adaptive",
        help="time.precision.mode: how dates and times are written.",
        rich_help_panel=_DEBEZIUM,
    ),
]
DebeziumDecimal = Annotated[
    DecimalMode | None,
    typer.Option(
        "--debezium-decimal",
        show_default="precise",
        help="decimal.handling.mode: how numeric and money are written.",
        rich_help_panel=_DEBEZIUM,
    ),
]
DebeziumBinary = Annotated[
    BinaryMode | None,
    typer.Option(
        "--debezium-binary",
        show_default="bytes",
        help="binary.handling.mode: how bytea is written.",
        rich_help_panel=_DEBEZIUM,
    ),
]
DebeziumInterval = Annotated[
    IntervalMode | None,
    typer.Option(
        "--debezium-interval",
        show_default="numeric",
        help="interval.handling.mode: microseconds, or ISO 8601.",
        rich_help_panel=_DEBEZIUM,
    ),
]
DebeziumHstore = Annotated[
    HstoreMode | None,
    typer.Option(
        "--debezium-hstore",
        show_default="json",
        help="hstore.handling.mode: a string of JSON, or an object.",
        rich_help_panel=_DEBEZIUM,
    ),
]
DebeziumPlaceholder = Annotated[
    str | None,
    typer.Option(
        "--debezium-placeholder",
        metavar="TEXT",
        show_default=PLACEHOLDER,
        help="unavailable.value.placeholder: what stands for an unchanged TOAST value.",
        rich_help_panel=_DEBEZIUM,
    ),
]


class OversizePolicy(StrEnum):
    """What ``--oversize`` takes."""

    fail = "fail"
    drop_columns = "drop-columns"


def tail(
    ctx: typer.Context,
    slot: Name,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SINK",
            help="Where to: - is standard output, kinesis:STREAM a data stream (name or ARN).",
            rich_help_panel=_STREAM,
            autocompletion=complete_sink,
        ),
    ] = "-",
    format: FormatOption = None,
    publication: PublicationOption = None,
    plugin_option: PluginOption = None,
    table: TableOption = None,
    from_lsn: Annotated[
        Lsn | None,
        lsn_option(
            "--from-lsn",
            help="Begin there instead of where the slot stands: what lies before is given up.",
            panel=_STREAM,
        ),
    ] = None,
    until_lsn: Annotated[
        Lsn | None,
        lsn_option("--until-lsn", help="Stop when everything committed before LSN is delivered.", panel=_BOUNDS),
    ] = None,
    until_now: Annotated[
        bool,
        typer.Option(
            "--until-now",
            help="Stop when everything committed before the start is delivered.",
            rich_help_panel=_BOUNDS,
            show_default=False,
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Stop after N changes.", rich_help_panel=_BOUNDS)
    ] = None,
    duration: Annotated[
        float | None,
        duration_option("--duration", help="Stop after this long.", panel=_BOUNDS),
    ] = None,
    idle_exit: Annotated[
        float | None,
        duration_option("--idle-exit", help="Stop after this long without a change.", panel=_BOUNDS),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        duration_option(
            "--drain-timeout",
            help="At the end, deliver what was received for at most this long; the rest comes again.",
            panel=_BOUNDS,
        ),
    ] = None,
    no_confirm: Annotated[
        bool,
        typer.Option(
            "--no-confirm",
            help="Confirm nothing: the slot stays where it is, and keeps its WAL.",
            rich_help_panel=_STREAM,
            show_default=False,
        ),
    ] = False,
    create: Annotated[
        str | None,
        typer.Option(
            "--create",
            metavar="PLUGIN",
            help="Create the slot with this output plugin where there is none.",
            rich_help_panel=_STREAM,
        ),
    ] = None,
    wait_active: Annotated[
        float | None,
        duration_option(
            "--wait-active",
            help="How long to wait for a slot in use; by default a little over wal_sender_timeout.",
            panel=_STREAM,
        ),
    ] = None,
    receive_timeout: Annotated[
        float | None,
        duration_option(
            "--receive-timeout",
            help="Connect again after the server was silent this long; by default wal_sender_timeout, 0 is never.",
            panel=_STREAM,
        ),
    ] = None,
    accept_gap: Annotated[
        bool,
        typer.Option(
            "--accept-gap",
            help="Go on where changes are missing: the slot was moved or made again behind what was delivered.",
            rich_help_panel=_STREAM,
            show_default=False,
        ),
    ] = False,
    allow_missing_publication: Annotated[
        bool,
        typer.Option(
            "--allow-missing-publication",
            help="Go on where the server leaves changes out that are older than a publication (PostgreSQL 18).",
            rich_help_panel=_STREAM,
            show_default=False,
        ),
    ] = False,
    partition_by: Annotated[
        str | None,
        typer.Option(
            "--partition-by",
            metavar="WHAT",
            help="Partition key: key (table and primary key), table, transaction, or a column's name.",
            rich_help_panel=_KINESIS,
            show_default="key",
        ),
    ] = None,
    aggregate: Annotated[
        bool,
        typer.Option(
            "--aggregate",
            help="Changes of one key that wait go as one record, in the format of the KPL.",
            rich_help_panel=_KINESIS,
            show_default=False,
        ),
    ] = False,
    linger: Annotated[
        float | None,
        duration_option("--linger", help="How long a change may wait for company; by default 10ms.", panel=_KINESIS),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests",
            min=1,
            max=64,
            metavar="N",
            help="Requests on their way at once.",
            rich_help_panel=_KINESIS,
            show_default="4",
        ),
    ] = None,
    oversize: Annotated[
        OversizePolicy | None,
        typer.Option(
            "--oversize",
            help="A change larger than the stream takes: stop, or leave its largest values out and name them.",
            rich_help_panel=_KINESIS,
            show_default="fail",
        ),
    ] = None,
    dead_letter: Annotated[
        Path | None,
        typer.Option(
            "--dead-letter", metavar="FILE", help="Keep changes that are too large there.", rich_help_panel=_KINESIS
        ),
    ] = None,
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            "--endpoint-url", metavar="URL", help="Of Kinesis, in place of AWS's own.", rich_help_panel=_KINESIS
        ),
    ] = None,
    debezium_keys: DebeziumKeys = False,
    debezium_time: DebeziumTime = None,
    debezium_decimal: DebeziumDecimal = None,
    debezium_binary: DebeziumBinary = None,
    debezium_interval: DebeziumInterval = None,
    debezium_hstore: DebeziumHstore = None,
    debezium_placeholder: DebeziumPlaceholder = None,
    heartbeat: Annotated[
        float | None,
        duration_option(
            "--heartbeat",
            help="Write a small message to the WAL this often, so that other consumers of a quiet database move on.",
            panel=_SERVICE,
        ),
    ] = None,
    heartbeat_table: Annotated[
        str | None,
        typer.Option(
            "--heartbeat-table",
            metavar="TABLE",
            help="Write a row of this table instead (slot_name, beat_at).",
            rich_help_panel=_SERVICE,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=0,
            max=65535,
            metavar="PORT",
            help="Give Prometheus metrics at /metrics, and /healthz; 0 takes a free port.",
            rich_help_panel=_SERVICE,
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(
            "--metrics-host",
            metavar="ADDRESS",
            help="Where to listen; 0.0.0.0 is everywhere.",
            rich_help_panel=_SERVICE,
            show_default="127.0.0.1",
        ),
    ] = None,
    unhealthy_after: Annotated[
        float | None,
        duration_option(
            "--unhealthy-after",
            help="/healthz: nothing confirmed for this long although the lag grew; by default 5m.",
            panel=_SERVICE,
        ),
    ] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option("--log-format", help="How notes and progress are written to stderr.", rich_help_panel=_SERVICE),
    ] = LogFormat.text,
) -> None:
    """Stream a slot's changes to standard output or to Kinesis, at least once and in commit order.

    A position is confirmed to the server only when the output has it. Connection loss, restarts and failovers are
    waited out. Ctrl-C stops cleanly: what was received is delivered and confirmed.

    Example: rdsrepl slot tail orders_cdc --publication orders --format json > orders.jsonl
    """
    from rdsrepl.tail.engine import Bounds
    from rdsrepl.tail.heartbeat import beat
    from rdsrepl.tail.metrics import exposure
    from rdsrepl.tail.run import Job, debezium, delivery

    set_log_format(ctx, log_format)
    to_kinesis = delivery(
        to,
        format,
        {
            "--partition-by": partition_by,
            "--aggregate": aggregate or None,
            "--linger": linger,
            "--requests": requests,
            "--oversize": oversize and oversize.value,
            "--dead-letter": dead_letter,
            "--endpoint-url": endpoint_url,
        },
    )
    debezium_options = debezium(
        format,
        {
            "keys": debezium_keys or None,
            "time": debezium_time,
            "decimal": debezium_decimal,
            "binary": debezium_binary,
            "interval": debezium_interval,
            "hstore": debezium_hstore,
            "placeholder": debezium_placeholder,
        },
    )
    if until_lsn is not None and until_now:
        raise BadValue("--until-lsn and --until-now exclude each other", hint="give one of them")
    job = Job(
        slot,
        format or (_default_format() if to_kinesis is None else FormatName.json),
        tuple(publication or ()),
        _pairs(plugin_option or ()),
        tuple(table or ()),
        from_lsn,
        Bounds(until_lsn, limit, duration, idle_exit, drain_timeout),
        until_now,
        not no_confirm,
        wait_active,
        to_kinesis,
        beat(heartbeat, heartbeat_table),
        exposure(metrics_port, metrics_host, unhealthy_after),
        accept_gap,
        allow_missing_publication,
        receive_timeout,
        debezium_options,
        create,
    )
    _report(ctx, job, _run(ctx, database_target(ctx), job))


def peek(
    ctx: typer.Context,
    slot: Name,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most N changes.")] = 10,
    timeout: Annotated[
        float,
        duration_option("--timeout", help="At most this long."),
    ] = 30.0,
    format: FormatOption = None,
    publication: PublicationOption = None,
    plugin_option: PluginOption = None,
    table: TableOption = None,
    debezium_keys: DebeziumKeys = False,
    debezium_time: DebeziumTime = None,
    debezium_decimal: DebeziumDecimal = None,
    debezium_binary: DebeziumBinary = None,
    debezium_interval: DebeziumInterval = None,
    debezium_hstore: DebeziumHstore = None,
    debezium_placeholder: DebeziumPlaceholder = None,
) -> None:
    """Look at a slot's next changes and consume nothing.

    The look is bounded: it ends after N changes, at the end of the WAL as it stands, or after the timeout, also in
    the middle of a transaction of any size.

    Example: rdsrepl slot peek orders_cdc --limit 5
    """
    from rdsrepl.tail.engine import Bounds
    from rdsrepl.tail.run import Job, debezium

    debezium_options = debezium(
        format,
        {
            "keys": debezium_keys or None,
            "time": debezium_time,
            "decimal": debezium_decimal,
            "binary": debezium_binary,
            "interval": debezium_interval,
            "hstore": debezium_hstore,
            "placeholder": debezium_placeholder,
        },
    )
    job = Job(
        slot,
        format or _default_format(),
        tuple(publication or ()),
        _pairs(plugin_option or ()),
        tuple(table or ()),
        bounds=Bounds(limit=limit, duration_seconds=timeout),
        until_now=True,
        confirm=False,
        active_wait_seconds=0.0,
        debezium=debezium_options,
    )
    summary = _run(ctx, database_target(ctx), job).summary
    if summary.progress.changes == 0:
        note(ctx, f"slot {slot}: no change waits" if "until" in summary.reason else f"slot {slot}: {summary.reason}")


class _Talker:
    """Tells a person at stderr how the tail is doing, or a program line by line."""

    def __init__(self, ctx: typer.Context, watch: WalWatch) -> None:
        self._ctx = ctx
        person = global_options(ctx).log_format is LogFormat.text
        self._terminal = person and sys.stderr.isatty() and not sys.stdout.isatty()
        beats = not (person and sys.stderr.isatty())
        self.every_seconds = _REFRESH_SECONDS if self._terminal else _BEAT_SECONDS
        self._quiet = global_options(ctx).quiet or not (self._terminal or beats)
        self._last_at = time.monotonic()
        self._last: Progress | None = None
        self._shown = False
        self._watch = watch

    def note(self, text: str) -> None:
        """Say a word, on a line of its own."""
        self.clear()
        note(self._ctx, text)

    def warn(self, text: str) -> None:
        """Say what must be read, on a line of its own."""
        self.clear()
        warn(self._ctx, text)

    def progress(self, progress: Progress) -> None:
        """Show the progress from time to time."""
        now = time.monotonic()
        if self._quiet or now - self._last_at < self.every_seconds:
            return
        self._watch.begin()
        before, seconds = self._last, now - self._last_at
        self._last, self._last_at = progress, now
        changes = progress.changes - (before.changes if before else 0)
        received = progress.received_bytes - (before.received_bytes if before else 0)
        lag = self._watch.lag_bytes(progress.confirmed_lsn or progress.received_lsn)
        text = (
            f"{progress.changes} changes, {changes / seconds:.0f}/s, {received / seconds / 1e6:.1f} MB/s, "
            f"lag {'?' if lag is None else format_size(lag)}, at {progress.received_lsn}, "
            f"confirmed {progress.confirmed_lsn}"
        )
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._shown = True
        else:
            log_event(
                self._ctx,
                text,
                event="progress",
                changes_per_second=round(changes / seconds, 1),
                received_bytes_per_second=round(received / seconds),
                lag_bytes=lag,
                **_fields(progress),
            )

    def clear(self) -> None:
        """Take the progress line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


def _run(ctx: typer.Context, target: Target, job: Job) -> Outcome:
    from rdsrepl.render import colours
    from rdsrepl.tail import run as jobs
    from rdsrepl.tail.wal_position import WalWatch

    watch = WalWatch(target)
    talker = _Talker(ctx, watch)
    try:
        return jobs.run(
            target,
            job,
            talker,
            colour=colours(sys.stdout) and not global_options(ctx).no_color,
            watch=watch,
            create=lambda: _create(ctx, target, job.slot_name, job.create or ""),
        )
    finally:
        talker.clear()


def _create(ctx: typer.Context, target: Target, slot: str, plugin: str) -> None:
    from rdsrepl import apply
    from rdsrepl.postgres import connection, slot_plans

    with connection.open(target) as conn:
        plan = slot_plans.create(conn, slot, plugin=plugin)
    if not plan.steps:
        return  # somebody else made it meanwhile
    outcomes = apply.run(
        plan,
        target,
        done=lambda outcome: None,
        waiting=lambda step, seconds, blockers: note(ctx, f"{step.summary}: waits for {'; '.join(blockers) or '…'}"),
    )
    position = outcomes[0].returned.get("lsn", "")
    note(ctx, f"created slot {slot} ({plugin}) at {position}: changes committed from now on are in it")


def _report(ctx: typer.Context, job: Job, outcome: Outcome) -> None:
    summary = outcome.summary
    progress = summary.progress
    rate = progress.changes / progress.seconds if progress.seconds else 0.0
    again = f", {progress.reconnects} reconnects" if progress.reconnects else ""
    confirmed = f"confirmed {progress.confirmed_lsn}" if job.confirm else "nothing confirmed (--no-confirm)"
    log_event(
        ctx,
        f"slot {job.slot_name}: {progress.changes} changes in {format_duration(progress.seconds)} ({rate:.0f}/s), "
        f"{format_size(progress.received_bytes)} received, {confirmed}{again}; stopped: {summary.reason}",
        event="stopped",
        slot=job.slot_name,
        reason=summary.reason,
        **_fields(progress),
    )


def _fields(progress: Progress) -> dict[str, object]:
    """Return a progress as a log's fields."""
    return {
        "changes": progress.changes,
        "received_bytes": progress.received_bytes,
        "received_lsn": str(progress.received_lsn),
        "confirmed_lsn": str(progress.confirmed_lsn),
        "oldest_undelivered_seconds": round(progress.oldest_undelivered_seconds, 3),
        "seconds": round(progress.seconds, 3),
        "reconnects": progress.reconnects,
    }


def _default_format() -> FormatName:
    return FormatName.pretty if sys.stdout.isatty() else FormatName.json


def _pairs(options: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for option in options:
        key, mark, value = option.partition("=")
        if not mark or not key:
            raise BadValue(f"--plugin-option {option}: not K=V", hint="for example --plugin-option format-version=1")
        pairs[key] = value
    return pairs


def register(app: typer.Typer) -> None:
    """Add the verbs to ``rdsrepl slot``."""
    app.command("tail", cls=ReadCommand)(tail)
    app.command("peek", cls=ReadCommand)(peek)
