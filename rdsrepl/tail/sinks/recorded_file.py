"""A regular file as a sink that records beside it which position of the stream its end has (``position_file``).

The order makes it exact: the file is synced, then its position is recorded and synced, then the position is confirmed
to the server. Whatever a run that was killed left after the recorded size is removed, and the stream starts at the
recorded position. Only the end of a transaction is recorded, so nothing of a transaction is kept in part.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rdsrepl.errors import Error, Refused, SinkFailed
from rdsrepl.lsn import Lsn
from rdsrepl.state.json_lines import sync_directory
from rdsrepl.tail.model import joined
from rdsrepl.tail.sinks.compression import SUFFIXES
from rdsrepl.tail.sinks.position_file import START_ANEW, FilePosition, PositionFile, StreamSource, checksum_of
from rdsrepl.tail.sinks.rotation import Rotation, closed_path
from rdsrepl.tail.sinks.stdout import Entry, StdoutSink
from rdsrepl.tail.timelines import Timelines
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown


@dataclass(slots=True)
class OpenFile:
    """An output file that is open.

    Attributes:
        path: its name.
        fd: writes at its end.
        reader: reads it.
        positions: where positions are recorded.
        owns_fd: whether ``fd`` is closed at the end.
    """

    path: Path
    fd: int
    reader: int
    positions: PositionFile
    owns_fd: bool

    def continue_in(self, fd: int) -> None:
        """Take a new file that has the name now.

        Raises:
            OSError: it cannot be read.
        """
        reader = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.close(self.reader)
        os.close(self.fd)
        self.fd, self.reader = fd, reader

    def close(self) -> None:
        """Close it, and unlock the positions."""
        self.positions.close()
        os.close(self.reader)
        if self.owns_fd:
            os.close(self.fd)


class RecordedFileSink(StdoutSink):
    """Appends to a regular file from its own thread."""

    def __init__(
        self,
        file: OpenFile,
        source: StreamSource,
        position: FilePosition | None,
        rotation: Rotation | None = None,
        closed: Callable[[], None] | None = None,
    ) -> None:
        """Prepare a sink.

        Args:
            file: the file; the sink closes it.
            source: what is written.
            position: the last position that was recorded, verified; None for a file that begins now.
            rotation: when the file is closed and a new one is begun; None is never.
            closed: called after that.
        """
        self._file = file
        self._path = file.path
        self._positions = file.positions
        self._source = source
        self._position = position
        self._rotation = rotation
        self._closed = closed
        self._started_at = position.started_at if position is not None and position.size else time.time()
        self._timelines = Timelines(0)
        self._system_id = ""
        self._put_lsn = 0
        # The last position that was written, and the size of the file there; None once it is recorded.
        self._reached: tuple[int, int] | None = None
        self._size = os.fstat(file.fd).st_size
        self._released = False
        super().__init__(file.fd)

    def resume_lsn(self, system_id: str, timelines: Timelines, server_lsn: int, *, in_recovery: bool) -> int:
        """Return the position at which the stream continues the file; 0 if the file has none.

        Args:
            system_id: of the server.
            timelines: of the server. Where the file goes past its fork, the stream continues at the fork.
            server_lsn: the end of its WAL.
            in_recovery: whether it is a standby, which may still receive the WAL.

        Raises:
            Refused: the file is of another server, or newer than it.
        """
        position = self._position
        if position is None:
            return 0
        where = f"{shown(str(self._path))} ends at {Lsn(position.lsn)} of timeline {position.timeline}"
        end = timelines.end_of(position.timeline)
        if position.system_id != system_id:
            reason = f"was written from the database system {position.system_id}, and this one is {system_id}"
            where = shown(str(self._path))
        elif end is None:
            reason = f"and the server on timeline {timelines.current} does not have that timeline"
        elif min(position.lsn, end) > server_lsn and not in_recovery:
            reason = f"and the server's WAL ends before that, at {Lsn(server_lsn)}: an older state was restored"
        else:
            return min(position.lsn, end)
        raise Refused(f"{where} {reason}", hint=f"append to another file, {START_ANEW}")

    def connected(self, start_lsn: int, system_id: str, timelines: Timelines) -> int:
        """Begin with the stream of a new connection, after everything that was accepted is durable.

        Removes what follows the last position, which is sent again, and records where the stream starts.

        Returns:
            How many bytes were removed.

        Raises:
            SinkFailed: the file could not be changed.
        """
        with self._busy:
            try:
                removed = self._remove_incomplete()
                self._system_id, self._timelines, self._put_lsn = system_id, timelines, start_lsn
                os.fsync(self._fd)
                self._record(start_lsn, self._size)
            except OSError as exc:
                raise self._failed(exc) from exc
        with self._changed:
            self._changed.notify()  # from now on the file may be closed after some time
        return removed

    def put_until(self, number: int, lines: Sequence[str] | Sequence[bytes], lsn: int) -> None:
        """Accept batch NUMBER; everything that was committed before a position ends with it."""
        # The first keepalive of a connection has the position that the slot has confirmed, which may be older.
        is_new = lsn > self._put_lsn
        self._put_lsn = max(self._put_lsn, lsn)
        self._accept(Entry(number, joined(lines), lsn if is_new else None))

    def close(self) -> None:
        """End the thread, and record that the run has ended; what follows the position stays in the file."""
        if self._released:
            return
        super().close()
        if not self._thread.is_alive():
            self._released = True
            if self._failure is None and self._position is not None:
                with contextlib.suppress(OSError):  # the record before it is valid
                    self._positions.store(replace(self._position, end=self._size))
            self._file.close()

    def _handle(self, chunk: Sequence[Entry], synced_at: float, *, ends: bool) -> float:
        synced_at = super()._handle(chunk, synced_at, ends=ends)
        if self._rotation is None or not self._is_whole or not self._is_due(self._size):
            return synced_at
        if self._written != self._durable:
            self._sync()
        self._rotate()
        return time.monotonic()

    def _ends_chunk(self, entry: Entry, size: int) -> bool:
        return entry.lsn is not None and self._is_due(self._size + size)

    def _pause(self, synced_at: float) -> float | None:
        pause = super()._pause(synced_at)
        if self._rotation is None or self._rotation.seconds is None or not self._is_whole or not self._size:
            return pause
        left = max(0.0, self._started_at + self._rotation.seconds - time.time())
        return left if pause is None else min(pause, left)

    @property
    def _is_whole(self) -> bool:
        """Whether the file ends with a transaction; before the first connection that is not known."""
        if not self._system_id:
            return False
        if self._reached is not None:
            return self._reached[1] == self._size
        return self._position is not None and self._position.size == self._size

    def _is_due(self, size: int) -> bool:
        return self._rotation is not None and self._rotation.is_due(size, time.time() - self._started_at)

    def _rotate(self) -> None:
        """Close the file under the name of its first position, and begin a new one.

        What is recorded before says that the file gets its name, so that a crash at any moment leaves either the whole
        file or no file, and the stream continues at the same position.

        Raises:
            SinkFailed: the name exists, or another program renamed the file.
        """
        position = self._position
        assert position is not None and position.size == self._size
        closed, name = closed_path(self._path, position.first_timeline, position.first_lsn), shown(str(self._path))
        if any(os.path.lexists(f"{closed}{suffix}") for suffix in ("", *SUFFIXES.values())):
            raise SinkFailed(
                f"could not close {name}: {shown(closed.name)} exists",
                hint="move that file to another directory, then start again: no change is missing",
            )
        self._positions.store(replace(position, is_closing=True))
        self._path.rename(closed)
        mode = os.fstat(self._fd).st_mode & 0o777
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, mode)
        self._file.continue_in(fd)
        self._fd = fd
        sync_directory(self._path.parent)
        self._size = 0
        self._positions.writing_to(0)
        self._record(position.lsn, 0)
        if self._closed is not None:
            self._closed()

    def _remove_incomplete(self) -> int:
        size = self._size if self._position is None else self._position.size
        removed = self._size - size
        if removed:
            os.ftruncate(self._fd, size)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._positions.writing_to(size)
        self._size = size
        return removed

    def _write_chunk(self, chunk: Sequence[Entry]) -> None:
        size = self._size
        for entry in chunk:
            size += len(entry.data)
            if entry.lsn is not None:
                self._reached = entry.lsn, size
        if size != self._size:
            if not self._size:
                self._started_at = time.time()
            self._positions.writing_to(size)
            super()._write_chunk(chunk)
            self._size = size
        if os.fstat(self._fd).st_size != size:
            raise SinkFailed(
                f"another program changed {shown(str(self._path))} while it was written",
                hint="nothing is confirmed that was written since; let no other program truncate the file or append to "
                "it, and start again",
            )

    def _synced(self) -> None:
        if self._reached is not None:
            self._record(*self._reached)

    def _record(self, lsn: int, size: int) -> None:
        """Record that the file has everything committed before LSN in its first SIZE bytes."""
        if self._file.owns_fd:
            self._require_name()
        first = self._timelines.of_start(lsn), lsn
        if size and self._position is not None:  # an empty file has not begun yet
            first = self._position.first_timeline, self._position.first_lsn
        timeline, checksum = self._timelines.of_end(lsn), checksum_of(self._file.reader, size)
        position = FilePosition(self._source, self._system_id, timeline, lsn, size, checksum, *first, self._started_at)
        self._positions.store(position)
        self._position, self._reached = position, None

    def _require_name(self) -> None:
        """Make sure that the name is still the file's: what is written to a removed file is lost.

        Raises:
            SinkFailed: it is not.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), os.fstat(self._fd)):
                return
        raise SinkFailed(
            f"another program removed, renamed or replaced {shown(str(self._path))} while it was written",
            hint="nothing is confirmed that was written since; to close a file after some time use --rotate-every or "
            "--rotate-size",
        )

    def _failed(self, exc: OSError) -> Error:
        return SinkFailed(
            f"could not write to {shown(str(self._path))}: {exc.strerror}",
            hint="free disk space or repair the disk, then start again: no change is confirmed that was not written",
        )


