"""The options of ``slot tail`` for a Kinesis data stream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.option_bundles import flag_name, given_options
from rdsrepl.cli.options import duration_option
from rdsrepl.errors import BadValue

if TYPE_CHECKING:
    from rdsrepl.tail.options import FormatName, KinesisOptions

_KINESIS: Final = "To Kinesis"


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

        given = given_options(self)
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
