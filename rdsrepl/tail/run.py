"""One run of the tail, from what is wanted to what came of it: look, assemble, stream.

The command line and the Lambda function say what they want as a ``Job``; this is all they share.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from rdsrepl.errors import BadValue, Error, Unsupported, WrongPlugin
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import versions
from rdsrepl.tail import preflight
from rdsrepl.tail.continuity import LastRun
from rdsrepl.tail.engine import Bounds, Observer, Stream, Summary, Tail
from rdsrepl.tail.formats.catalog import Catalog
from rdsrepl.tail.formats.debezium_options import DebeziumOptions, debezium_options
from rdsrepl.tail.heartbeat import Beat, Heartbeat
from rdsrepl.tail.metrics import Exporter, Exposure
from rdsrepl.tail.model import TableFilter
from rdsrepl.tail.pipeline import FormatName, assemble
from rdsrepl.tail.receiver import printable
from rdsrepl.tail.sinks.stdout import StdoutSink, mend_torn_line, require_writable
from rdsrepl.tail.wal_position import WalWatch
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.aws.streams import KinesisStream as KinesisStream
    from rdsrepl.config import Aws, Target
    from rdsrepl.tail.preflight import Findings
    from rdsrepl.tail.sinks import Sink
    from rdsrepl.tail.sinks.kinesis import Counts, KinesisSink

LINGER_SECONDS: Final = 0.01
REQUESTS: Final = 4
_ANSWER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """How changes go to Kinesis.

    Attributes:
        stream: its name or ARN.
        partition_by: key, table, transaction, or a column's name.
        aggregate: whether changes of one key that wait go as one record.
        linger_seconds: how long a change may wait for company.
        requests: how many are on their way at once.
        oversize: what becomes of a change larger than the stream takes.
        dead_letter: a file for such changes.
        endpoint_url: of Kinesis, in place of AWS's own.
    """

    stream: str
    partition_by: str = "key"
    aggregate: bool = False
    linger_seconds: float = LINGER_SECONDS
    requests: int = REQUESTS
    oversize: Literal["fail", "drop-columns"] = "fail"
    dead_letter: Path | None = None
    endpoint_url: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What is wanted.

    Attributes:
        slot_name: the slot.
        format: how a change is written.
        publications: to stream (pgoutput); empty is the database's only one.
        plugin_options: they win over ours.
        tables: patterns of those wanted; empty is all.
        from_lsn: where to begin instead of where the slot stands.
        bounds: when to stop by itself.
        until_now: stop when everything committed before the start is delivered.
        confirm: whether positions are confirmed.
        active_wait_seconds: how long to wait for a slot in use; None is a little over ``wal_sender_timeout``.
        delivery: to Kinesis; None is standard output.
        beat: a heartbeat in the database.
        exposure: metrics over HTTP.
        accept_gap: go on where changes are missing between what was delivered and where the slot stands.
        allow_missing_publication: go on where the server (18) leaves changes out that were made before a publication.
        create: the output plugin of the slot to be made where there is none.
        receive_timeout_seconds: after how long without a sign of the server's a connection is taken for dead; 0 is
            never, None is ``wal_sender_timeout``, and half a minute for the answer to a statement.
        debezium: how the format ``debezium`` writes keys and values.
    """

    slot_name: str
    format: FormatName
    publications: tuple[str, ...] = ()
    plugin_options: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    from_lsn: Lsn | None = None
    bounds: Bounds = field(default_factory=Bounds)
    until_now: bool = False
    confirm: bool = True
    active_wait_seconds: float | None = None
    delivery: Delivery | None = None
    beat: Beat | None = None
    exposure: Exposure | None = None
    accept_gap: bool = False
    allow_missing_publication: bool = False
    receive_timeout_seconds: float | None = None
    debezium: DebeziumOptions = field(default_factory=DebeziumOptions)
    create: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it; ``counts`` says what went to Kinesis, None where nothing was to go there."""

    summary: Summary
    counts: Counts | None = None


def delivery(to: str, format: FormatName | None, options: Mapping[str, Any]) -> Delivery | None:
    """Return how changes go to Kinesis; None for standard output.

    Args:
        to: ``-`` or ``kinesis:STREAM``.
        format: the one that was asked for.
        options: those of Kinesis by their names on the command line; None is not given.

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
    if given.get("--oversize") == "drop-columns" and format is FormatName.wal2json:
        raise BadValue("--oversize drop-columns knows json and debezium", hint="--dead-letter FILE keeps any change")
    return Delivery(
        stream=name,
        partition_by=by,
        aggregate=bool(given.get("--aggregate", False)),
        linger_seconds=given.get("--linger", LINGER_SECONDS),
        requests=given.get("--requests", REQUESTS),
        oversize=given.get("--oversize", "fail"),
        dead_letter=given.get("--dead-letter"),
        endpoint_url=given.get("--endpoint-url"),
    )


