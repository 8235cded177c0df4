"""JSON lines in local files: one reader and one appender for the audit trail, the slot history and the journals.

Such a file may be cut short, damaged, replaced by something else, or locked by a process that is stopped. A damaged
line costs itself only, nothing waits for longer than a time limit, and only regular files are opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar

from rdsrepl.text.escapes import json_text

T = TypeVar("T")

LOCK_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
# The widest numbers that PostgreSQL has (``bigint``; ``xid8`` and ``pg_lsn`` have no sign).
_MIN_INTEGER: Final = -(2**63)
_MAX_INTEGER: Final = 2**64 - 1


class Damaged(ValueError):
    """A line, or a value in it, is not what its reader expects."""


def parse(text: bytes | str) -> Any:
    """Return the value of a JSON text, by RFC 8259: no NaN, no number beyond a float's range, no name twice.

    Raises:
        Damaged: it is no such text, is not UTF-8, or is nested too deep for the parser.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise Damaged("nested too deep") from None
    except ValueError as exc:
        raise Damaged(str(exc)) from None


def require_type(value: object, kind: type[T]) -> T:
    """Return VALUE if it is exactly of one type (``True`` is no ``int``).

    Raises:
        Damaged: it is not.
    """
    if type(value) is not kind:
        raise Damaged(f"a {kind.__name__} is expected")
    return value


def require_int64(value: object) -> int:
    """Return VALUE if it is a whole number of 64 bits, with or without a sign.

    Raises:
        Damaged: it is not.
    """
    number = require_type(value, int)
    if not _MIN_INTEGER <= number <= _MAX_INTEGER:
        raise Damaged("a whole number of 64 bits is expected")
    return number


def parse_time(value: object) -> datetime:
    """Return the time that an ISO 8601 text with an offset from UTC stands for.

    Raises:
        Damaged: it is no such text, or so far off that no arithmetic can be done with it.
    """
    try:
        found = datetime.fromisoformat(require_type(value, str))
    except ValueError as exc:
        raise Damaged(str(exc)) from None
    if found.tzinfo is None or not 1970 <= found.year < 3000:
        raise Damaged("a time with its offset from UTC is expected")
    return found


def open_regular(path: Path, flags: int, *, own: bool = False) -> FileIO:
    """Open a regular file without ever waiting for it; where it has to be made, only its owner may read it.

    Args:
        path: the file.
        flags: ``os.O_RDONLY``, ``os.O_RDWR | os.O_CREAT``, …
        own: refuse a file that another user (root apart) owns or could have written.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is not one's own.
    """
    # Without O_NONBLOCK the opening of a FIFO waits for its other end.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if own and (found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH):
            raise PermissionError(errno.EPERM, "another user owns it or can write it", str(path))
        return FileIO(descriptor, "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_tail(path: Path, most_bytes: int) -> bytes:
    """Return a file of one's own, or the last MOST_BYTES of it.

    Raises:
        OSError: it cannot be read, is not a regular file, or is not one's own.
    """
    with open_regular(path, os.O_RDONLY, own=True) as file:
        return _end(file, most_bytes)


def rows(path: Path, most_bytes: int) -> list[dict[str, Any] | None]:
    """Return the object on each line of a file of one's own, oldest first; None stands for a damaged line.

    Args:
        path: the file.
        most_bytes: of a larger file only so much of its end is read.

    Raises:
        OSError: it cannot be read, is not a regular file, or is not one's own.
    """
    return [_row(line) for line in read_tail(path, most_bytes).split(b"\n") if line.strip()]


def read(path: Path, decode: Callable[[dict[str, Any]], T], most_bytes: int) -> list[T]:
    """Return what each line's object decodes to, oldest first; damaged lines are left out.

    Args:
        path: the file.
        decode: makes a value of an object; raises ``Damaged`` or ``KeyError`` where it is not what it should be.
        most_bytes: of a larger file only so much of its end is read.

    Raises:
        OSError: it cannot be read, is not a regular file, or is not one's own.
    """
    decoded: list[T] = []
    for row in rows(path, most_bytes):
        if row is not None:
            with contextlib.suppress(Damaged, KeyError):
                decoded.append(decode(row))
    return decoded


def append(
    path: Path,
    row: Mapping[str, Any],
    *,
    sync: bool = False,
    most_bytes: int | None = None,
    thin: Callable[[list[bytes]], list[bytes]] | None = None,
    lock_seconds: float = LOCK_SECONDS,
) -> str:
    """Add a line under an exclusive lock; return it. It is written whole or not at all.

    Args:
        path: the file; it and its directory are made where they are missing, for their owner's eyes only.
        row: the object.
        sync: the line, and a new file's name, are on disk when this returns.
        most_bytes: a file that would grow beyond it is thinned out first.
        thin: takes the file's lines (each with its newline, oldest first) and returns those to keep.
        lock_seconds: how long to wait for another process's lock.

    Raises:
        TimeoutError: another process held the lock all the while.
        OSError: the line cannot be written.
    """
    text = _written(row)
    line = text.encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file, is_new = _open_locked(path, lock_seconds)
    with file:
        end = file.seek(0, os.SEEK_END)
        if thin is not None and most_bytes is not None and end + len(line) > most_bytes:
            lines = [kept + b"\n" for kept in _end(file, 2 * most_bytes).split(b"\n") if kept.strip()]
            _replace(path, [*thin(lines), line])
            return text
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line  # the one before was cut short
        _write(file, line, end)
        if sync:
            os.fsync(file.fileno())
    if sync and is_new:
        _sync_directory(path.parent)
    return text


def _row(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(Damaged):
        return require_type(parse(line), dict)
    return None


def _end(file: FileIO, most_bytes: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - most_bytes))
    data = file.read(most_bytes) or b""
    # What was left out may end in the middle of a line.
    return data if size <= most_bytes else data.partition(b"\n")[2]


def _written(row: Mapping[str, Any]) -> str:
    return json_text(row, compact=True)  # bytes of the operating system that are no text are escaped, too


def _write(file: FileIO, data: bytes, end: int) -> None:
    """Write at the END, all of it or nothing: a disk that fills up takes a piece, without an error."""
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    """Put lines in place of the file's in one step; the caller holds the lock of the file that goes."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        with open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as file:
            _write(file, b"".join(lines), 0)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_locked(path: Path, seconds: float) -> tuple[FileIO, bool]:
    """Return the file, opened to read and to append, with its lock held, and whether it is new."""
    deadline = time.monotonic() + seconds
    while True:
        is_new = not path.exists()
        file = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            _lock(file, path, seconds, deadline)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file, is_new
        except BaseException:
            file.close()
            raise
        file.close()  # it was replaced while this waited for its lock


def _lock(file: FileIO, path: Path, seconds: float, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                message = f"another process{_holder(file)} has held its lock for {seconds:g}s"
                raise TimeoutError(errno.ETIMEDOUT, message, str(path)) from None
            time.sleep(_POLL_SECONDS)


def _holder(file: FileIO) -> str:
    """Return which process has the lock, where the kernel says so (Linux's ``/proc/locks``)."""
    inode = str(os.fstat(file.fileno()).st_ino)
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return f" (pid {words[4]})"
    return ""


def _sync_directory(path: Path) -> None:
    """Make the file's name as durable as what is in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is out of range")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found
