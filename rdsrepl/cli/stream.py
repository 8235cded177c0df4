"""``rdsrepl stream``: manage the Kinesis data streams that ``slot tail --to kinesis:STREAM`` writes to."""

from __future__ import annotations

import base64
import sys
import time
from contextlib import ExitStack, suppress
from datetime import UTC
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rdsrepl.cli import rds_options
from rdsrepl.cli.command_classes import AwsListCommand, AwsReadCommand, AwsWriteCommand
from rdsrepl.cli.completion import complete_stream
from rdsrepl.cli.confirm import TypedConfirmation, confirm_and_apply
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import print_list
from rdsrepl.cli.options import duration_option, option_parser
from rdsrepl.cli.targets import aws_target
from rdsrepl.errors import Error
from rdsrepl.render import Column, Format, Listing, emit, facts, size
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import json_text, shown
from rdsrepl.units import parse_size_in

if TYPE_CHECKING:
    from rdsrepl.aws.stream_reader import Received

app = typer.Typer(no_args_is_help=True, help="Kinesis data streams: the destination of slot tail --to kinesis:STREAM.")

Name = Annotated[
    str, typer.Argument(metavar="STREAM", help="The stream's name, or its ARN.", autocompletion=complete_stream)
]


class Side(StrEnum):
    """The values of ``policy --for``."""

    writer = "writer"
    reader = "reader"


@app.command("list", cls=AwsListCommand)
def list_(ctx: typer.Context) -> None:
    """List the region's streams.

    Example: rdsrepl stream list
    """
    from rdsrepl.aws import streams

    columns = (Column("STREAM", lambda row: row, "name", kind="name"),)
    print_list(ctx, Listing(str, columns, "no streams in this region"), lambda: streams.ls(aws_target(ctx).aws))


@app.command(cls=AwsReadCommand)
def show(ctx: typer.Context, stream: Name) -> None:
    """Show a stream: status, shards, record size limit, and writes throttled in the last hour.

    Example: rdsrepl stream show changes
    """
    from rdsrepl.aws import metrics, streams

    aws = aws_target(ctx).aws
    described = streams.get(aws, stream)
    refused: float | None
    try:
        name = {"StreamName": described.name}
        refused = metrics.total(aws, "AWS/Kinesis", "WriteProvisionedThroughputExceeded", name)
    except Error as exc:
        note(ctx, f"could not read the metrics from CloudWatch: {exc.message}")
        refused = None
    emit(
        {"stream": described, "write_throttles_last_hour": refused},
        global_options(ctx).output,
        lambda: facts(
            [
                ("stream", described.name),
                ("ARN", described.arn),
                ("status", described.status),
                ("mode, shards", f"{described.mode.lower().replace('_', '-')}, {described.shards}"),
                ("record", f"up to {size(described.record_bytes)}, partition key included"),
                ("retention", counted(described.retention_hours, "hour")),
                ("encryption", described.encryption),
                (
                    "writes throttled",
                    "?" if refused is None else f"{counted(round(refused), 'record')} in the last hour",
                ),
            ]
        ),
    )


@app.command(cls=AwsWriteCommand)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="STREAM", help="The new stream's name.")],
    shards: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Create this fixed number of shards.", show_default="on-demand"),
    ] = None,
    record_size: Annotated[
        int | None,
        typer.Option(
            parser=option_parser(partial(parse_size_in, "KiB", least=1024, most=10240)),
            metavar="KIB",
            help="Allow records of up to this size, in KiB or with a unit: 2048, 10MB.",
            show_default="1024",
        ),
    ] = None,
    timeout: rds_options.Timeout = 300.0,
) -> None:
    """Create a stream and wait until it is active.

    A shard accepts 1 MB and 1,000 records a second; an on-demand stream scales with the load.

    Example: rdsrepl stream create changes --shards 2
    """
    from rdsrepl.aws import streams

    target = aws_target(ctx)
    plan = streams.create(target.aws, name, shards=shards, record_kib=record_size, timeout_seconds=timeout)
    if confirm_and_apply(ctx, plan, target=target):
        note(ctx, f"next: {command('slot tail SLOT --to kinesis:{}', name)}")


