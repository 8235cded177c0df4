"""Directories for the unix sockets of the servers: short paths that only the servers' user may enter."""

from __future__ import annotations

import os
import random
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Error
from rdsrepl.sandbox.servers import processes

if TYPE_CHECKING:
    pass

# A unix socket's path holds 107 bytes on Linux, 103 on macOS.
_SOCKET_PATH_BYTES: Final = 103


PREFIX: Final = "rdsrepl-"


def new_socket_dir(launcher: processes.Launcher) -> Path:
    """Return the path of a directory for unix sockets that does not exist yet.

    It is short enough for a socket in it, and once it is made nobody can put another in its place.
    """
    for base in (tempfile.gettempdir(), "/tmp"):
        path = Path(base) / f"{PREFIX}{random.SystemRandom().randrange(16**8):08x}"
        plain = re.fullmatch(r"[A-Za-z0-9/._-]+", str(path))
        if not plain or len(os.fsencode(path / ".s.PGSQL.65535.lock")) > _SOCKET_PATH_BYTES:
            continue
        if _is_safe(Path(base), launcher):
            return path
    raise Error(
        "no temporary directory does for unix sockets: a short path, and one in which others cannot rename our files",
        hint="set TMPDIR to such a directory",
    )


def make_socket_dir(path: Path, launcher: processes.Launcher) -> Path:
    """Make a directory for unix sockets that only the servers' user may enter, and return it.

    Raises:
        FileExistsError: somebody else has made something of that name.
    """
    path.mkdir(mode=0o700)
    launcher.chown(path)
    return path


def is_socket_dir(path: Path, launcher: processes.Launcher) -> bool:
    """Say whether PATH is a directory that ``make_socket_dir`` made, and nobody else."""
    try:
        found = path.lstat()
    except OSError:
        return False
    mine = launcher.owner[0] if launcher.owner is not None else os.geteuid()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == mine and stat.S_IMODE(found.st_mode) == 0o700


def _is_safe(base: Path, launcher: processes.Launcher) -> bool:
    """Say whether nobody else can rename what is in BASE, and the servers' user can get there."""
    real = Path(os.path.realpath(base))
    for place in (real, *real.parents):
        found = place.stat()
        theirs = found.st_uid not in (0, os.geteuid())
        if theirs or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
            return False
        if launcher.owner is not None and not found.st_mode & stat.S_IXOTH:
            return False
    return True
