"""Opens the regular file that the output goes to, with what the last run recorded about it."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from rdsrepl.tail.sinks.position_file import SUFFIX, FilePosition, PositionFile, StreamSource
from rdsrepl.tail.sinks.recorded_file import RecordedFileSink, require_source, verify
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
    fd: int, source: StreamSource, repair: Callable[[], None], warn: Callable[[str], None]
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
    opened = ExitStack()  # closed unless the sink takes over
    try:
        reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, reader)
        positions = opened.enter_context(closing(PositionFile(positions_path(path))))
    except OSError as exc:
        opened.close()
        warn(
            f"could not record positions in {shown(str(positions_path(path)))}: {exc.strerror or exc}: a run that is "
            "killed may write changes again"
        )
        return None
    with opened:
        position = _known(path, reader, positions, source, warn)
        if position is None:
            repair()
        opened.pop_all()
    return RecordedFileSink(fd, path, reader, positions, source, position)


def forget_positions(fd: int) -> None:
    """Remove what was recorded about a file, to which changes are written at least once from now on."""
    path = name_of(fd) if is_appended_to(fd) else None
    if path is not None:
        positions_path(path).unlink(missing_ok=True)


def _known(
    path: Path, reader: int, positions: PositionFile, source: StreamSource, warn: Callable[[str], None]
) -> FilePosition | None:
    """Return the position that the file ends at, if a run recorded it.

    Raises:
        Refused: the file is not the one that the last run wrote.
    """
    position, size, name = positions.load(), os.fstat(reader).st_size, shown(str(path))
    if position is None:
        if size:
            warn(f"{name} has no recorded position: changes that it has may be written again, this time")
        return None
    if not size:
        if position.size and position.end is None:
            warn(
                f"{name} is empty, and the last run, which was killed, wrote {position.size} bytes: changes that "
                "those had may be written again"
            )
        return None
    require_source(path, source, position)
    verify(path, size, reader, position, positions.most_written(position))
    return position
