"""The options of ``slot tail`` and ``slot peek``, and their conversion to the options of ``rdsrepl.tail``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl.cli.completion import complete_plugin, complete_publication, complete_slot, complete_table, complete_target
from rdsrepl.cli.context import LogFormat
from rdsrepl.cli.options import duration_option, flag_option, lsn_option
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.tail.formats.debezium_options import (
    PLACEHOLDER,
    BinaryMode,
    DecimalMode,
    HstoreMode,
    IntervalMode,
    TimeMode,
    debezium_options,
)
from rdsrepl.tail.options import FormatName

if TYPE_CHECKING:
    from rdsrepl.tail.formats.debezium_options import DebeziumOptions
    from rdsrepl.tail.heartbeat import HeartbeatOptions
    from rdsrepl.tail.metrics import MetricsOptions
    from rdsrepl.tail.options import KinesisOptions, StopConditions

STREAM_PANEL: Final = "What to stream"
_STOP: Final = "When to stop"
_KINESIS: Final = "To Kinesis"
_DEBEZIUM: Final = "The format debezium, by the names of Debezium's properties"
_SERVICE: Final = "As a service"

SlotArgument = Annotated[
    str, typer.Argument(metavar="SLOT", help="The slot.", autocompletion=complete_slot, show_default=False)
]


def flag_name(option: str) -> str:
    """Return an option as it is written on the command line."""
    return "--" + option.replace("_", "-")


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """Which changes, and how they are written."""

    format: Annotated[
        FormatName | None,
        typer.Option(
            "--format",
            "-f",
            help="Write changes in this format; by default pretty on a terminal, json in a pipe or a file.",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = None
    publication: Annotated[
        list[str] | None,
        typer.Option(
            "--publication",
            metavar="NAME",
            help="Stream this publication (pgoutput); optional where the database has only one.",
            rich_help_panel=STREAM_PANEL,
            autocompletion=complete_publication,
        ),
    ] = None
    plugin_option: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin-option", metavar="K=V", help="Set an option of the output plugin.", rich_help_panel=STREAM_PANEL
        ),
    ] = None
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="PATTERN",
            help="Stream only tables that match: sales.*, or orders in any schema.",
            autocompletion=complete_table,
            rich_help_panel=STREAM_PANEL,
        ),
    ] = None

    def plugin_options(self) -> dict[str, str]:
        """Return the output plugin's options.

        Raises:
            BadValue: an option is not K=V.
        """
        pairs: dict[str, str] = {}
        for option in self.plugin_option or ():
            key, mark, value = option.partition("=")
            if not mark or not key:
                raise BadValue(
                    f"--plugin-option {option} is not K=V", hint="for example --plugin-option format-version=1"
                )
            pairs[key] = value
        return pairs

    def format_or_default(self, *, to_stdout: bool) -> FormatName:
        """Return the format to write."""
        if self.format is not None:
            return self.format
        return FormatName.pretty if to_stdout and sys.stdout.isatty() else FormatName.json


@dataclass(frozen=True, slots=True)
class SlotOptions:
    """Where the stream starts, what it confirms, and how long it waits."""

    from_lsn: Annotated[
        Lsn | None,
        lsn_option(
            "--from-lsn",
            help="Start at this LSN instead of the slot's position; changes before it are never delivered.",
            panel=STREAM_PANEL,
        ),
    ] = None
    no_confirm: Annotated[
        bool,
        typer.Option(
            "--no-confirm",
            help="Confirm nothing: the slot stays at its position, and keeps its WAL.",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = False
    at_least_once: Annotated[
        bool,
        flag_option(
            "--at-least-once",
            help="Write changes again that the file has already, after a run that was killed.",
            panel=STREAM_PANEL,
        ),
    ] = False
    create: Annotated[
        str | None,
        typer.Option(
            "--create",
            metavar="PLUGIN",
            help="Create the slot with this output plugin if it does not exist.",
            autocompletion=complete_plugin,
            rich_help_panel=STREAM_PANEL,
        ),
    ] = None
    behind: Annotated[
        str | None,
        typer.Option(
            "--behind",
            metavar="TARGET",
            help="Deliver a commit only when this standby has replayed it, so that a failover to it keeps it.",
            rich_help_panel=STREAM_PANEL,
            autocompletion=complete_target,
        ),
    ] = None
    wait_active: Annotated[
        float | None,
        duration_option(
            "--wait-active",
            help="Wait this long for a slot in use; by default a little longer than wal_sender_timeout.",
            panel=STREAM_PANEL,
        ),
    ] = None
    receive_timeout: Annotated[
        float | None,
        duration_option(
            "--receive-timeout",
            help="Reconnect when the server is silent for this long; by default wal_sender_timeout, 0 is never.",
            panel=STREAM_PANEL,
        ),
    ] = None
    accept_gap: Annotated[
        bool,
        typer.Option(
            "--accept-gap",
            help="Continue although changes are missing: the slot was advanced or recreated after the last delivery.",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = False
    allow_missing_publication: Annotated[
        bool,
        typer.Option(
            "--allow-missing-publication",
            help="Continue although the server leaves out changes that are older than a publication (PostgreSQL 18).",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class StopOptions:
    """When the tail stops without a signal."""

    until_lsn: Annotated[
        Lsn | None,
        lsn_option("--until-lsn", help="Stop when everything committed before LSN is delivered.", panel=_STOP),
    ] = None
    until_now: Annotated[
        bool,
        typer.Option(
            "--until-now",
            help="Stop when everything committed before the start is delivered.",
            rich_help_panel=_STOP,
            show_default=False,
        ),
    ] = False
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Stop after N changes.", rich_help_panel=_STOP)
    ] = None
    duration: Annotated[float | None, duration_option("--duration", help="Stop after this long.", panel=_STOP)] = None
    idle_exit: Annotated[
        float | None, duration_option("--idle-exit", help="Stop after this long without a change.", panel=_STOP)
    ] = None
    drain_timeout: Annotated[
        float | None,
        duration_option(
            "--drain-timeout",
            help="At the end, deliver what was received for at most this long; the rest comes again in the next run.",
            panel=_STOP,
        ),
    ] = None

    def conditions(self) -> StopConditions:
        """Return when to stop.

        Raises:
            BadValue: two options exclude each other.
        """
        from rdsrepl.tail.options import StopConditions

        if self.until_lsn is not None and self.until_now:
            raise BadValue("--until-lsn and --until-now exclude each other", hint="choose one of them")
        return StopConditions(
            self.until_lsn, self.until_now, self.limit, self.duration, self.idle_exit, self.drain_timeout
        )


class OversizePolicy(StrEnum):
    """What ``--oversize`` takes."""

    fail = "fail"
    drop_columns = "drop-columns"


@dataclass(frozen=True, slots=True)
class KinesisFlags:
    """How changes go to Kinesis; None is the default."""

    partition_by: Annotated[
        str | None,
        typer.Option(
            "--partition-by",
            metavar="WHAT",
            help="Choose the partition key: key (table and primary key), table, transaction, or a column's name.",
            rich_help_panel=_KINESIS,
            show_default="key",
        ),
    ] = None
    aggregate: Annotated[
        bool,
        typer.Option(
            "--aggregate",
            help="Send the waiting changes of a shard as one record, in the format of the KPL.",
            rich_help_panel=_KINESIS,
            show_default=False,
        ),
    ] = False
    linger: Annotated[
        float | None,
        duration_option("--linger", help="Set the maximum batching delay; by default 10ms.", panel=_KINESIS),
    ] = None
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests",
            min=1,
            max=64,
            metavar="N",
            help="Send up to N requests at the same time.",
            rich_help_panel=_KINESIS,
            show_default="4",
        ),
    ] = None
    oversize: Annotated[
        OversizePolicy | None,
        typer.Option(
            "--oversize",
            help="When a change exceeds the stream's record size: stop, or leave out its largest values and name them.",
            rich_help_panel=_KINESIS,
            show_default="fail",
        ),
    ] = None
    dead_letter: Annotated[
        Path | None,
        typer.Option(
            "--dead-letter",
            metavar="FILE",
            help="Write changes that exceed the record size to this file.",
            rich_help_panel=_KINESIS,
        ),
    ] = None
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            "--endpoint-url",
            metavar="URL",
            help="Use this Kinesis endpoint instead of AWS's own.",
            rich_help_panel=_KINESIS,
        ),
    ] = None

    def options(self, sink: str, format: FormatName | None) -> KinesisOptions | None:
        """Return how changes go to the stream of ``kinesis:STREAM``; None for another sink.

        Raises:
            BadValue: there is no such sink, or an option does not fit the sink or the format.
        """
        from rdsrepl.tail.options import KinesisOptions, stream_name

        given = _given(self)
        stream = stream_name(sink, flag_name)
        if stream is None:
            if given:
                raise BadValue(
                    f"{flag_name(next(iter(given)))} requires --to kinesis:STREAM", hint="omit it, or name a stream"
                )
            return None
        if "linger" in given:
            given["linger_seconds"] = given.pop("linger")
        options = KinesisOptions(stream, **given)
        options.check(format, flag_name)
        return options


@dataclass(frozen=True, slots=True)
class DebeziumFlags:
    """How the format ``debezium`` writes keys and values; None is the default."""

    debezium_keys: Annotated[
        bool,
        typer.Option(
            "--debezium-keys",
            show_default=False,
            help='Write {"key":...,"value":...}, and a tombstone after each delete.',
            rich_help_panel=_DEBEZIUM,
        ),
    ] = False
    debezium_time: Annotated[
        TimeMode | None,
        typer.Option(
            "--debezium-time",
            show_default="adaptive",
            help="Set time.precision.mode: how dates and times are written.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_decimal: Annotated[
        DecimalMode | None,
        typer.Option(
            "--debezium-decimal",
            show_default="precise",
            help="Set decimal.handling.mode: how numeric and money are written.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_binary: Annotated[
        BinaryMode | None,
        typer.Option(
            "--debezium-binary",
            show_default="bytes",
            help="Set binary.handling.mode: how bytea is written.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_interval: Annotated[
        IntervalMode | None,
        typer.Option(
            "--debezium-interval",
            show_default="numeric",
            help="Set interval.handling.mode: microseconds, or ISO 8601.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_hstore: Annotated[
        HstoreMode | None,
        typer.Option(
            "--debezium-hstore",
            show_default="json",
            help="Set hstore.handling.mode: a string of JSON, or an object.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None
    debezium_placeholder: Annotated[
        str | None,
        typer.Option(
            "--debezium-placeholder",
            metavar="TEXT",
            show_default=PLACEHOLDER,
            help="Set unavailable.value.placeholder: what is written for an unchanged TOAST value.",
            rich_help_panel=_DEBEZIUM,
        ),
    ] = None

    def options(self, format: FormatName | None) -> DebeziumOptions:
        """Return how keys and values are written.

        Raises:
            BadValue: the format is another one, or a value is not valid.
        """
        given = {name.removeprefix("debezium_"): value for name, value in _given(self).items()}
        return debezium_options(flag_name, is_debezium=format is FormatName.debezium, **given)


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Heartbeat, metrics and log of a tail that runs as a service."""

    heartbeat: Annotated[
        float | None,
        duration_option(
            "--heartbeat",
            help="Write a small message to the WAL this often, so that other consumers of a quiet database advance.",
            panel=_SERVICE,
        ),
    ] = None
    heartbeat_table: Annotated[
        str | None,
        typer.Option(
            "--heartbeat-table",
            metavar="TABLE",
            help="Write a row of this table instead (slot_name, beat_at).",
            autocompletion=complete_table,
            rich_help_panel=_SERVICE,
        ),
    ] = None
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=0,
            max=65535,
            metavar="PORT",
            help="Serve Prometheus metrics at /metrics, and /healthz; 0 takes a free port.",
            rich_help_panel=_SERVICE,
        ),
    ] = None
    metrics_host: Annotated[
        str | None,
        typer.Option(
            "--metrics-host",
            metavar="ADDRESS",
            help="Listen on this address; 0.0.0.0 is every address.",
            rich_help_panel=_SERVICE,
            show_default="127.0.0.1",
        ),
    ] = None
    unhealthy_after: Annotated[
        float | None,
        duration_option(
            "--unhealthy-after",
            help="Report unhealthy when nothing was confirmed for this long while the lag grew; by default 5m.",
            panel=_SERVICE,
        ),
    ] = None
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format", help="Choose how notes and progress are written to stderr.", rich_help_panel=_SERVICE
        ),
    ] = LogFormat.text

    def heartbeat_options(self) -> HeartbeatOptions | None:
        """Return the heartbeat; None without one.

        Raises:
            BadValue: an option is missing, or its value is not valid.
        """
        from rdsrepl.tail.heartbeat import MIN_SECONDS, HeartbeatOptions

        if self.heartbeat is None:
            if self.heartbeat_table is not None:
                raise BadValue("--heartbeat-table requires --heartbeat", hint="add the interval: --heartbeat 1m")
            return None
        if self.heartbeat < MIN_SECONDS:
            raise BadValue(
                f"--heartbeat {self.heartbeat:g}s is too short: each heartbeat is a transaction",
                hint="--heartbeat 10s or longer",
            )
        if self.heartbeat_table is not None:
            from rdsrepl.postgres.sql_names import parse_name

            parse_name(self.heartbeat_table)
        return HeartbeatOptions(self.heartbeat, self.heartbeat_table)

    def metrics_options(self) -> MetricsOptions | None:
        """Return where metrics are served; None without a port.

        Raises:
            BadValue: an option for metrics without a port.
        """
        from rdsrepl.tail.metrics import MetricsOptions

        if self.metrics_port is None:
            for flag, value in (("--metrics-host", self.metrics_host), ("--unhealthy-after", self.unhealthy_after)):
                if value is not None:
                    raise BadValue(f"{flag} requires --metrics-port", hint="add a port, such as --metrics-port 9187")
            return None
        given: dict[str, Any] = {"host": self.metrics_host, "unhealthy_seconds": self.unhealthy_after}
        return MetricsOptions(self.metrics_port, **{name: value for name, value in given.items() if value is not None})


def _given(options: Any) -> dict[str, Any]:
    """Return the options of a bundle that were given."""
    values = {one.name: getattr(options, one.name) for one in fields(options)}
    return {name: value for name, value in values.items() if value is not None and value is not False}
