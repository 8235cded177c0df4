"""The audit trail: one JSON object a line for what cannot be undone, in ``<state directory>/audit.jsonl``.

An intent is written and synced before the statement, the outcome after it. An intent without an outcome says that this
process ended in between, and that somebody has to look.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rdsrepl.config import state_directory
from rdsrepl.errors import Refused


def audit_file() -> Path:
    """Return where the trail is."""
    return state_directory() / "audit.jsonl"


def who() -> dict[str, Any]:
    """Return who runs this process, and where."""
    import pwd
    import socket

    try:
        user = pwd.getpwuid(os.getuid()).pw_name  # not what the environment says: anybody can set that
    except KeyError:  # a container's user without a name
        user = str(os.getuid())
    return {"os_user": user, "client": socket.gethostname(), "client_pid": os.getpid()}


def append(entry: Mapping[str, Any]) -> str:
    """Add an entry, with the time (UTC) before it; return the line. It is on disk when this returns.

    Raises:
        Refused: it cannot be written.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}, ensure_ascii=False)
    path = audit_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    line = "\n" + line  # the one before was cut short
            wanted = line.encode() + b"\n"
            if file.write(wanted) != len(wanted):  # a disk that fills up takes a piece, without an error
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if is_new:
            _sync_directory(path.parent)
    except OSError as exc:
        raise Refused(
            f"the audit trail cannot be written ({path}: {exc.strerror or exc}); nothing is done without it",
            hint="make the directory writable, or name another one in RDSREPL_STATE_DIR",
        ) from exc
    return line.lstrip("\n")


def _sync_directory(path: Path) -> None:
    """Make the file's name as durable as what is in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
