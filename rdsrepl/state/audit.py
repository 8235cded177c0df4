"""Write the audit trail: one JSON object a line for each irreversible change, in ``<state directory>/audit.jsonl``.

An intent is written and synced before the statement, the outcome after it. An intent without an outcome means that the
process ended between the two: check whether the change was made.
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
    """Return the path of the audit file."""
    return state_directory() / "audit.jsonl"


def process_identity() -> dict[str, Any]:
    """Return the user, the host and the PID of this process."""
    import pwd
    import socket

    try:
        user = pwd.getpwuid(os.getuid()).pw_name  # not from the environment, which the user can set
    except KeyError:  # a user of a container without a name
        user = str(os.getuid())
    return {"os_user": user, "client": socket.gethostname(), "client_pid": os.getpid()}


def user_and_host() -> str:
    """Return who runs this process, and on which host: ``ada@ops-1``."""
    process = process_identity()
    return f"{process['os_user']}@{process['client']}"


def append(entry: Mapping[str, Any]) -> str:
    """Write an entry with the time (UTC) to disk; return the line.

    Raises:
        Refused: the file is not writable.
    """
    path = audit_file()
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    try:
        return json_lines.append(path, {"time": moment, **entry}, sync=True)
    except TimeoutError as exc:
        raise Refused(
            f"could not write the audit file {path}: {exc.strerror}; nothing is changed without it",
            hint="resume that process (kill -CONT PID) or stop it, then run the command again",
        ) from exc
    except OSError as exc:
        raise Refused(
            f"could not write the audit file {path}: {exc.strerror or exc}; nothing is changed without it",
            hint="make the directory writable, or set RDSREPL_STATE_DIR to another directory",
        ) from exc
