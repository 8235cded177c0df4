"""``rdsrepl slot tail`` and ``rdsrepl slot peek``: a slot's changes, streamed or only looked at."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from rdsrepl.cli.completion import complete_slot
from rdsrepl.cli.options import Reader, duration_option, lsn_option, shared, where
from rdsrepl.cli.talk import note, warn
from rdsrepl.errors import BadValue, NotFound, WrongPlugin
from rdsrepl.lsn import Lsn
from rdsrepl.tail.pipeline import FormatName
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rdsrepl.aws.streams import Stream
    from rdsrepl.config import Target
    from rdsrepl.tail.engine import Bounds, Progress, Summary
    from rdsrepl.tail.preflight import Findings
    from rdsrepl.tail.sinks.kinesis import KinesisSink

_BEAT_SECONDS: Final = 30.0
_REFRESH_SECONDS: Final = 1.0
_LINGER_SECONDS: Final = 0.01
_REQUESTS: Final = 4

_STREAM: Final = "What to stream"
_BOUNDS: Final = "When to stop"
_KINESIS: Final = "To Kinesis"

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


class OversizePolicy(StrEnum):
    """What ``--oversize`` takes."""

    fail = "fail"
    drop_columns = "drop-columns"


@dataclass(frozen=True, slots=True)
class _KinesisWish:
    """What the options say of Kinesis."""

    stream: str
    partition_by: str
    aggregate: bool
    linger_seconds: float
    requests: int
    oversize: Literal["fail", "drop-columns"]
    dead_letter: Path | None
    endpoint_url: str | None


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the options say, in one piece."""

    slot_name: str
    format: FormatName
    publications: tuple[str, ...]
    plugin_options: Mapping[str, str]
    tables: tuple[str, ...]
    from_lsn: Lsn | None
    bounds: Bounds
    until_now: bool
    confirm: bool
    active_wait_seconds: float | None
    kinesis: _KinesisWish | None = None


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
) -> None:
    """Stream a slot's changes to standard output or to Kinesis, at least once and in commit order.

    A position is confirmed to the server only when the output has it. Connection loss, restarts and failovers are
    waited out. Ctrl-C stops cleanly: what was received is delivered and confirmed.

    Example: rdsrepl slot tail orders_cdc --publication orders --format json > orders.jsonl
    """
    from rdsrepl.tail.engine import Bounds

    kinesis = _kinesis(
        to,
        format,
        {
            "--partition-by": partition_by,
            "--aggregate": aggregate or None,
            "--linger": linger,
            "--requests": requests,
            "--oversize": oversize,
            "--dead-letter": dead_letter,
            "--endpoint-url": endpoint_url,
        },
    )
    if until_lsn is not None and until_now:
        raise BadValue("--until-lsn and --until-now exclude each other", hint="give one of them")
    wish = _Wish(
        slot,
        format or (_default_format() if kinesis is None else FormatName.json),
        tuple(publication or ()),
        _pairs(plugin_option or ()),
        tuple(table or ()),
        from_lsn,
        Bounds(until_lsn, limit, duration, idle_exit),
        until_now,
        not no_confirm,
        wait_active,
        kinesis,
    )
    target = where(ctx)
    if create is not None:
        _create(ctx, target, wish, create)
    summary = _run(ctx, target, wish)
    _report(ctx, wish, summary)


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
) -> None:
    """Look at a slot's next changes and consume nothing.

    The look is bounded: it ends after N changes, at the end of the WAL as it stands, or after the timeout, also in
    the middle of a transaction of any size.

    Example: rdsrepl slot peek orders_cdc --limit 5
    """
    from rdsrepl.tail.engine import Bounds

    wish = _Wish(
        slot,
        format or _default_format(),
        tuple(publication or ()),
        _pairs(plugin_option or ()),
        tuple(table or ()),
        None,
        Bounds(None, limit, timeout, None),
        True,
        False,
        0.0,
    )
    summary = _run(ctx, where(ctx), wish)
    if summary.progress.changes == 0:
        note(ctx, f"slot {slot}: no change waits" if "until" in summary.reason else f"slot {slot}: {summary.reason}")