def debezium(format: FormatName | None, given: Mapping[str, Any]) -> DebeziumOptions:
    """Return how the format ``debezium`` writes keys and values.

    Args:
        format: the one that was asked for.
        given: the options by their attributes' names; None is not given.

    Raises:
        BadValue: there is no such mode, or the format is another one.
    """
    named = [name for name, value in given.items() if value is not None]
    if named and format is not FormatName.debezium:
        raise BadValue(f"--debezium-{named[0]} is for --format debezium", hint="add --format debezium, or leave it out")
    return debezium_options(given)


def run(
    target: Target,
    job: Job,
    observer: Observer,
    *,
    colour: bool = False,
    watch: WalWatch | None = None,
    create: Callable[[], None] | None = None,
) -> Outcome:
    """Stream until a bound, a signal or an error that does not pass.

    Args:
        target: the database.
        job: what is wanted.
        observer: is told what happens.
        colour: whether the ``pretty`` format is coloured.
        watch: knows how far the server's WAL is; made here where metrics need one.
        create: makes the slot, where ``job.create`` names a plugin; called when everything else was checked.

    Raises:
        Error: the stream or the slot is not there, is held, is invalidated; an option does not fit; the sink failed.
            What was delivered until then is confirmed as far as the connection still allows.
    """
    stream = None if job.delivery is None else _stream(target, job.delivery)
    # Not for the heartbeat, whose statement may wait for a lock: another one would only queue behind it.
    beating, target = target, replace(target, answer_seconds=_answer_seconds(job))
    findings = preflight.look(target, job.slot_name, job.publications, create=job.create)
    if len(findings.publications) == 1 and not job.publications:
        observer.note(f"publication {printable(findings.publications[0])}: the only one here")
    bounds = replace(job.bounds, until_lsn=int(findings.current_lsn)) if job.until_now else job.bounds
    _check_from(job, findings, observer)
    if job.allow_missing_publication and findings.version < versions.MISSING_PUBLICATIONS_SKIPPED_SINCE:
        raise Unsupported(
            f"--allow-missing-publication: PostgreSQL {findings.version} ends the stream at such a change, and leaves "
            "none out",
            hint="leave it out; it is for PostgreSQL 18 and later",
        )
    if job.format is FormatName.raw and findings.slot.plugin == "pgoutput" and sys.stdout.isatty():
        raise WrongPlugin(
            "pgoutput's messages are binary, and this is a terminal", hint="--format json, or redirect the output"
        )
    heartbeat = None if job.beat is None else Heartbeat(beating, job.slot_name, job.beat, observer.note)
    if heartbeat is not None:
        heartbeat.check(findings)
    catalog = Catalog(target, observer.warn)
    exporter: Exporter | None = None
    sink: Sink | None = None
    try:
        pipeline = assemble(
            findings,
            job.format,
            catalog,
            tables=TableFilter(job.tables),
            given=job.plugin_options,
            until_lsn=bounds.until_lsn,
            colour=colour,
            partition_by=None if job.delivery is None else job.delivery.partition_by,
            debezium=job.debezium,
        )
        # pgoutput's own messages are no lines: their bytes may hold newlines, and end where their content says.
        is_lines = job.format is not FormatName.raw or findings.slot.plugin != "pgoutput"
        if job.delivery is None:
            require_writable()
        if job.delivery is None and is_lines and (torn := mend_torn_line()):
            observer.note(f"took an unfinished line of {torn} bytes off the end of the file; its change comes again")
        if job.exposure is not None:
            exporter = Exporter(job.exposure, job.slot_name, observer, watch or WalWatch(target))
            observer = exporter
        kinesis = None if stream is None else _kinesis_sink(target, job, stream, observer)
        sink = kinesis or StdoutSink(is_json=job.format not in (FormatName.raw, FormatName.pretty))
        if exporter is not None and kinesis is not None:
            exporter.counts = kinesis.counts
        tail = Tail(
            Stream(
                target,
                job.slot_name,
                pipeline.options,
                pipeline.settings,
                int(job.from_lsn or 0),
                job.confirm,
                job.active_wait_seconds,
                job.accept_gap,
                job.allow_missing_publication,
                job.receive_timeout_seconds,
            ),
            bounds,
            pipeline.decoder,
            sink,
            observer,
            lambda primary: preflight.look(target, job.slot_name, findings.publications, primary=primary),
            _last_run(target, job, findings, observer) if job.confirm else None,
        )
        if findings.is_planned and create is not None:
            try:
                create()
            except BaseException:
                sink.close()
                raise
        if heartbeat is not None:
            heartbeat.start()
        try:
            return Outcome(tail.run(), None if kinesis is None else kinesis.counts)
        finally:
            if kinesis is not None:
                _tell(kinesis.counts, job, observer)
    finally:
        if heartbeat is not None:
            heartbeat.stop()
        if exporter is not None:
            exporter.close()
        catalog.close()


