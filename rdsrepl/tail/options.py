"""What is wanted of one run of the tail; the command line and the Lambda function build these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from rdsrepl.config import Target
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.tail.formats.debezium_options import DebeziumOptions
from rdsrepl.tail.heartbeat import HeartbeatOptions
from rdsrepl.tail.metrics import MetricsOptions
from rdsrepl.tail.model import TableFilter

#: returns what the user calls an option, so that an error names ``--partition-by`` or ``RDSREPL_PARTITION_BY``.
OptionName = Callable[[str], str]

_KINESIS: Final = "kinesis"
_FILE: Final = "file"
# What ``partition_by`` can be besides a column.
_PARTITION_RULES: Final = frozenset({"key", "table", "transaction"})


class FormatName(StrEnum):
    """How a change is written."""

    json = "json"
    wal2json = "wal2json"
    debezium = "debezium"
    raw = "raw"
    pretty = "pretty"


class Compression(StrEnum):
    """How closed files are compressed."""

    gzip = "gzip"
    zstd = "zstd"


@dataclass(frozen=True, slots=True)
class StopConditions:
    """When a run stops without a signal; None is never.

    Attributes:
        until_lsn: after every transaction whose commit record begins before it.
        until_now: after everything that was committed before the start; the run then sets ``until_lsn``.
        limit: after this many changes.
        duration_seconds: after this long.
        idle_seconds: after this long without a change.
        drain_seconds: how long the delivery of what was received may take at the end; what is not delivered by then
            is not confirmed, and comes again.
    """

    until_lsn: int | None = None
    until_now: bool = False
    limit: int | None = None
    duration_seconds: float | None = None
    idle_seconds: float | None = None
    drain_seconds: float | None = None

    @property
    def until_reason(self) -> str:
        """Why a run stops that reached ``until_lsn``."""
        return "caught up" if self.until_now else "reached --until-lsn"


@dataclass(frozen=True, slots=True)
class KinesisOptions:
    """How changes go to Kinesis.

    Attributes:
        stream: its name or ARN.
        partition_by: key, table, transaction, or a column's name.
        aggregate: whether waiting changes of one shard go as one record, in the format of the KPL.
        linger_seconds: the maximum batching delay of a change.
        requests: how many requests are in progress at the same time.
        oversize: what happens to a change that is larger than the stream's limit.
        dead_letter: a file for such changes.
        endpoint_url: of Kinesis, instead of AWS's own.
    """

    stream: str
    partition_by: str = "key"
    aggregate: bool = False
    linger_seconds: float = 0.01
    requests: int = 4
    oversize: Literal["fail", "drop-columns"] = "fail"
    dead_letter: Path | None = None
    endpoint_url: str | None = None

    def __post_init__(self) -> None:
        if self.partition_by.lower() in _PARTITION_RULES:
            object.__setattr__(self, "partition_by", self.partition_by.lower())

    def check(self, format: FormatName | None, option_name: OptionName) -> None:
        """Make sure that the options fit each other and the format; None is the default format.

        Raises:
            BadValue: they do not.
        """
        allowed = {FormatName.json, FormatName.debezium}
        if self.partition_by == "transaction":
            allowed.add(FormatName.wal2json)  # its begin and commit lines belong to no table
        if format is not None and format not in allowed:
            raise BadValue(
                f"{option_name('format')} {format.value} is not supported with {option_name('partition_by')} "
                f"{self.partition_by} for a Kinesis stream",
                hint=f"{option_name('format')} json or debezium; wal2json with {option_name('partition_by')} "
                "transaction",
            )
        if not self.partition_by:
            raise BadValue(
                f"{option_name('partition_by')} is empty", hint="key, table, transaction, or a column's name"
            )
        if self.oversize == "drop-columns" and format is FormatName.wal2json:
            raise BadValue(
                f"{option_name('oversize')} drop-columns is not supported with {option_name('format')} wal2json",
                hint=f"{option_name('format')} json or debezium",
            )


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How changes go to a file by its name.

    Attributes:
        path: its name.
        rotate_size: close the file at the first end of a transaction after this many bytes; None is never.
        rotate_seconds: the same for the time since its first change.
        compress: how closed files are compressed; None is not.
    """

    path: Path
    rotate_size: int | None = None
    rotate_seconds: float | None = None
    compress: Compression | None = None


def stream_name(sink: str, option_name: OptionName) -> str | None:
    """Return the stream of the sink ``kinesis:STREAM``; None for another sink.

    Raises:
        BadValue: there is no such sink.
    """
    kind, _, name = sink.partition(":")
    if sink == "-" or (kind.lower() == _FILE and name):
        return None
    if kind.lower() != _KINESIS or not name:
        raise BadValue(
            f"{option_name('to')} {sink} is not a sink",
            hint="- is standard output, file:PATH a file, kinesis:STREAM a data stream",
        )
    return name


def file_path(sink: str) -> Path | None:
    """Return the path of the sink ``file:PATH``; None for another sink."""
    kind, _, name = sink.partition(":")
    return Path(name) if kind.lower() == _FILE and name else None


@dataclass(frozen=True, slots=True)
class TailOptions:
    """What is wanted of one run.

    Attributes:
        slot_name: the slot.
        format: how a change is written.
        publications: to stream (pgoutput); empty is the database's only one.
        plugin_options: replace ours of the same name.
        tables: the tables to stream.
        from_lsn: where to start instead of at the slot's position.
        stop: when to stop without a signal.
        confirm: whether positions are confirmed.
        at_least_once: whether changes that a regular file has already may be written to it again.
        active_wait_seconds: how long to wait for a slot that another connection uses; None is a little longer than
            the server's ``wal_sender_timeout``, after which it releases the slot of a dead consumer.
        kinesis: the stream; None is a file or standard output.
        file: a file by its name; None is standard output or a stream.
        heartbeat: a heartbeat in the database.
        metrics: metrics over HTTP.
        accept_gap: go on where changes are missing between what was delivered and the slot's position.
        allow_missing_publication: go on where the server (18) leaves changes out that are older than a publication.
        receive_timeout_seconds: after how long without a message from the server a connection is dead; 0 is never,
            None is ``wal_sender_timeout``, and half a minute for the answer to a statement.
        debezium: how the format ``debezium`` writes keys and values.
        create: the output plugin of the slot to create if it does not exist.
        behind: the standby that must have replayed a commit before it is delivered.
    """

    slot_name: str
    format: FormatName
    publications: tuple[str, ...] = ()
    plugin_options: Mapping[str, str] = field(default_factory=dict)
    tables: TableFilter = field(default_factory=TableFilter)
    from_lsn: Lsn | None = None
    stop: StopConditions = field(default_factory=StopConditions)
    confirm: bool = True
    at_least_once: bool = False
    active_wait_seconds: float | None = None
    kinesis: KinesisOptions | None = None
    file: FileOptions | None = None
    heartbeat: HeartbeatOptions | None = None
    metrics: MetricsOptions | None = None
    accept_gap: bool = False
    allow_missing_publication: bool = False
    receive_timeout_seconds: float | None = None
    debezium: DebeziumOptions = field(default_factory=DebeziumOptions)
    create: str | None = None
    behind: Target | None = None
