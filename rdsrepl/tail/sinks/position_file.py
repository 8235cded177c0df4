"""``FILE.rdsrepl``: which position of a stream the end of a file has, for formats whose lines have no identity.

It has two records, of which the newer one with a valid checksum counts. They are written in turns and in place, so that
a crash while one is written leaves the other. A third field is not synced: how far the file may have been written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import InUse, Refused
from rdsrepl.lsn import Lsn
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import Damaged, require_int64, require_type
from rdsrepl.state.streamed_slots import boot_id
from rdsrepl.text.escapes import shown

SUFFIX: Final = ".rdsrepl"
_VERSION: Final = 1
# The unit in which disks and the page cache write; a record never shares one with the other record.
_RECORD_BYTES: Final = 4096
_WRITTEN_AT: Final = 2 * _RECORD_BYTES
_WRITTEN_DIGITS: Final = 20
_LOCK_SECONDS: Final = 2.0

START_ANEW: Final = "or write changes again that the file may have: --at-least-once"


@dataclass(frozen=True, slots=True)
class StreamSource:
    """What a file is of; a file continues only with the same.

    Attributes:
        database, slot_name, plugin: the slot.
        format: of the file.
    """

    database: str
    slot_name: str
    plugin: str
    format: str

    def __str__(self) -> str:
        return f"slot {self.slot_name} ({self.plugin}) of database {self.database} in the format {self.format}"


@dataclass(frozen=True, slots=True)
class FilePosition:
    """A position of the stream, and where the file ends that has everything committed before it, and nothing else.

    Attributes:
        source: what the file is of.
        system_id: of the server.
        timeline, lsn: the position; the record that ends there was written on the timeline.
        size: of the file up to the position, in bytes.
        checksum: of the last bytes before that (``checksum_of``).
        first_timeline, first_lsn: the position at which the file begins.
        started_at: when its first change was written, in seconds since 1970.
        is_closing: whether the file is about to get another name, and a new one to be begun.
        end: its size when the run ended; None if the run has not ended.
        boot: of the machine (``boot_id``).
    """

    source: StreamSource
    system_id: str
    timeline: int
    lsn: int
    size: int
    checksum: int
    first_timeline: int
    first_lsn: int
    started_at: float
    is_closing: bool = False
    end: int | None = None
    boot: str = ""


def checksum_of(fd: int, size: int) -> int:
    """Return the checksum of the last 4 KiB of a file's first SIZE bytes."""
    start = max(0, size - _RECORD_BYTES)
    return zlib.crc32(os.pread(fd, size - start, start))


