"""Read the output of ``slot tail`` into a ``FoldedStream``: from files, or from the shards of a Kinesis data stream."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol, cast

from rdsrepl.aws import streams
from rdsrepl.errors import BadValue, NotFound, Refused
from rdsrepl.state import zstandard
from rdsrepl.text.counts import counted
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.aws.stream_reader import Received, ShardReader, Start
    from rdsrepl.config import Aws
    from rdsrepl.verify.folded_stream import FoldedStream, Position
    from rdsrepl.verify.results import Progress

_LINES_PER_REPORT: Final = 10_000
# The clocks of the database and of Kinesis differ by less.
_CLOCKS_DIFFER: Final = timedelta(minutes=5)


class StreamInput(Protocol):
    """The output of ``slot tail`` in the format ``json``."""

    @property
    def label(self) -> str:
        """Its name in the result."""

    def read_present(self, folded: FoldedStream, progress: Progress) -> None:
        """Fold what is there now."""

    def read_before(self, folded: FoldedStream, position: Position, now: Position, progress: Progress) -> None:
        """Fold what else committed before a position that the consumer of the slot has confirmed.

        Args:
            folded: where the lines go.
            position: the position.
            now: the end of the source's WAL, read after the position was confirmed.
            progress: called again and again.
        """

    def known_since(self) -> str:
        """Return a time, as lines write it: every change that committed later was read; empty without a limit."""


class FileInput:
    """Files in the order in which they were written; the last ones may grow."""

    def __init__(self, stack: ExitStack, paths: Sequence[Path]) -> None:
        """Open the files; STACK closes them.

        Raises:
            NotFound: there is no such file.
            BadValue: a package that it needs is not installed.
        """
        for path in paths:
            if not path.is_file():
                raise NotFound(f"no file {path}", hint="give the file that slot tail writes")
        self._paths = tuple(paths)
        self._files = [stack.enter_context(_opened(path)) for path in paths]
        self._lines = [0] * len(paths)

    @property
    def label(self) -> str:
        """Its name in the result."""
        return ", ".join(map(str, self._paths))

    def read_present(self, folded: FoldedStream, progress: Progress) -> None:
        """Fold what is there now."""
        self._read(folded, None, progress)

    def read_before(self, folded: FoldedStream, position: Position, now: Position, progress: Progress) -> None:  # noqa: ARG002 - the interface
        """Fold what else committed before a position.

        Raises:
            Refused: a file was closed and replaced meanwhile: what followed is in a file that was not named.
        """
        self._read(folded, position, progress)
        for path, file in zip(self._paths, self._files, strict=True):
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                raise Refused(
                    f"{path} was replaced while it was read: the stream goes on in another file",
                    hint="run the command again, with the file that was closed and the new one",
                )

    def known_since(self) -> str:
        """Return no limit: a file has the changes in their order."""
        return ""

    def _read(self, folded: FoldedStream, before: Position | None, progress: Progress) -> None:
        for number, (path, file) in enumerate(zip(self._paths, self._files, strict=True)):
            first = self._lines[number]

            def where(place: int, path: Path = path, first: int = first) -> str:
                return f"{path}, line {first + place}"

            complete = _decompressed(path, file) if _is_compressed(path) else _complete(file)
            lines = _reported(complete, path, file, progress)
            self._lines[number] += folded.fold(lines, before=before, where=where).lines


def _is_compressed(path: Path) -> bool:
    return path.suffix in (".gz", ".zst")


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix != ".zst":
        return path.open("rb")
    try:
        return cast("IO[bytes]", zstandard.module().open(path, "rb"))
    except ImportError as exc:
        raise BadValue(
            f"{path}: reading it requires the package backports.zstd", hint="install it: pip install 'rdsrepl[zstd]'"
        ) from exc


def _decompressed(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a compressed file.

    Raises:
        BadValue: it is damaged, or not compressed so.
    """
    try:
        yield from (line for line in file if line.endswith(b"\n"))
    except Exception as exc:  # each library has errors of its own: EOFError, zlib.error, ZstdError
        raise BadValue(
            f"{path} is not a complete {path.suffix} file: {exc}",
            hint="give the file again without compression, or a file that was closed",
        ) from exc