def _answer_seconds(job: Job) -> float | None:
    given = job.receive_timeout_seconds
    return _ANSWER_SECONDS if given is None else given or None


def _last_run(target: Target, job: Job, findings: Findings, observer: Observer) -> LastRun:
    def discarded(before: Sequence[str]) -> list[str]:
        try:
            return preflight.discarded(target, before, findings.publications)
        except Error:
            return []  # it is told without the tables' names

    return LastRun(job.slot_name, discarded, observer, accept_gap=job.accept_gap)


def _tell(counts: Counts, job: Job, observer: Observer) -> None:
    observer.note(
        f"{counts.records} records acknowledged in {counts.requests} requests, "
        f"{counts.retries} sent again, {counts.throttles} of them throttled"
    )
    if counts.shortened:
        observer.warn(f"{counts.shortened} changes were too large: their largest values were left out")
    if counts.dead_letters:
        where = job.delivery.dead_letter if job.delivery is not None else None
        observer.warn(f"{counts.dead_letters} changes were too large and lie in {where}")


def _stream(target: Target, delivery: Delivery) -> KinesisStream:
    """Look at the stream before anything is streamed.

    Raises:
        Error: there is none, it takes nothing now, or it may not be looked at.
    """
    from rdsrepl.aws import streams

    found = streams.get(_aws(target, delivery), delivery.stream)
    streams.require_usable(found)
    return found


def _kinesis_sink(target: Target, job: Job, stream: KinesisStream, observer: Observer) -> KinesisSink:
    from rdsrepl.tail.sinks.kinesis import KinesisSink, limits
    from rdsrepl.tail.sinks.oversize import Oversize

    assert job.delivery is not None
    given = job.delivery
    return KinesisSink(
        _aws(target, given),
        stream,
        limits(stream, linger_seconds=given.linger_seconds, aggregate=given.aggregate),
        requests=given.requests,
        oversize=Oversize(given.oversize, given.dead_letter),
        say=observer.note,
    )


def _aws(target: Target, delivery: Delivery) -> Aws:
    return target.aws if delivery.endpoint_url is None else replace(target.aws, endpoint_url=delivery.endpoint_url)


def _check_from(job: Job, findings: Findings, observer: Observer) -> None:
    confirmed = findings.slot.confirmed_flush_lsn
    if job.from_lsn is None or confirmed is None:
        return
    if job.from_lsn < confirmed:
        raise BadValue(
            f"--from-lsn {job.from_lsn}: slot {job.slot_name} has confirmed up to {confirmed}, and cannot go back",
            hint="leave --from-lsn out: the stream begins where the slot stands",
        )
    if job.from_lsn > confirmed and job.confirm:
        observer.warn(
            f"--from-lsn skips {format_size(job.from_lsn - confirmed)} of WAL after {confirmed}; "
            "transactions there are never delivered once later ones are confirmed"
        )
