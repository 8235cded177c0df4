"""Replace the config file: one writer at a time, atomically, with the mode, the owner and the links of the old file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from rdsrepl.errors import ConfigError, Error, StalePlan

LOCK_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02


def read(path: Path) -> str:
    """Return the text of the file with its own line ends; empty if it does not exist.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as exc:
        raise ConfigError(f"could not read {path}: {exc}", hint="make the file readable, in UTF-8") from exc


def update(path: Path, edit: Callable[[str], str]) -> None:
    """Replace the text of the file by what EDIT makes of it; a missing file is created, for its owner only.

    A second writer waits. A process that is killed leaves the old file or the new one, never a part of one.

    Raises:
        ConfigError: the file cannot be read.
        StalePlan: an editor changed the file in the meantime.
        Error: the file cannot be written.
    """
    try:
        real = path.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        if real.exists() and not real.is_file():
            raise Error(f"{path} is not a regular file", hint="set RDSREPL_CONFIG to the path of a file")
        with _locked(real.parent):
            before = read(real)
            after = edit(before)
            if after != before:
                _replace(real, before, after)
    except (OSError, RuntimeError) as exc:  # RuntimeError: links that lead to each other
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise Error(
            f"could not write {path}: {reason}; the file is unchanged",
            hint="make the file and its directory writable, or set RDSREPL_CONFIG to another path",
        ) from exc


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of the directory, which leaves no lock file behind; a file system without locks has none."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Error(
                        f"could not lock {directory} in {LOCK_SECONDS:.0f} s: another process has it locked",
                        hint="wait until it ends, or stop it, then run the command again",
                    ) from None
                time.sleep(_POLL_SECONDS)
            except OSError:  # some network file systems; ``_replace`` compares the file with what was read
                break
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, before: str, after: str) -> None:
    """Write a file beside PATH and rename it, unless PATH no longer holds BEFORE."""
    status = path.stat() if path.exists() else None
    if status is not None and not os.access(path, os.W_OK):
        raise PermissionError(0, "it is read-only")
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)  # of a process that was killed
    new.touch(mode=0o600, exist_ok=False)
    try:
        with new.open("wb") as file:
            file.write(after.encode("utf-8"))
            if status is not None:
                with contextlib.suppress(PermissionError):  # the group can be one that this user is not in
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
        if read(path) != before or path.exists() != (status is not None):
            raise StalePlan(f"{path} was changed in the meantime; nothing is written", hint="run the command again")
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