class PositionFile:
    """The file, open and locked by this process.

    Attributes:
        path: its name.
    """

    def __init__(self, path: Path) -> None:
        """Open and lock the file; create it if necessary.

        Raises:
            InUse: another process has the lock.
            OSError: the file cannot be opened for writing, or is not regular.
        """
        self.path = path
        self._sequence = 0
        while True:
            self._file: FileIO = json_lines.open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            try:
                json_lines.lock(self._file, path, _LOCK_SECONDS, time.monotonic() + _LOCK_SECONDS)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(self._file.fileno())):
                        return
            except TimeoutError as exc:
                self._file.close()
                raise InUse(
                    f"{shown(str(path.with_suffix('')))} is being written: {exc.strerror}",
                    hint="stop that process, or append to another file",
                ) from exc
            except BaseException:
                self._file.close()
                raise
            self._file.close()

    def load(self) -> FilePosition | None:
        """Return the newer record; None if the file is empty: it was created, and nothing was recorded yet.

        Raises:
            Refused: no record is valid, or a later version wrote it.
            OSError: the file cannot be read.
        """
        content = os.pread(self._file.fileno(), _WRITTEN_AT, 0)
        if not content.strip(b"\0 \n"):  # a crash of the machine may have left zeros of what was not synced yet
            return None
        records = [_parsed(content[at : at + _RECORD_BYTES]) for at in (0, _RECORD_BYTES)]
        valid = [record for record in records if record is not None]
        if not valid:
            raise self._damaged("it has no valid record")
        newest = max(valid, key=lambda record: int(record["sequence"]))
        if newest["version"] > _VERSION:
            raise Refused(
                f"{shown(str(self.path))} was written by a newer version of this program",
                hint=f"use that version, append to another file, {START_ANEW}",
            )
        self._sequence = int(newest["sequence"])
        try:
            return _decoded(newest)
        except (Damaged, KeyError, ValueError) as exc:
            raise self._damaged(str(exc)) from None

    def _damaged(self, reason: str) -> Refused:
        return Refused(
            f"{shown(str(self.path))} is damaged: {reason}; what the output file has is not known",
            hint=f"append to another file, {START_ANEW}",
        )

    def store(self, position: FilePosition) -> None:
        """Write a position to disk.

        Raises:
            OSError: it could not be written; the record before it is still valid.
        """
        fd = self._file.fileno()
        is_new = self._sequence == 0
        self._sequence += 1
        fields = _encoded(position) | {"version": _VERSION, "sequence": self._sequence}
        _write_all(fd, _record(fields), self._sequence % 2 * _RECORD_BYTES)
        if is_new:
            _write_all(fd, b"".ljust(_RECORD_BYTES - 1) + b"\n", (self._sequence + 1) % 2 * _RECORD_BYTES)
        os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)
        if is_new:
            json_lines.sync_directory(self.path.parent)

    def writing_to(self, size: int) -> None:
        """Note that the output file is about to have this size; a crash of the machine may lose the note."""
        _write_all(self._file.fileno(), b"%0*d\n" % (_WRITTEN_DIGITS, size), _WRITTEN_AT)

    def most_written(self, position: FilePosition) -> int | None:
        """Return the size that the output file can have at most, if only we wrote to it; None if unknown."""
        if position.end is not None:
            return position.end
        if not position.boot or position.boot != boot_id():
            return None
        digits = os.pread(self._file.fileno(), _WRITTEN_DIGITS, _WRITTEN_AT)
        return int(digits) if digits.isdigit() else None

    def clear(self) -> None:
        """Forget the position.

        Raises:
            OSError: the file cannot be written.
        """
        os.ftruncate(self._file.fileno(), 0)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close and unlock the file."""
        self._file.close()


def _record(fields: Mapping[str, Any]) -> bytes:
    text = json.dumps(fields).encode()
    line = b"%08x %s" % (zlib.crc32(text), text)
    if len(line) >= _RECORD_BYTES:
        raise OSError(errno.EFBIG, "the record is too large")
    return line.ljust(_RECORD_BYTES - 1) + b"\n"


def _parsed(record: bytes) -> dict[str, Any] | None:
    """Return the fields of a record; None if it is not valid."""
    checksum, _, text = record.rstrip().partition(b" ")
    with contextlib.suppress(ValueError, Damaged, KeyError):
        if int(checksum, 16) == zlib.crc32(text):
            fields = require_type(json_lines.parse(text), dict)
            require_int64(fields["sequence"])
            require_int64(fields["version"])
            return fields
    return None


def _encoded(position: FilePosition) -> dict[str, Any]:
    fields = asdict(position)
    del fields["source"]
    lsns = {"lsn": str(Lsn(position.lsn)), "first_lsn": str(Lsn(position.first_lsn))}
    return {**asdict(position.source), **fields, **lsns, "boot": boot_id()}


def _decoded(row: Mapping[str, Any]) -> FilePosition:
    def text(name: str) -> str:
        return require_type(row[name], str)

    def number(name: str) -> int:
        return require_int64(row[name])

    return FilePosition(
        StreamSource(text("database"), text("slot_name"), text("plugin"), text("format")),
        text("system_id"),
        number("timeline"),
        int(Lsn.parse(text("lsn"))),
        number("size"),
        number("checksum"),
        number("first_timeline"),
        int(Lsn.parse(text("first_lsn"))),
        float(row["started_at"]),
        require_type(row["is_closing"], bool),
        None if row["end"] is None else number("end"),
        text("boot"),
    )


def _write_all(fd: int, data: bytes, at: int) -> None:
    written = os.pwrite(fd, data, at)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
