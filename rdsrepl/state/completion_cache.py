"""Names that the shell's completion found a moment ago, so that the next Tab costs no connection.

``$XDG_CACHE_HOME/rdsrepl/names/<key>.json``, for the owner's eyes only. A file holds names and a time, no secret; its
own name is a hash. A file that cannot be read or written costs the memory and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from rdsrepl.state.json_lines import Damaged, parse, read_tail, require_type

# No entry is believed for longer, whatever stands in it.
MAX_SECONDS: Final = 300.0
_MAX_FILES: Final = 64
_MAX_BYTES: Final = 1 << 20


def directory() -> Path:
    """Return where the names are kept: under ``XDG_CACHE_HOME``.

    Raises:
        RuntimeError: nobody knows where this user's home is.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rdsrepl" / "names"


def read(key: str, *, now: float) -> list[str] | None:
    """Return the names kept under KEY, none of them too; None where nothing is kept that still holds.

    Args:
        key: what identifies the question and whom it was asked.
        now: seconds since the epoch.
    """
    with contextlib.suppress(OSError, RuntimeError, Damaged, KeyError):
        entry = require_type(parse(read_tail(_path(key), _MAX_BYTES)), dict)
        names = [require_type(name, str) for name in require_type(entry["names"], list)]
        # A clock set back, or a file from elsewhere, must not be believed for years.
        until = entry["until"]
        if isinstance(until, int | float) and now < until <= now + MAX_SECONDS:
            return names
    return None


def write(key: str, names: Sequence[str], *, seconds: float, now: float) -> bool:
    """Keep names for some seconds; return whether that could be done."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_expired(path.parent, now)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"until": now + min(seconds, MAX_SECONDS), "names": list(names)}, file)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return True
    return False


def clear() -> None:
    """Forget all names: something was changed, and whoever completes next must see it."""
    with contextlib.suppress(OSError, RuntimeError):
        for path in directory().iterdir():
            path.unlink(missing_ok=True)


def _remove_expired(place: Path, now: float) -> None:
    """Take away what no longer holds, once there is a lot of it."""
    kept = list(place.iterdir())
    if len(kept) > _MAX_FILES:
        for path in kept:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - MAX_SECONDS:
                    path.unlink()


def _path(key: str) -> Path:
    return directory() / f"{sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
