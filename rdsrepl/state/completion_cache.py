"""Cache the names that shell completion has read, so that the next Tab needs no connection.

``$XDG_CACHE_HOME/rdsrepl/names/<key>.json``, readable only by its owner. A file holds names and a time, no secret; its
name is a hash. If a file cannot be read or written, the names are read again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from rdsrepl.config import home_directory
from rdsrepl.state.json_lines import Damaged, parse, read_tail, replace_file, require_type

# No entry is valid for longer, whatever it contains.
MAX_SECONDS: Final = 300.0
_MAX_FILES: Final = 64
_MAX_BYTES: Final = 1 << 20


def directory() -> Path:
    """Return the directory of the cache, under ``XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else home_directory() / ".cache") / "rdsrepl" / "names"


def read(key: str, *, now: float) -> list[str] | None:
    """Return the names of KEY, which can be empty; None if there is no valid entry.

    Args:
        key: identifies the query and the server.
        now: seconds since the epoch.
    """
    with contextlib.suppress(OSError, Damaged, KeyError):
        entry = require_type(parse(read_tail(_path(key), _MAX_BYTES)), dict)
        names = [require_type(name, str) for name in require_type(entry["names"], list)]
        # Limits the time also after a clock was set back.
        until = entry["until"]
        if isinstance(until, int | float) and now < until <= now + MAX_SECONDS:
            return names
    return None


def write(key: str, names: Sequence[str], *, seconds: float, now: float) -> bool:
    """Store names for a time; return whether that succeeded."""
    with contextlib.suppress(OSError):
        path = _path(key)
        entry = {"until": now + min(seconds, MAX_SECONDS), "names": list(names)}
        replace_file(path, json.dumps(entry).encode())
        _remove_expired(path.parent, now)
        return True
    return False


def clear() -> None:
    """Remove all names after a change, so that the next completion reads them again."""
    with contextlib.suppress(OSError):
        for path in directory().iterdir():
            path.unlink(missing_ok=True)


def _remove_expired(folder: Path, now: float) -> None:
    """Remove expired files, if there are many files."""
    files = list(folder.iterdir())
    if len(files) > _MAX_FILES:
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - MAX_SECONDS:
                    path.unlink()


def _path(key: str) -> Path:
    return directory() / f"{sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