def _kinesis(to: str, format: FormatName | None, options: Mapping[str, Any]) -> _KinesisWish | None:
    """Return what the options say of Kinesis; None for standard output.

    Raises:
        BadValue: there is no such sink, or an option makes no sense with it.
    """
    kind, _, name = to.partition(":")
    given = {option: value for option, value in options.items() if value is not None}
    if to == "-":
        if given:
            raise BadValue(f"{next(iter(given))} is for --to kinesis:STREAM", hint="leave it out, or name a stream")
        return None
    if kind != "kinesis" or not name:
        raise BadValue(f"--to {to}: no such sink", hint="- is standard output, kinesis:STREAM a data stream")
    by = given.get("--partition-by", "key")
    allowed = {FormatName.json, FormatName.debezium}
    if by == "transaction":
        allowed.add(FormatName.wal2json)  # its begin and commit belong to no table
    if format is not None and format not in allowed:
        raise BadValue(
            f"--format {format.value} does not go to Kinesis with --partition-by {by}",
            hint="--format json or debezium; wal2json with --partition-by transaction",
        )
    if not by:
        raise BadValue("--partition-by is empty", hint="key, table, transaction, or a column's name")
    if "--oversize" in given and given["--oversize"] == "drop-columns" and format is FormatName.wal2json:
        raise BadValue("--oversize drop-columns knows json and debezium", hint="--dead-letter FILE keeps any change")
    return _KinesisWish(
        stream=name,
        partition_by=by,
        aggregate="--aggregate" in given,
        linger_seconds=given.get("--linger", _LINGER_SECONDS),
        requests=given.get("--requests", _REQUESTS),
        oversize=given["--oversize"].value if "--oversize" in given else "fail",
        dead_letter=given.get("--dead-letter"),
        endpoint_url=given.get("--endpoint-url"),
    )


class _Talker:
    """Tells a person at stderr how the tail is doing."""

    def __init__(self, ctx: typer.Context, target: Target) -> None:
        self._ctx = ctx
        self._terminal = sys.stderr.isatty() and not sys.stdout.isatty()
        self._beats = not sys.stderr.isatty()
        self._every = _REFRESH_SECONDS if self._terminal else _BEAT_SECONDS
        self._quiet = shared(ctx).quiet or not (self._terminal or self._beats)
        self._last_at = time.monotonic()
        self._last: Progress | None = None
        self._shown = False
        self._watch = _WalWatch(target, self._every)

    def note(self, text: str) -> None:
        """Say a word, on a line of its own."""
        self.clear()
        note(self._ctx, text)

    def progress(self, progress: Progress) -> None:
        """Show the progress from time to time."""
        now = time.monotonic()
        if self._quiet or now - self._last_at < self._every:
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
            note(self._ctx, text)

    def clear(self) -> None:
        """Take the progress line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


class _WalWatch:
    """Asks the server now and then how far its WAL is, in a thread: the tail never waits for the answer."""

    def __init__(self, target: Target, every_seconds: float) -> None:
        self._target = target
        self._every = every_seconds
        self._lsn: int | None = None
        self._begun = False

    def begin(self) -> None:
        """Start asking, the first time it is called."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._work, name="wal-watch", daemon=True).start()

    def lag_bytes(self, lsn: int) -> int | None:
        """Return how much WAL lies behind a position; None before anything is known."""
        return None if self._lsn is None or not lsn else max(0, self._lsn - lsn)

    def _work(self) -> None:
        from rdsrepl.errors import Error
        from rdsrepl.postgres import connection

        while True:
            try:
                with connection.open(self._target) as conn:
                    while True:
                        self._lsn = connection.current_lsn(conn)
                        time.sleep(max(5.0, self._every))
            except Error:
                time.sleep(max(5.0, self._every))


def _run(ctx: typer.Context, target: Target, wish: _Wish) -> Summary:
    """Look, assemble, stream."""
    from rdsrepl.render import colours
    from rdsrepl.tail import preflight
    from rdsrepl.tail.catalog import Catalog
    from rdsrepl.tail.changes import TableFilter
    from rdsrepl.tail.engine import Stream, Tail
    from rdsrepl.tail.pipeline import assemble
    from rdsrepl.tail.sinks.stdout import StdoutSink, mend_torn_line

    stream_to = None if wish.kinesis is None else _stream(target, wish.kinesis)
    findings = preflight.look(target, wish.slot_name, wish.publications)
    if len(findings.publications) == 1 and not wish.publications:
        note(ctx, f"publication {findings.publications[0]}: the only one here")
    bounds = replace(wish.bounds, until_lsn=int(findings.current_lsn)) if wish.until_now else wish.bounds
    _check_from(ctx, wish, findings)
    if wish.format is FormatName.raw and findings.slot.plugin == "pgoutput" and sys.stdout.isatty():
        raise WrongPlugin(
            "pgoutput's messages are binary, and this is a terminal", hint="--format json, or redirect the output"
        )
    catalog = Catalog(target)
    pipeline = assemble(
        findings,
        wish.format,
        catalog,
        tables=TableFilter(wish.tables),
        given=wish.plugin_options,
        until_lsn=bounds.until_lsn,
        colour=colours(sys.stdout) and not shared(ctx).no_color,
        partition_by=None if wish.kinesis is None else wish.kinesis.partition_by,
    )
    if (
        wish.kinesis is None
        and wish.format in (FormatName.json, FormatName.debezium, FormatName.wal2json)
        and (torn := mend_torn_line())
    ):
        note(ctx, f"took an unfinished line of {torn} bytes off the end of the file; its change comes again")
    talker = _Talker(ctx, target)
    stream = Stream(
        target,
        wish.slot_name,
        pipeline.options,
        pipeline.settings,
        int(wish.from_lsn or 0),
        wish.confirm,
        wish.active_wait_seconds,
    )
    kinesis = None if stream_to is None else _kinesis_sink(target, wish, stream_to, talker)
    run = Tail(
        stream,
        bounds,
        pipeline.decoder,
        StdoutSink() if kinesis is None else kinesis,
        talker,
        lambda primary: preflight.look(target, wish.slot_name, findings.publications, primary=primary),
    )
    try:
        return run.run()
    finally:
        talker.clear()
        catalog.close()
        if kinesis is not None:
            counts = kinesis.counts
            note(
                ctx,
                f"{counts.records} records acknowledged in {counts.requests} requests, "
                f"{counts.retries} sent again, {counts.throttles} of them throttled",
            )
            if counts.shortened:
                warn(ctx, f"{counts.shortened} changes were too large: their largest values were left out")
            if counts.dead_letters:
                where_to = wish.kinesis.dead_letter if wish.kinesis is not None else None
                warn(ctx, f"{counts.dead_letters} changes were too large and lie in {where_to}")