def _reported(lines: Iterator[bytes], path: Path, file: IO[bytes], progress: Progress) -> Iterator[bytes]:
    """Report now and then how much of a file was read."""
    size = os.fstat(file.fileno()).st_size
    for number, line in enumerate(lines):
        if number % _LINES_PER_REPORT == 0:
            # Of a compressed file the position says how much text was read, not how much of the file.
            of = f" of {format_size(size)}" if not _is_compressed(path) else ""
            progress("reading", f"{path}: {format_size(file.tell())}{of}")
        yield line


def _complete(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines that are complete: a tail that goes on may have written a part of its next line."""
    for line in file:
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        yield line


class KinesisInput:
    """The records of a data stream, of all shards: those that are closed as well, a shard after its parents.

    A record is in its shard when PutRecords has acknowledged it, and a confirmed position says that this is so for all
    changes before it. So a shard has everything before the position at its end as it was later. A shard that receives
    records all the time may have no end to be read; there a change that committed after the position was confirmed
    was sent later than all of them, and stands behind them.
    """

    def __init__(self, stack: ExitStack, aws: Aws, name: str, start: Start, *, is_complete: bool) -> None:
        """Open a data stream; STACK closes it.

        Args:
            stack: closes it.
            aws: the identity.
            name: its name or ARN.
            start: where to start: ``TRIM_HORIZON``, or a time.
            is_complete: every change since the start is needed.

        Raises:
            NotFound: no such data stream.
            Refused: records that are needed may have been removed.
            Error: AWS refused.
        """
        from rdsrepl.aws import stream_reader

        self._stream = streams.get(aws, name)
        self._start, self._is_complete = start, is_complete
        self._records = 0
        self._require_kept()
        self._reader: ShardReader = stack.enter_context(stream_reader.opened(aws, name, start))

    @property
    def label(self) -> str:
        """Its name in the result."""
        return f"kinesis:{self._stream.name}"

    def read_present(self, folded: FoldedStream, progress: Progress) -> None:
        """Fold what is there now."""
        for batch in self._reader.stored_before():
            self._fold(folded, batch, None, progress)

    def read_before(self, folded: FoldedStream, position: Position, now: Position, progress: Progress) -> None:
        """Fold what else committed before a position.

        Raises:
            Refused: records that are needed may have been removed meanwhile.
            Error: AWS refused.
        """
        for batch in self._reader.stored_before(time.monotonic()):
            if self._fold(folded, batch, position, progress) >= now:
                self._reader.pass_by(batch[0].shard_id)
        self._require_kept()

    def known_since(self) -> str:
        """Return the time from which on every record was read, with a margin for the clocks of both services.

        Shards lose their oldest records each at its own time: of a row that moved to another key, or of a TRUNCATE,
        only one of two records may be left.
        """
        if self._is_complete or (self._start.moment is None and not self._may_lack_records()):
            return ""
        oldest = max(self._oldest_kept(), self._start.moment or datetime.min.replace(tzinfo=UTC))
        return (oldest + _CLOCKS_DIFFER).astimezone(UTC).isoformat()

    def _fold(
        self, folded: FoldedStream, batch: Sequence[Received], before: Position | None, progress: Progress
    ) -> Position:
        def where(place: int) -> str:
            record = batch[place - 1]
            return f"stream {self._stream.name}, {record.shard_id}, record {record.sequence_number}"

        self._records += len(batch)
        progress("reading", f"{self.label}: {counted(self._records, 'record', grouped=True)}")
        return folded.fold((record.data for record in batch), before=before, where=where).latest

    def _oldest_kept(self) -> datetime:
        return datetime.now(UTC) - timedelta(hours=self._stream.retention_hours)

    def _may_lack_records(self) -> bool:
        """Return whether records may have been removed since the start that was asked for."""
        began = self._start.moment or self._stream.created_at
        return began is None or began < self._oldest_kept() + _CLOCKS_DIFFER

    def _require_kept(self) -> None:
        if self._is_complete and self._may_lack_records():
            raise Refused(
                f"--complete: stream {self._stream.name} keeps its records for "
                f"{counted(self._stream.retention_hours, 'hour')}; older ones may have been removed",
                hint="if the output of the slot began later than that, give the time with --from; or omit --complete: "
                "rows without a change in the stream are then not compared",
            )
