"""The state of the snapshots of one slot in a file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Final

from rdsrepl.config import state_directory
from rdsrepl.errors import BadState, InUse, SinkFailed
from rdsrepl.snapshot.state import SnapshotState, StreamIdentity
from rdsrepl.snapshot.state_document import decode, encode
from rdsrepl.state import json_lines
from rdsrepl.text.escapes import shown

_MAX_BYTES: Final = 256 << 20
LOCK_SECONDS: Final = 5.0


def default_file(owner: StreamIdentity) -> Path:
    """Return the file of a slot in the state directory."""
    server, database = (sha256(text.encode()).hexdigest() for text in (owner.system_identifier, owner.database))
    return state_directory() / "snapshots" / f"{server[:16]}-{database[:8]}-{owner.slot_name}.json"


def forget(owner: StreamIdentity) -> None:
    """Remove the default file of a slot that was dropped: a slot that is created later with its name has other changes.

    A cursor of the old slot would leave out rows whose changes nothing has sent.
    """
    with contextlib.suppress(OSError):
        default_file(owner).unlink(missing_ok=True)


class FileStore:
    """The state in a file, which is replaced in one step; ``FILE.lock`` beside it is locked by this process."""

    def __init__(self, path: Path, owner: StreamIdentity) -> None:
        self.path = path.resolve()  # a symbolic link stays one
        self._owner = owner
        self._lock: FileIO | None = None

    def load(self) -> tuple[SnapshotState, ...]:
        """Lock and read the file; see ``Store``."""
        if self._lock is None:
            self._lock = self._locked()
        return read_file(self.path, self._owner) or ()

    def save(self, snapshots: Sequence[SnapshotState]) -> None:
        """Replace the file; see ``Store``."""
        assert self._lock is not None, "load() claims the file"
        try:
            json_lines.replace_file(self.path, encode(self._owner, snapshots).encode(), sync=True)
            json_lines.sync_directory(self.path.parent)
        except OSError as exc:
            raise _not_written(self.path, exc) from exc

    def close(self) -> None:
        """Release the lock; see ``Store``."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _locked(self) -> FileIO:
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = json_lines.open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, own=True)
        except OSError as exc:
            raise _not_written(path, exc) from exc
        try:
            json_lines.lock(file, path, LOCK_SECONDS, time.monotonic() + LOCK_SECONDS)
        except TimeoutError as exc:
            file.close()
            raise InUse(
                f"the snapshot state {shown(str(self.path))} is in use: {exc.strerror}",
                hint="stop that process, or give another file: --state FILE",
            ) from exc
        except BaseException:
            file.close()
            raise
        return file


def _not_written(path: Path, exc: OSError) -> SinkFailed:
    return SinkFailed(
        f"could not write the snapshot state {shown(str(path))}: {exc.strerror or exc}",
        hint="make the directory writable, or give another file: --state FILE",
    )


def read_file(path: Path, owner: StreamIdentity) -> tuple[SnapshotState, ...] | None:
    """Return the state in a file, without a claim on it; None if there is no file.

    Raises:
        BadState: it cannot be read, is damaged, or is of another slot, database or server.
    """
    name = shown(str(path))
    try:
        with json_lines.open_regular(path, os.O_RDONLY, own=True) as file:
            content = file.read(_MAX_BYTES + 1) or b""
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BadState(
            f"could not read the snapshot state {name}: {exc.strerror or exc}",
            hint="give a file of your own: --state FILE",
        ) from exc
    return decode(content, owner, where=name)
