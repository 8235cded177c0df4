"""Prepares standard output or a file for a run.

Decides which sink takes the lines, and what keeps changes from being written twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import BadValue, WrongPlugin
from rdsrepl.state import output_file
from rdsrepl.tail.appended_file import AppendedFile, Identify, appended_file, identity_in_debezium, identity_in_json
from rdsrepl.tail.options import FileOptions, FormatName, TailOptions
from rdsrepl.tail.progress import Observer
from rdsrepl.tail.sinks.compression import Compressor, compressing_name, opener
from rdsrepl.tail.sinks.output_files import forget_positions, named_file, recorded_file
from rdsrepl.tail.sinks.position_file import StreamSource
from rdsrepl.tail.sinks.recorded_file import RecordedFileSink
from rdsrepl.tail.sinks.rotation import Rotation, closed_path
from rdsrepl.tail.sinks.stdout import StdoutSink, remove_torn_line, require_writable
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.sinks.base import Sink

# The formats whose lines have an identity.
_IDENTITIES: Final[Mapping[FormatName, Identify]] = {
    FormatName.json: identity_in_json,
    FormatName.debezium: identity_in_debezium,
}


@dataclass(frozen=True, slots=True)
class Output:
    """Where the lines go.

    Attributes:
        sink: takes them.
        appended: leaves lines out that the file has; None where nothing is compared.
        recorded: the sink, if it records positions.
        compressor: compresses closed files; None where they are not.
    """

    sink: Sink
    appended: AppendedFile | None = None
    recorded: RecordedFileSink | None = None
    compressor: Compressor | None = None


def check_file(options: TailOptions) -> None:
    """Check the file of ``--to file:PATH``, and change nothing.

    Raises:
        BadValue: it cannot be written, or an option does not fit it.
    """
    file = options.file
    if file is None:
        return
    output_file.require_writable(file.path, "--to")
    if not options.confirm:
        raise BadValue(
            "--no-confirm is not supported with --to file:PATH, which records what is confirmed",
            hint="omit it, or redirect standard output: > FILE",
        )
    if file.rotate_size is not None or file.rotate_seconds is not None:
        _require_short(file)
    if file.compress is not None:
        opener(file.compress)


def _require_short(file: FileOptions) -> None:
    """Make sure that the file can be closed: its name then becomes longer.

    Raises:
        BadValue: the name would be too long.
    """
    path = file.path.resolve()
    longest = len(os.fsencode(compressing_name(closed_path(path, 0, 0))))
    if longest > (most := os.pathconf(path.parent, "PC_NAME_MAX")):
        raise BadValue(
            f"--to file:{shown(path.name)}: a closed file would have a name of {counted(longest, 'byte')}; {most} are "
            "possible",
            hint=f"choose a name that is shorter by {counted(longest - most, 'byte')}",
        )


def open_output(options: TailOptions, checked: PreflightResult, observer: Observer) -> Output:
    """Open and check standard output, or the file.

    Raises:
        SinkFailed: it cannot be written.
        WrongPlugin: the plugin's messages have no position that could be recorded.
        Refused: the file is not the one that the last run wrote.
    """
    source = StreamSource(checked.database, options.slot_name, checked.slot.plugin or "", options.format.value)
    repair = _repair(source, observer)
    # The messages of version 1 have the transaction's start, before which other transactions may not have ended.
    is_version_1 = source.plugin == "wal2json" and options.plugin_options.get("format-version") == "1"
    has_positions = options.format is not FormatName.raw or not is_version_1
    if options.file is not None:
        if not has_positions:
            raise WrongPlugin(
                "--to file:PATH needs the end of each transaction, which wal2json's format-version 1 does not print",
                hint="omit format-version, or redirect standard output: > FILE",
            )
        return _named(options, options.file, source, repair, observer)
    require_writable()
    identify = _IDENTITIES.get(options.format)
    appended, recorded = None, None
    is_compared = options.confirm and not options.at_least_once
    if options.format in (FormatName.wal2json, FormatName.raw) and has_positions and options.confirm:
        if options.at_least_once:
            forget_positions(1)
        else:
            recorded = recorded_file(1, source, repair, observer.warn)
    if recorded is None:
        repair(1)
    if identify is not None and is_compared:
        appended = appended_file(1, identify, options.slot_name)
    is_json = options.format not in (FormatName.raw, FormatName.pretty)
    return Output(recorded or StdoutSink(is_json=is_json), appended, recorded)


def _named(
    options: TailOptions, file: FileOptions, source: StreamSource, repair: Callable[[int], None], observer: Observer
) -> Output:
    rotation = Rotation(file.rotate_size, file.rotate_seconds)
    compressor: Compressor | None = None

    def closed() -> None:
        if compressor is not None:
            compressor.request()

    recorded = named_file(file.path, rotation, source, repair, observer.warn, closed, starts_anew=options.at_least_once)
    if file.compress is not None:
        compressor = Compressor(file.path.resolve(), file.compress, observer.warn)
    return Output(recorded, None, recorded, compressor)


def _repair(source: StreamSource, observer: Observer) -> Callable[[int], None]:
    """Return what removes the rest of a line that a killed run left at the end of a file."""

    def repair(fd: int) -> None:
        # pgoutput's own messages are not lines: their bytes may contain newlines.
        is_lines = source.format != FormatName.raw.value or source.plugin != "pgoutput"
        if is_lines and (size := remove_torn_line(fd)):
            observer.note(
                f"removed an incomplete line of {counted(size, 'byte')} from the end of the file; its change comes "
                "again"
            )

    return repair