def _stream(target: Target, wish: _KinesisWish) -> Stream:
    """Look at the stream before anything is streamed.

    Raises:
        Error: there is none, it takes nothing now, or it may not be looked at.
    """
    from rdsrepl.aws import streams

    aws = target.aws if wish.endpoint_url is None else replace(target.aws, endpoint_url=wish.endpoint_url)
    found = streams.get(aws, wish.stream)
    streams.require_usable(found)
    return found


def _kinesis_sink(target: Target, wish: _Wish, stream: Stream, talker: _Talker) -> KinesisSink:
    from rdsrepl.tail.sinks.kinesis import KinesisSink, limits
    from rdsrepl.tail.sinks.oversize import Oversize

    assert wish.kinesis is not None
    given = wish.kinesis
    aws = target.aws if given.endpoint_url is None else replace(target.aws, endpoint_url=given.endpoint_url)
    return KinesisSink(
        aws,
        stream,
        limits(stream, linger_seconds=given.linger_seconds, aggregate=given.aggregate),
        requests=given.requests,
        oversize=Oversize(given.oversize, given.dead_letter),
        say=talker.note,
    )


def _create(ctx: typer.Context, target: Target, wish: _Wish, plugin: str) -> None:
    """Create the slot where there is none; whatever streaming needs is looked at before."""
    from rdsrepl import apply
    from rdsrepl.postgres import connection, slots
    from rdsrepl.tail import preflight

    with connection.open(target) as conn:
        try:
            slots.get(conn, wish.slot_name)
            return
        except NotFound:
            pass
        if plugin == "pgoutput":
            preflight.published(conn, wish.publications)
        plan = slots.create(conn, wish.slot_name, plugin=plugin)
    outcomes = apply.run(
        plan,
        target,
        done=lambda outcome: None,
        waiting=lambda step, seconds, blockers: note(ctx, f"{step.summary}: waits for {'; '.join(blockers) or '…'}"),
    )
    position = outcomes[0].returned.get("lsn", "")
    note(ctx, f"created slot {wish.slot_name} ({plugin}) at {position}: changes committed from now on are in it")


def _check_from(ctx: typer.Context, wish: _Wish, findings: Findings) -> None:
    confirmed = findings.slot.confirmed_flush_lsn
    if wish.from_lsn is None or confirmed is None:
        return
    if wish.from_lsn < confirmed:
        raise BadValue(
            f"--from-lsn {wish.from_lsn}: slot {wish.slot_name} has confirmed up to {confirmed}, and cannot go back",
            hint="leave --from-lsn out: the stream begins where the slot stands",
        )
    if wish.from_lsn > confirmed and wish.confirm:
        warn(
            ctx,
            f"--from-lsn skips {format_size(wish.from_lsn - confirmed)} of WAL after {confirmed}; "
            "transactions there are never delivered once later ones are confirmed",
        )


def _report(ctx: typer.Context, wish: _Wish, summary: Summary) -> None:
    progress = summary.progress
    rate = progress.changes / progress.seconds if progress.seconds else 0.0
    again = f", {progress.reconnects} reconnects" if progress.reconnects else ""
    confirmed = f"confirmed {progress.confirmed_lsn}" if wish.confirm else "nothing confirmed (--no-confirm)"
    note(
        ctx,
        f"slot {wish.slot_name}: {progress.changes} changes in {format_duration(progress.seconds)} ({rate:.0f}/s), "
        f"{format_size(progress.received_bytes)} received, {confirmed}{again}; stopped: {summary.reason}",
    )


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
    app.command("tail", cls=Reader)(tail)
    app.command("peek", cls=Reader)(peek)
