"""One run of the tail, from its options to its result: check, assemble, stream.

The command line and the Lambda function both call ``run``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from rdsrepl.errors import BadValue, Error, Unsupported, WrongPlugin
from rdsrepl.postgres import versions
from rdsrepl.tail import preflight
from rdsrepl.tail.commit_gate import CommitGate
from rdsrepl.tail.continuity import LastRun
from rdsrepl.tail.engine import Tail
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.heartbeat import Heartbeat
from rdsrepl.tail.metrics import Exporter
from rdsrepl.tail.model import StreamHook
from rdsrepl.tail.options import FormatName, KinesisOptions, TailOptions
from rdsrepl.tail.output import Output, check_file, open_output
from rdsrepl.tail.pipeline import Pipeline, assemble
from rdsrepl.tail.progress import Observer, Summary
from rdsrepl.tail.standby_position import StandbyPoller
from rdsrepl.tail.wal_position import WalPositionPoller
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.aws.streams import KinesisStream
    from rdsrepl.config import Aws, Target
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.sinks.base import Sink
    from rdsrepl.tail.sinks.compression import Compressor
    from rdsrepl.tail.sinks.kinesis import KinesisCounts, KinesisSink

_ANSWER_SECONDS: Final = 30.0
_QUIET_SECONDS: Final = 3.0


class HookSession(StreamHook, Protocol):
    """A hook that works beside the stream."""

    def start(self) -> None:
        """Begin to work."""
        ...

    def stop(self) -> None:
        """End the work; the stream has ended."""
        ...


class SlotCreation(Protocol):
    """Creates the slot of a stream."""

    def create(self, checked: PreflightResult, sink: Sink) -> int:
        """Create the slot; may write to the sink, and returns how many batches it wrote."""
        ...

    def close(self) -> None:
        """Release what the creation needs: the slot is there, or something failed before."""
        ...


@dataclass(frozen=True, slots=True)
class TailResult:
    """How a run ended; ``counts`` says what went to Kinesis, None for standard output."""

    summary: Summary
    counts: KinesisCounts | None = None


def run(
    target: Target,
    options: TailOptions,
    observer: Observer,
    *,
    colour: bool = False,
    watch: WalPositionPoller | None = None,
    creation: SlotCreation | None = None,
    open_hook: Callable[[PreflightResult], HookSession | None] | None = None,
) -> TailResult:
    """Stream until a stop condition, a signal or an error that is not transient.

    Args:
        target: the database.
        options: what is wanted.
        observer: receives notes, warnings and the progress.
        colour: whether the ``pretty`` format is coloured.
        watch: reads the server's WAL position; made here if metrics need one.
        creation: creates the slot, where ``options.create`` names a plugin; called after everything else was checked.
        open_hook: returns what takes part in the stream, or None; called after everything else was checked.

    Raises:
        Error: the stream or the slot does not exist, is in use or invalidated; an option does not fit; the sink
            failed. What was delivered until then is confirmed as far as the connection still allows.
    """
    check_file(options)
    stream = None if options.kinesis is None else _stream(target, options.kinesis)
    # The heartbeat's statement may wait for a lock; with a timeout, the next one would only queue behind it.
    heartbeat_target, target = target, replace(target, answer_seconds=_answer_seconds(options))
    checked = preflight.check(target, options.slot_name, options.publications, create=options.create)
    if options.stop.until_now:
        options = replace(options, stop=replace(options.stop, until_lsn=int(checked.current_lsn)))
    _check_options(options, checked, observer)
    _report_selection(target, options, checked, observer)
    heartbeat: Heartbeat | None = None
    if options.heartbeat is not None:
        heartbeat = Heartbeat(heartbeat_target, options.slot_name, options.heartbeat, observer.note)
        heartbeat.check(checked)
    with ExitStack() as stack:
        catalog = Catalog(target, observer.warn)
        stack.callback(catalog.close)
        hook = None if open_hook is None else open_hook(checked)
        if hook is not None:
            stack.callback(hook.stop)
        pipeline = _pipeline(options, checked, catalog, hook, colour=colour)
        exporter: Exporter | None = None
        if options.metrics is not None:
            watch = watch or WalPositionPoller(target)
            stack.callback(watch.stop)
            observer = exporter = Exporter(options.metrics, options.slot_name, observer, watch)
            stack.callback(exporter.close)
        poller = None if options.behind is None else StandbyPoller(options.behind, target)
        kinesis = None if stream is None else _kinesis_sink(target, options, stream, observer)
        if exporter is not None and kinesis is not None:
            exporter.counts = kinesis.counts
        output = open_output(options, checked, observer) if kinesis is None else Output(kinesis)
        if output.compressor is not None:
            stack.callback(output.compressor.stop)
        stack.callback(output.sink.close)
        tail = Tail(
            target,
            options,
            pipeline,
            output,
            observer,
            lambda primary: preflight.check(target, options.slot_name, checked.publications, primary=primary),
            _last_run(target, options, checked, observer) if options.confirm else None,
            None if poller is None else CommitGate(poller, observer),
            hook,
        )
        if creation is not None:
            with closing(creation):
                if checked.is_planned:
                    tail.continue_after(creation.create(checked, output.sink))
        if heartbeat is not None:
            heartbeat.start()
            stack.callback(heartbeat.stop)
        if poller is not None:
            poller.start(output.sink.wakeup.wake)
            stack.callback(poller.stop)
        if hook is not None:
            hook.start()
        if kinesis is not None:
            stack.callback(_report_counts, kinesis.counts, options, observer)
        summary = tail.run()
        if output.compressor is not None and not tail.was_stopped:
            _finish_compression(output.compressor, observer)
        return TailResult(summary, None if kinesis is None else kinesis.counts)


def _report_selection(target: Target, options: TailOptions, checked: PreflightResult, observer: Observer) -> None:
    """Report what was chosen without being named, and what was named and selects nothing."""
    if len(checked.publications) == 1 and not options.publications:
        observer.note(f"using publication {shown(checked.publications[0])} (the only one in this database)")
    for reason in preflight.unmatched(target, checked, options.tables):
        observer.warn(shown(reason))


def _pipeline(
    options: TailOptions, checked: PreflightResult, catalog: Catalog, hook: StreamHook | None, *, colour: bool
) -> Pipeline:
    return assemble(
        checked,
        options.format,
        catalog,
        tables=options.tables,
        given=options.plugin_options,
        until_lsn=options.stop.until_lsn,
        colour=colour,
        partition_by=None if options.kinesis is None else options.kinesis.partition_by,
        debezium=options.debezium,
        hook=hook,
    )


def _finish_compression(compressor: Compressor, observer: Observer) -> None:
    """Wait until the closed files are compressed, after everything was delivered and confirmed."""
    if not compressor.finish(_QUIET_SECONDS):
        observer.note("compressing closed files; Ctrl-C leaves them to the next run")
        while not compressor.finish(_QUIET_SECONDS):
            pass


def _answer_seconds(options: TailOptions) -> float | None:
    given = options.receive_timeout_seconds
    return _ANSWER_SECONDS if given is None else given or None


def _last_run(target: Target, options: TailOptions, checked: PreflightResult, observer: Observer) -> LastRun:
    def discarded(before: Sequence[str]) -> list[str]:
        try:
            return preflight.discarded(target, before, checked.publications)
        except Error:
            return []  # the warning then has no table names

    return LastRun(options.slot_name, discarded, observer, accept_gap=options.accept_gap)


def _report_counts(counts: KinesisCounts, options: TailOptions, observer: Observer) -> None:
    aggregated = f", as {counted(counts.stored, 'aggregated record')}" if counts.stored != counts.records else ""
    observer.note(
        f"{counted(counts.records, 'record')} acknowledged{aggregated} in {counted(counts.requests, 'request')}, "
        f"{counts.retries} sent again ({counts.throttles} throttled)"
    )
    if counts.shortened:
        observer.warn(
            f"{counted(counts.shortened, 'change')} exceeded the record size: the largest values were left out"
        )
    if counts.dead_letters:
        file = options.kinesis.dead_letter if options.kinesis is not None else None
        observer.warn(f"{counted(counts.dead_letters, 'change')} exceeded the record size, written to {file}")


def _stream(target: Target, kinesis: KinesisOptions) -> KinesisStream:
    """Return the stream, after checking that it accepts records.

    Raises:
        Error: it does not exist, does not accept records at present, or may not be described.
    """
    from rdsrepl.aws import streams

    stream = streams.get(_aws(target, kinesis), kinesis.stream)
    streams.require_usable(stream)
    return stream


def _kinesis_sink(target: Target, options: TailOptions, stream: KinesisStream, observer: Observer) -> KinesisSink:
    from rdsrepl.tail.sinks.allocation import collect_less_often, return_large_blocks
    from rdsrepl.tail.sinks.kinesis import KinesisSink
    from rdsrepl.tail.sinks.oversize import Oversize

    given = options.kinesis
    assert given is not None
    return_large_blocks()
    collect_less_often()
    return KinesisSink(
        _aws(target, given),
        stream,
        linger_seconds=given.linger_seconds,
        aggregate=given.aggregate,
        requests=given.requests,
        oversize=Oversize(given.oversize, given.dead_letter),
        note=observer.note,
    )


def _aws(target: Target, kinesis: KinesisOptions) -> Aws:
    return target.aws if kinesis.endpoint_url is None else replace(target.aws, endpoint_url=kinesis.endpoint_url)


def _check_options(options: TailOptions, checked: PreflightResult, observer: Observer) -> None:
    """Make sure that the options fit the slot and the server.

    Raises:
        BadValue, Unsupported, WrongPlugin: one of them does not.
    """
    confirmed = checked.slot.confirmed_flush_lsn
    if options.from_lsn is not None and confirmed is not None:
        if options.from_lsn < confirmed:
            raise BadValue(
                f"--from-lsn {options.from_lsn}: slot {options.slot_name} has confirmed up to {confirmed}, and cannot "
                "go back",
                hint="omit --from-lsn: the stream starts at the slot's position",
            )
        if options.from_lsn > confirmed and options.confirm:
            observer.warn(
                f"--from-lsn skips {format_size(options.from_lsn - confirmed)} of WAL after {confirmed}; "
                "transactions there are never delivered once later ones are confirmed"
            )
    if options.allow_missing_publication and checked.version < versions.MISSING_PUBLICATIONS_SKIPPED_SINCE:
        raise Unsupported(
            f"--allow-missing-publication: PostgreSQL {checked.version} ends the stream at such a change instead "
            "of leaving it out",
            hint="omit it; it is for PostgreSQL 18 and later",
        )
    is_terminal = options.file is None and sys.stdout.isatty()
    if options.format is FormatName.raw and checked.slot.plugin == "pgoutput" and is_terminal:
        raise WrongPlugin(
            "pgoutput's messages are binary, and standard output is a terminal",
            hint="--format json, or redirect the output",
        )
