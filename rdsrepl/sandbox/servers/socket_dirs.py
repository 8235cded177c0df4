"""Directories for unix sockets: paths that are short enough and that only the user of the servers may enter."""

from __future__ import annotations

import os
import random
import re
import stat
import tempfile
from pathlib import Path
from typing import Final

from rdsrepl.errors import Error
from rdsrepl.sandbox.servers import processes

# The path of a unix socket has at most 107 bytes on Linux, 103 on macOS.
_SOCKET_PATH_BYTES: Final = 103


PREFIX: Final = "rdsrepl-"


def new_socket_dir(launcher: processes.Launcher) -> Path:
    """Return the path of a directory for unix sockets that does not exist yet.

    The path of a socket in it is short enough, and no other user can replace the directory.

    Raises:
        Error: no temporary directory is suitable.
    """
    for base in (tempfile.gettempdir(), "/tmp"):
        path = Path(base) / f"{PREFIX}{random.SystemRandom().randrange(16**8):08x}"
        plain = re.fullmatch(r"[A-Za-z0-9/._-]+", str(path))
        if not plain or len(os.fsencode(path / ".s.PGSQL.65535.lock")) > _SOCKET_PATH_BYTES:
            continue
        if _is_safe(Path(base), launcher):
            return path
    raise Error(
        "no temporary directory is suitable for unix sockets",
        hint="set TMPDIR to a directory with a short path, in which other users cannot rename files",
    )


def make_socket_dir(path: Path, launcher: processes.Launcher) -> Path:
    """Create a directory for unix sockets that only the user of the servers may enter, and return it.

    Raises:
        FileExistsError: the path exists.
    """
    path.mkdir(mode=0o700)
    launcher.chown(path)
    return path


def is_socket_dir(path: Path, launcher: processes.Launcher) -> bool:
    """Return whether PATH is a directory that ``make_socket_dir`` created, and not another user."""
    try:
        status = path.lstat()
    except OSError:
        return False
    owner = launcher.owner[0] if launcher.owner is not None else os.geteuid()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and stat.S_IMODE(status.st_mode) == 0o700


def _is_safe(base: Path, launcher: processes.Launcher) -> bool:
    """Return whether no other user can rename files in BASE, and the user of the servers can enter it."""
    real = Path(os.path.realpath(base))
    for place in (real, *real.parents):
        status = place.stat()
        is_foreign = status.st_uid not in (0, os.geteuid())
        if is_foreign or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            return False
        if launcher.owner is not None and not status.st_mode & stat.S_IXOTH:
            return False
    return True
