"""Opens the regular file that the output goes to, with what the last run recorded about it."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from rdsrepl.errors import SinkFailed
from rdsrepl.state import json_lines
from rdsrepl.tail.sinks.position_file import SUFFIX, FilePosition, PositionFile, StreamSource
from rdsrepl.tail.sinks.recorded_file import OpenFile, RecordedFileSink, require_source, verify
from rdsrepl.tail.sinks.rotation import Rotation
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown


def positions_path(path: Path) -> Path:
    """Return the file in which the positions of an output file are recorded."""
    return path.with_name(path.name + SUFFIX)


def name_of(fd: int) -> Path | None:
    """Return the name of an open file; None if it has none, or the system does not report it."""
    try:
        if hasattr(fcntl, "F_GETPATH"):  # macOS
            name = fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")
        else:
            name = os.fsencode(Path(f"/proc/self/fd/{fd}").readlink())
        path = Path(os.fsdecode(name))
        return path if os.path.samestat(path.stat(), os.fstat(fd)) else None
    except OSError:
        return None


def is_appended_to(fd: int) -> bool:
    """Return whether a descriptor is a regular file, and is written at its end."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and os.lseek(fd, 0, os.SEEK_CUR) in (0, status.st_size)


def recorded_file(
    fd: int, source: StreamSource, repair: Callable[[int], None], warn: Callable[[str], None]
) -> RecordedFileSink | None:
    """Return the sink for a descriptor, if it is a regular file that positions can be recorded for.

    Args:
        fd: the descriptor.
        source: what is written.
        repair: repairs the end of a file that no position is known of.
        warn: takes a warning: why changes may be written again.

    Raises:
        Refused: the file is not the one that the last run wrote, or another process writes it.
    """
    if not is_appended_to(fd):
        return None
    path = name_of(fd)
    if path is None:
        warn("the output file has no name to record positions at: a run that is killed may write changes again")
        return None
    try:
        file = _opened(path, fd)
    except OSError as exc:
        warn(
            f"could not record positions in {shown(str(positions_path(path)))}: {exc.strerror or exc}: a run that is "
            "killed may write changes again"
        )
        return None
    with _closed_after_error(file):
        position = _known(file, source, warn)
        if position is None:
            repair(fd)
    return RecordedFileSink(file, source, position)


def named_file(
    path: Path,
    rotation: Rotation,
    source: StreamSource,
    repair: Callable[[int], None],
    warn: Callable[[str], None],
    closed: Callable[[], None] | None = None,
    *,
    starts_anew: bool = False,
) -> RecordedFileSink:
    """Return the sink for a file by its name; the file is created if it does not exist.

    Args:
        path: the name.
        rotation: when the file is closed and a new one is begun.
        source: what is written.
        repair: repairs the end of a file that no position is known of.
        warn: takes a warning: why changes may be written again.
        closed: called after a file was closed.
        starts_anew: forget what is recorded.

    Raises:
        Refused: the file is not the one that the last run wrote, or another process writes it.
        SinkFailed: it cannot be opened.
    """
    path = path.resolve()
    try:
        file = _opened(path)
    except OSError as exc:
        raise SinkFailed(
            f"could not open {shown(exc.filename or str(path))}: {exc.strerror or exc}",
            hint="give the user of this process the right to write this file and its directory",
        ) from exc
    with _closed_after_error(file):
        if starts_anew:
            file.positions.clear()
        position = _known(file, source, warn, is_named=True)
        if position is None:
            repair(file.fd)
    return RecordedFileSink(file, source, position, rotation, closed)


def _opened(path: Path, fd: int | None = None) -> OpenFile:
    """Open a file, or take a descriptor of it that is open.

    Raises:
        InUse: another process writes it.
        OSError: it cannot be opened, or its positions cannot.
    """
    with ExitStack() as opened:
        positions = opened.enter_context(closing(PositionFile(positions_path(path))))
        owns_fd = fd is None
        if fd is None:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            opened.callback(os.close, fd)
        reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, reader)
        json_lines.sync_directory(path.parent)
        opened.pop_all()
    return OpenFile(path, fd, reader, positions, owns_fd)


@contextmanager
def _closed_after_error(file: OpenFile) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise


def forget_positions(fd: int) -> None:
    """Remove what was recorded about a file, to which changes are written at least once from now on."""
    path = name_of(fd) if is_appended_to(fd) else None
    if path is not None:
        positions_path(path).unlink(missing_ok=True)


def _known(
    file: OpenFile, source: StreamSource, warn: Callable[[str], None], *, is_named: bool = False
) -> FilePosition | None:
    """Return the position that the file ends at, if a run recorded it.

    Raises:
        Refused: the file is not the one that the last run wrote.
    """
    position, size, name = file.positions.load(), os.fstat(file.reader).st_size, shown(str(file.path))
    if position is None:
        if size:
            warn(f"{name} has no recorded position: changes that it has may be written again, this time")
        return None
    if not size and is_named and (position.is_closing or not position.size):
        # The next file of a rotation; a crash may have come before its first record.
        require_source(file.path, source, position)
        return replace(position, size=0, checksum=0)
    if not size:
        if position.size and position.end is None:
            warn(
                f"{name} is empty, and the last run, which was killed, wrote {counted(position.size, 'byte')}: "
                "changes that those had may be written again"
            )
        return None
    require_source(file.path, source, position)
    verify(file.path, size, file.reader, position, file.positions.most_written(position))
    return position
