"""Read, append and replace local state files: the audit trail, the slot history, the runbook journals.

Such a file can be truncated, damaged, replaced by another kind of file, or locked by a suspended process. A damaged
line affects only itself, a wait for a lock has a time limit, and only regular files are opened.
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
from collections.abc import Callable, Mapping
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar

from rdsrepl.text.escapes import json_text

T = TypeVar("T")

LOCK_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
# The range of PostgreSQL's numbers (``bigint`` is signed; ``xid8`` and ``pg_lsn`` are unsigned).
_MIN_INTEGER: Final = -(2**63)
_MAX_INTEGER: Final = 2**64 - 1


class Damaged(ValueError):
    """A line, or a value in it, does not have the expected form."""


def parse(text: bytes | str) -> Any:
    """Return the value of a JSON text by RFC 8259: no NaN, no number out of a float's range, no duplicate name.

    Raises:
        Damaged: the text is not valid JSON or UTF-8, or is nested too deep for the parser.
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
    """Return VALUE if its type is exactly KIND (``True`` is not an ``int``).

    Raises:
        Damaged: it has another type.
    """
    if type(value) is not kind:
        raise Damaged(f"expected: {kind.__name__}")
    return value


def require_int64(value: object) -> int:
    """Return VALUE if it is a signed or unsigned integer of 64 bits.

    Raises:
        Damaged: it is not.
    """
    number = require_type(value, int)
    if not _MIN_INTEGER <= number <= _MAX_INTEGER:
        raise Damaged("expected: an integer of 64 bits")
    return number


def parse_time(value: object) -> datetime:
    """Return the time of an ISO 8601 text with a UTC offset.

    Raises:
        Damaged: the text is not valid, or the year is not between 1970 and 2999.
    """
    try:
        moment = datetime.fromisoformat(require_type(value, str))
    except ValueError as exc:
        raise Damaged(str(exc)) from None
    if moment.tzinfo is None or not 1970 <= moment.year < 3000:
        raise Damaged("expected: a time with a UTC offset")
    return moment


def open_regular(path: Path, flags: int, *, own: bool = False) -> FileIO:
    """Open a regular file without blocking; a new file is readable only by its owner.

    Args:
        path: the file.
        flags: ``os.O_RDONLY``, ``os.O_RDWR | os.O_CREAT``, …
        own: refuse a file that another user (except root) owns, or that other users can write to.

    Raises:
        OSError: the file cannot be opened, is not regular, or belongs to another user.
    """
    # Without O_NONBLOCK, opening a FIFO waits for its other end.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if own and (status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH):
            raise PermissionError(errno.EPERM, "another user owns it or can write to it", str(path))
        return FileIO(descriptor, "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_tail(path: Path, max_bytes: int) -> bytes:
    """Return the content of the user's own file, or its last MAX_BYTES.

    Raises:
        OSError: the file cannot be read, is not regular, or belongs to another user.
    """
    with open_regular(path, os.O_RDONLY, own=True) as file:
        return _end(file, max_bytes)


def rows(path: Path, max_bytes: int) -> list[dict[str, Any] | None]:
    """Return the object of each line of the user's own file, oldest first; None for a damaged line.

    Args:
        path: the file.
        max_bytes: read only this much of the end of a larger file.

    Raises:
        OSError: the file cannot be read, is not regular, or belongs to another user.
    """
    return [_row(line) for line in read_tail(path, max_bytes).split(b"\n") if line.strip()]


def read(path: Path, decode: Callable[[dict[str, Any]], T], max_bytes: int) -> list[T]:
    """Return the decoded object of each line, oldest first; omit damaged lines.

    Args:
        path: the file.
        decode: converts an object; raises ``Damaged`` or ``KeyError`` if it does not have the expected form.
        max_bytes: read only this much of the end of a larger file.

    Raises:
        OSError: the file cannot be read, is not regular, or belongs to another user.
    """
    decoded: list[T] = []
    for row in rows(path, max_bytes):
        if row is not None:
            with contextlib.suppress(Damaged, KeyError):
                decoded.append(decode(row))
    return decoded


def append(
    path: Path,
    row: Mapping[str, Any],
    *,
    sync: bool = False,
    max_bytes: int | None = None,
    thin: Callable[[list[bytes]], list[bytes]] | None = None,
    lock_seconds: float = LOCK_SECONDS,
) -> str:
    """Append a line under an exclusive lock, completely or not at all; return it.

    Args:
        path: the file; it and its directory are created if necessary, readable only by their owner.
        row: the object.
        sync: write the line, and the name of a new file, to disk before returning.
        max_bytes: thin out the file first if the line would make it larger than this.
        thin: takes the lines of the file (each with its newline, oldest first) and returns the lines to keep.
        lock_seconds: how long to wait for the lock of another process.

    Raises:
        TimeoutError: another process held the lock all that time.
        OSError: the line cannot be written.
    """
    text = json_text(row, compact=True)  # escapes bytes of the operating system that are not text
    line = text.encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file, is_new = _open_locked(path, lock_seconds)
    with file:
        end = file.seek(0, os.SEEK_END)
        if thin is not None and max_bytes is not None and end + len(line) > max_bytes:
            lines = [kept + b"\n" for kept in _end(file, 2 * max_bytes).split(b"\n") if kept.strip()]
            replace_file(path.resolve(), b"".join([*thin(lines), line]), sync=True)
            return text
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line  # the line before is incomplete
        _write(file, line, end)
        if sync:
            os.fsync(file.fileno())
    if sync and is_new:
        sync_directory(path.parent)
    return text


def _row(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(Damaged):
        return require_type(parse(line), dict)
    return None


def _end(file: FileIO, max_bytes: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - max_bytes))
    data = file.read(max_bytes) or b""
    # The omitted part can end within a line.
    return data if size <= max_bytes else data.partition(b"\n")[2]


def _write(file: FileIO, data: bytes, end: int) -> None:
    """Write at the end of the file, completely or not at all; on a full disk, a partial write raises no error."""
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def replace_file(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Replace a file in one step with a new one that only its owner can read.

    Args:
        path: the file; its directory is created if necessary.
        data: the new content.
        sync: write it to disk before returning.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as file:
            _write(file, data, 0)
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_locked(path: Path, seconds: float) -> tuple[FileIO, bool]:
    """Return the file, opened for reading and appending and locked, and whether it is new."""
    deadline = time.monotonic() + seconds
    while True:
        is_new = not path.exists()
        file = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            lock(file, path, seconds, deadline)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file, is_new
        except BaseException:
            file.close()
            raise
        file.close()  # another process replaced it during the wait for the lock


def lock(file: FileIO, path: Path, seconds: float, deadline: float) -> None:
    """Get an exclusive lock on a file, until it is closed; wait until DEADLINE, which is in SECONDS.

    Raises:
        TimeoutError: another process held it all that time; the text names the process, if the kernel reports it.
    """
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
    """Return the process that holds the lock, if the kernel reports it (``/proc/locks`` of Linux)."""
    inode = str(os.fstat(file.fileno()).st_ino)
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return f" (pid {words[4]})"
    return ""


def sync_directory(path: Path) -> None:
    """Write the names of new files to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is out of range")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate name")
    return values