@app.command(cls=AwsWriteCommand)
def delete(
    ctx: typer.Context, stream: Name, confirm: rds_options.Confirm = None, timeout: rds_options.Timeout = 300.0
) -> None:
    """Delete a stream and its records; confirm with its name.

    Example: rdsrepl stream delete changes
    """
    from rdsrepl.aws import streams

    target = aws_target(ctx)
    described = streams.get(target.aws, stream)
    plan = streams.delete(described, timeout_seconds=timeout)
    confirm_and_apply(ctx, plan, target=target, typed=TypedConfirmation(described.name, "--confirm", confirm))


@app.command(cls=AwsReadCommand)
def tail(
    ctx: typer.Context,
    stream: Name,
    from_: Annotated[
        str,
        typer.Option(
            "--from", metavar="WHERE", help="Start at latest, trim-horizon, or a time such as 2026-01-31T12:00Z."
        ),
    ] = "latest",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N records.")] = None,
    duration: Annotated[float | None, duration_option("--duration", help="Stop after this long.")] = None,
    idle_exit: Annotated[
        float | None, duration_option("--idle-exit", help="Stop after this long without a record.")
    ] = None,
) -> None:
    """Print the records of a stream from all its shards, and follow it; aggregated records are printed one by one.

    With -o json each record is an object with its partition key, shard and sequence number. Resharding is followed.

    Example: rdsrepl stream tail changes --from trim-horizon --limit 10
    """
    from rdsrepl.aws import stream_reader, streams

    start = stream_reader.Start.parse(from_, "--from")
    aws = aws_target(ctx).aws
    described = streams.get(aws, stream)
    as_json = not global_options(ctx).output.is_table
    started = last_record = time.monotonic()
    count = 0
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        reader = stack.enter_context(stream_reader.opened(aws, stream, start))
        for batch in reader.batches():
            wanted = batch if limit is None else batch[: limit - count]
            for record in wanted:
                _print(record, as_json=as_json)
            sys.stdout.flush()
            count += len(wanted)
            now = time.monotonic()
            last_record = now if batch else last_record
            if (limit is not None and count >= limit) or (duration is not None and now - started >= duration):
                break
            if idle_exit is not None and now - last_record >= idle_exit:
                break
    note(ctx, f"stream {described.name}: {counted(count, 'record')}")


@app.command(cls=AwsReadCommand)
def policy(
    ctx: typer.Context,
    stream: Name,
    side: Annotated[
        Side, typer.Option("--for", help="Choose writer for slot tail, reader for a consumer.")
    ] = Side.writer,
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="Limit the policy to this AWS account, twelve digits.")
    ] = None,
    kms_key: Annotated[
        str | None, typer.Option("--kms-key", metavar="ID", help="Name the customer managed key of the stream.")
    ] = None,
) -> None:
    """Print the least IAM policy for writing to a stream, or for reading it, without calling AWS.

    Example: rdsrepl stream policy changes --for reader --region eu-west-1 --account 123456789012
    """
    from rdsrepl.aws import iam_policy, streams

    streams.reference(stream)
    scope = iam_policy.PolicyScope(region=aws_target(ctx).aws.region, account=account, stream=stream, kms_key=kms_key)
    document = iam_policy.stream_policy(side.value, scope).document()
    output = global_options(ctx).output
    emit(document, Format.yaml if output is Format.yaml else Format.json, lambda: "")


def _print(record: Received, *, as_json: bool) -> None:
    if not as_json:
        text = record.data.decode("utf-8", "replace")
        # A program gets the record unchanged; on a terminal, control characters of a producer are escaped.
        sys.stdout.write((shown(text) if sys.stdout.isatty() else text) + "\n")
        return
    document: dict[str, Any] = {
        "shard_id": record.shard_id,
        "sequence_number": record.sequence_number,
        "arrived": record.arrived.astimezone(UTC).isoformat(),
        "partition_key": record.partition_key,
    }
    try:
        document["data"] = record.data.decode()
    except UnicodeDecodeError:
        document["data_base64"] = base64.b64encode(record.data).decode()
    sys.stdout.write(json_text(document) + "\n")
