"""The directory of the sandbox: one state file, one lock, and the files of its programs.

Everything that the sandbox creates is written to the state file first, so that ``down`` can remove it after a crash.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import home_directory
from rdsrepl.errors import Error, Refused, TimedOut
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.state import ApiState, EndpointState, ProcessState, RelayState, ServerState, State

FORMAT: Final = 2
LOCK_WAIT_SECONDS: Final = 180.0
# File systems store times with a resolution of milliseconds; one second is safe on all of them.
_RECENT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class SandboxDirectory:
    """The directory of the sandbox and the files in it."""

    path: Path

    @property
    def state_file(self) -> Path:
        """``State`` as JSON."""
        return self.path / "state.json"

    @property
    def servers_dir(self) -> Path:
        """The data directories and logs of the servers."""
        return self.path / "servers"

    @property
    def endpoint_file(self) -> Path:
        """``RelayState`` as JSON; the relay writes it when it listens."""
        return self.path / "endpoint.json"

    @property
    def endpoint_log(self) -> Path:
        """The log of the relay."""
        return self.path / "endpoint.log"

    @property
    def api_file(self) -> Path:
        """``ApiState`` as JSON; the API writes it when it listens."""
        return self.path / "api.json"

    @property
    def api_log(self) -> Path:
        """The log of the API."""
        return self.path / "api.log"

    @property
    def aws_file(self) -> Path:
        """The records of the API: parameter groups, clusters, instances."""
        return self.path / "aws.json"

    @property
    def aws_config_file(self) -> Path:
        """The shared AWS config file with the profile ``sandbox``."""
        return self.path / "aws" / "config"

    @property
    def aws_credentials_file(self) -> Path:
        """The shared AWS credentials file with the profile ``sandbox``."""
        return self.path / "aws" / "credentials"

    @property
    def credentials_file(self) -> Path:
        """The keys that sign requests to the API (``credentials``)."""
        return self.path / "credentials.json"

    @property
    def programs_lock_file(self) -> Path:
        """Locked, shared, by the programs that the API runs, so that ``down`` can wait for them."""
        return self.path / "programs.lock"

    @property
    def spawned_file(self) -> Path:
        """The processes that ``up`` started last, as JSON."""
        return self.path / "spawned.json"

    @property
    def state_lock_file(self) -> Path:
        """Locked during a change of the state."""
        return self.path / "state.lock"

    @property
    def granted_roles_file(self) -> Path:
        """The roles to which the relay granted the REPLICATION attribute, as JSON."""
        return self.path / "granted_roles.json"

    @property
    def passfile(self) -> Path:
        """The password of the master user, in the format of ``.pgpass``."""
        return self.path / "pgpass"

    @property
    def lock_file(self) -> Path:
        """Locked by the running command and by the programs that it runs."""
        return self.path / "lock"

    def check_owner(self) -> None:
        """Refuse a directory to which another user may write: the state names programs that are run.

        Raises:
            Refused: another user owns the directory, or may write to it.
        """
        for status in (self.path.lstat(), self.path.stat()):
            writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022
            if status.st_uid != os.geteuid() or writable:
                raise Refused(
                    f"the sandbox directory {self.path} belongs to another user, or other users may write to it",
                    hint="set RDSREPL_SANDBOX_DIR to a directory that does not exist yet",
                )

    def read(self) -> State | None:
        """Return the state; None when the sandbox does not exist.

        Raises:
            Error: another version wrote the state file.
            Refused: another user may have written it.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            self.check_owner()
        fields = self._load(self.state_file)
        if fields is None:
            return None
        try:
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            servers = tuple(ServerState(**{**s, "version": tuple(s["version"])}) for s in fields.pop("servers"))
            endpoints = tuple(EndpointState(**endpoint) for endpoint in fields.pop("endpoints"))
            version = tuple(fields.pop("version"))
            return State(**fields, version=version, servers=servers, endpoints=endpoints)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise Error(
                f"the format of {self.state_file} is not that of this version of rdsrepl: {exc}",
                hint="remove that sandbox: rdsrepl sandbox down",
            ) from exc

    def write(self, state: State) -> None:
        """Write the state, in one step."""
        self.save(self.state_file, {"format": FORMAT, **asdict(state)})

    def update(self, change: Callable[[State], State]) -> State:
        """Change the state under a lock, and return the new state.

        Raises:
            Error: the sandbox was removed, or is being removed.
        """
        gone = Error(f"the sandbox in {self.path} was removed", hint="create it again: rdsrepl sandbox up")
        try:
            lock = self.state_lock_file.open("a")
        except FileNotFoundError:
            raise gone from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            if state is None or state.phase == "removing":
                raise gone
            changed = change(state)
            if changed != state:
                self.write(changed)
        return changed

    def relay(self) -> RelayState | None:
        """Return what the relay last wrote about itself."""
        fields = self._load(self.endpoint_file)
        with suppress(TypeError):
            return None if fields is None else RelayState(**fields)
        return None

    def api(self) -> ApiState | None:
        """Return what the API last wrote about itself."""
        fields = self._load(self.api_file)
        with suppress(TypeError):
            return None if fields is None else ApiState(**fields)
        return None

    def record_spawned(self, module: str, process: ProcessState) -> None:
        """Record a process that was just started, until it writes about itself."""
        noted = {name: asdict(other) for name, other in self.spawned().items()}
        self.save(self.spawned_file, {**noted, module: asdict(process)})

    def spawned(self) -> dict[str, ProcessState]:
        """Return the processes that were started last, by module."""
        with suppress(Error, TypeError):
            return {module: ProcessState(**fields) for module, fields in (self._load(self.spawned_file) or {}).items()}
        return {}

    @contextmanager
    def programs(self) -> Iterator[int]:
        """Yield the file descriptor of a lock, which PostgreSQL programs that the API runs inherit."""
        with self.programs_lock_file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield lock.fileno()

    def await_programs(self) -> None:
        """Wait up to a minute until those programs have ended; they may run longer than a killed API."""
        with suppress(FileNotFoundError), self.programs_lock_file.open("r") as lock:

            def free() -> bool:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            processes.wait(free, 60.0)

    def save(self, path: Path, value: object) -> None:
        """Replace a file of the directory by a value as JSON, in one step; only the owner may read it."""
        processes.write_private_file(path, json.dumps(value, indent=2) + "\n")

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except (OSError, ValueError) as exc:
            raise Error(f"could not read {path}: {exc}", hint="remove that sandbox: rdsrepl sandbox down") from exc
        return loaded if isinstance(loaded, dict) else {}

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[int]:
        """Hold the lock of the sandbox for one command; yield the file descriptor of the lock.

        A program that inherits the descriptor holds the lock, too. So when a command is killed, the next command waits
        for the ``initdb`` of the killed one instead of removing the directory that it writes.

        Args:
            waiting: called once when another command holds the lock.

        Raises:
            TimedOut: the other command does not end.
        """
        descriptor = self._open_lock(waiting)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_lock(self, waiting: Callable[[], None]) -> int:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        notified = False
        while True:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.check_owner()
                descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:  # a `down` removed the directory between the two lines
                continue
            except OSError as exc:
                raise Error(
                    f"could not use the sandbox directory: {exc}", hint="set RDSREPL_SANDBOX_DIR to another directory"
                ) from exc
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A `down` may have removed the file that was opened; then the lock protects nothing.
                if os.fstat(descriptor).st_ino == self.lock_file.stat().st_ino:
                    return descriptor
                os.close(descriptor)
                continue
            except FileNotFoundError:
                os.close(descriptor)
                continue
            except BlockingIOError:
                os.close(descriptor)
            if not notified:
                waiting()
                notified = True
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"timed out after {LOCK_WAIT_SECONDS:.0f} s: another command of the sandbox is running",
                    hint="wait until it ends, or stop it",
                )
            time.sleep(0.1)

    def remove(self) -> None:
        """Remove the directory and the lock in it, and the empty rdsrepl directories above it."""
        self.lock_file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
            for parent in list(self.path.parents)[:2]:
                if parent.name == "rdsrepl":
                    parent.rmdir()


class StateReader:
    """Reads the state again only after it changed, for a process that needs it many times a second."""

    def __init__(self, directory: SandboxDirectory) -> None:
        self._directory = directory
        self._stamp: tuple[int, int] | None = None
        self._state: State | None = None

    def read(self) -> State | None:
        """Return the state; the last one if the sandbox was removed, None if there was none.

        Raises:
            Error: another version wrote the state file.
            Refused: another user may have written it.
        """
        with suppress(OSError):
            status = self._directory.state_file.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            # A file that was replaced twice in a moment can have the inode and the time of the first one.
            if stamp != self._stamp or time.time() - status.st_mtime < _RECENT_SECONDS:
                self._state, self._stamp = self._directory.read(), stamp
        return self._state


def directory() -> SandboxDirectory:
    """Return the directory of the sandbox: ``RDSREPL_SANDBOX_DIR``, or one under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_SANDBOX_DIR"):
        return SandboxDirectory(Path(explicit).absolute())
    base = os.environ.get("XDG_STATE_HOME")
    return SandboxDirectory((Path(base) if base else home_directory() / ".local" / "state") / "rdsrepl" / "sandbox")