def verify(path: Path, size: int, reader: int, position: FilePosition, most_written: int | None) -> None:
    """Make sure that a file is the one whose position was recorded.

    Args:
        path: its name.
        size: its size, not 0.
        reader: the file, open for reading.
        position: what was recorded.
        most_written: the size that the last run can have written; None if unknown.

    Raises:
        Refused: the file is another one, or another program changed it.
    """
    name = shown(str(path))
    hint = f"append to another file, {START_ANEW}"
    if size < position.size:
        raise Refused(
            f"{name} has {counted(size, 'byte')}, and had {position.size} at {Lsn(position.lsn)}: it was truncated, "
            "and the changes in between are missing",
            hint=f"restore it, {hint}",
        )
    if checksum_of(reader, position.size) != position.checksum:
        raise Refused(
            f"{name} is not the file that the last run wrote: its content before byte {position.size} differs",
            hint=f"restore it, {hint}",
        )
    if most_written is not None and size > most_written:
        raise Refused(
            f"another program wrote the last {counted(size - most_written, 'byte')} of {name}",
            hint=f"remove them: truncate --size={most_written} {shlex.quote(str(path))}; {hint}",
        )


def require_source(path: Path, source: StreamSource, position: FilePosition) -> None:
    """Make sure that a file continues with what it has.

    Raises:
        Refused: it is of another slot, or in another format.
    """
    if position.source != source:
        raise Refused(
            f"{shown(str(path))} is of {position.source}; this run is of {source}",
            hint=f"append to another file, {START_ANEW}",
        )
