"""The audit trail: one JSON object a line for what cannot be undone, in ``<state directory>/audit.jsonl``.

An intent is written and synced before the statement, the outcome after it. An intent without an outcome says that this
process ended in between, and that somebody has to look.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rdsrepl.config import state_directory
from rdsrepl.errors import Refused
from rdsrepl.state import json_lines


def audit_file() -> Path:
    """Return where the trail is."""
    return state_directory() / "audit.jsonl"


def process_identity() -> dict[str, Any]:
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
    path = audit_file()
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    try:
        return json_lines.append(path, {"time": moment, **entry}, sync=True)
    except TimeoutError as exc:
        raise Refused(
            f"the audit trail cannot be written ({path}: {exc.strerror}); nothing is done without it",
            hint="let that process go on (kill -CONT PID) or end it, and try again",
        ) from exc
    except OSError as exc:
        raise Refused(
            f"the audit trail cannot be written ({path}: {exc.strerror or exc}); nothing is done without it",
            hint="make the directory writable, or name another one in RDSREPL_STATE_DIR",
        ) from exc
