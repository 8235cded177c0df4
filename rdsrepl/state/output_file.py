"""Write a file that the user named: check it before any work is done, and replace it in one step.

Other than the files of the state directory, its directory is not created, and an existing file keeps its permissions.
"""

from __future__ import annotations

import os
from pathlib import Path

from rdsrepl.errors import BadValue, Error
from rdsrepl.state import json_lines
from rdsrepl.text.escapes import shown


def require_writable(path: Path, option: str) -> None:
    """Check that a file can be written; change nothing.

    Args:
        path: the file.
        option: the option that named it, for the message.

    Raises:
        BadValue: it is a directory or another special file, or its directory does not exist or is not writable.
    """
    name = f"{option} {shown(str(path))}"
    try:
        _require_writable(path, option, name)
    except (OSError, RuntimeError) as exc:  # too long; a loop of symbolic links
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise BadValue(f"{name} cannot be used: {reason}", hint="name another file") from exc


def _require_writable(path: Path, option: str, name: str) -> None:
    if path.is_dir():
        raise BadValue(f"{name} is a directory", hint=f"name a file in it, or give {option} - for stdout")
    if path.exists() and not path.is_file():
        raise BadValue(f"{name} is not a regular file", hint=f"give {option} - for stdout")
    directory = path.resolve().parent
    if not directory.is_dir():
        raise BadValue(f"{name}: the directory {shown(str(directory))} does not exist", hint="create it first")
    if not os.access(directory, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise BadValue(f"{name} is not writable", hint=f"name another file, or give {option} - for stdout")


def write(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner can read a new one.

    Raises:
        Error: it cannot be written.
    """
    real = path.resolve()
    try:
        mode = real.stat().st_mode & 0o777 if real.exists() else None
        json_lines.replace_file(real, text.encode("utf-8", "backslashreplace"))
        if mode is not None:
            real.chmod(mode)
    except OSError as exc:
        raise Error(
            f"could not write {shown(str(path))}: {exc.strerror or exc}", hint="name a file on another volume"
        ) from exc
