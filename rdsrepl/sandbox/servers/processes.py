"""Starts the processes of the sandbox in the background, identifies them and stops them.

A process is identified by its id, its start time and its command, never by its name alone. These are recorded before
the program starts: a shell waits for a line of input before it executes the program. The processes that a killed
postmaster leaves are the one exception: they are programs ``postgres`` that run in a data directory of the sandbox.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import Error

_PROC: Final = Path("/proc")
# The user of the servers that root starts. Not `postgres`, which owns the files of servers that are installed.
_SERVER_USER: Final = "nobody"
_POLL_SECONDS: Final = 0.02
# The program starts when a line comes. When this process is killed before, the input ends and it does not start.
_GATE: Final = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
# The environment variables that a server gets: programs that its users run see them, too.
_SERVER_VARIABLES: Final = frozenset(
    {"PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"}
)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Identifies a process; after a crash or a reboot another process may have the same id.

    Attributes:
        pid: the process id.
        started: the start time (``start_time``), which differs from that of any other process with the id.
        command: a part of its command line: the path of the program.
    """

    pid: int
    started: str
    command: str

    def is_running(self) -> bool:
        """Return whether this process still runs."""
        return start_time(self.pid) == self.started and any(self.command in word for word in command_line(self.pid))

    def send(self, how: signal.Signals) -> bool:
        """Send a signal to this process; return whether it still ran."""
        try:
            # Another process can get the id between the check and the signal. A descriptor stays with its process.
            descriptor = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
        except OSError:
            return False
        try:
            if not self.is_running():
                return False
            if descriptor >= 0:
                signal.pidfd_send_signal(descriptor, how)
            else:
                os.kill(self.pid, how)
        except ProcessLookupError:
            return False
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return True

    def end(self, *, how: signal.Signals = signal.SIGTERM, timeout_seconds: float = 10.0) -> None:
        """Send a signal, and SIGKILL when the process still runs after the timeout."""
        if self.send(how) and not wait(lambda: start_time(self.pid) != self.started, timeout_seconds):
            self.send(signal.SIGKILL)
            wait(lambda: start_time(self.pid) != self.started, 5.0)


@dataclass(frozen=True, slots=True)
class Launcher:
    """Runs PostgreSQL programs, which refuse to run as root.

    Attributes:
        owner: the user that runs the programs and owns their directories, as (user id, group id); None is the user of
            this process.
    """

    owner: tuple[int, int] | None = None

    def chown(self, path: Path) -> None:
        """Make the user that runs the programs the owner of PATH, which is in a directory of this process."""
        if self.owner is not None:
            os.chown(path, *self.owner, follow_symlinks=False)

    @contextmanager
    def open_directory(self, directory: Path) -> Iterator[tuple[Path, tuple[int, ...]]]:
        """Yield a path of DIRECTORY for the programs, and the file descriptors that they inherit for it.

        Their user may not be able to enter the parent directories, which root may own. A descriptor does not need them.
        """
        if self.owner is None:
            yield directory, ()
            return
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield Path(f"/proc/self/fd/{descriptor}"), (descriptor,)
        finally:
            os.close(descriptor)

    @contextmanager
    def as_server_user(self) -> Iterator[None]:
        """Read, write and create files as the user that runs the programs, in this thread only.

        That user owns the directory of a server, so a symbolic link there could point to a file that only root may use.

        Raises:
            Error: the system does not allow it.
        """
        if self.owner is None:
            yield
            return
        try:
            _set_filesystem_user(*self.owner)
            yield
        finally:
            _set_filesystem_user(os.geteuid(), os.getegid())

    def options(self) -> dict[str, Any]:
        """Return the arguments for ``subprocess`` to run a program."""
        if self.owner is None:
            return {}
        return {"user": self.owner[0], "group": self.owner[1], "extra_groups": []}

    @property
    def user_name(self) -> str | None:
        """The name of the user that runs the programs; None when it has no name."""
        with suppress(KeyError):
            return pwd.getpwuid(os.geteuid() if self.owner is None else self.owner[0]).pw_name
        return None


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _set_filesystem_user(user: int, group: int) -> None:
    for call, number in ((_libc().setfsgid, group), (_libc().setfsuid, user)):
        call(number)
        # The call does not report success. Called with an invalid id, it returns the current one.
        if call(-1) != number:
            raise Error(f"could not read and write files as user id {user}", hint="run the sandbox as an ordinary user")


@cache
def launcher_for(program: str) -> Launcher:
    """Return a launcher with which this user can run a PostgreSQL program, given by its path.

    Servers that root starts run as the user in ``_SERVER_USER``, and so do the programs that users of a server run. A
    user namespace is no alternative, because such a process is root outside of it.

    Raises:
        Error: this user cannot run the program.
    """
    if os.geteuid() != 0:
        return Launcher()
    hint = "run the sandbox as an ordinary user, or use programs that every user may read: --postgres-bin DIR"
    try:
        entry = pwd.getpwnam(_SERVER_USER)
    except KeyError:
        raise Error(f"could not run {program} as root: user {_SERVER_USER} not found", hint=hint) from None
    launcher = Launcher((entry.pw_uid, entry.pw_gid))
    if not sys.platform.startswith("linux") or entry.pw_uid == 0 or not _works(launcher, program):
        raise Error(
            f"could not run {program}: PostgreSQL refuses root, and user {_SERVER_USER} cannot run it", hint=hint
        )
    return launcher


def _works(launcher: Launcher, program: str) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=server_environment(),
            timeout=30,
            check=False,
            cwd="/",
            **launcher.options(),
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def environment() -> dict[str, str]:
    """Return the environment without ``PG*``, which is for other servers, and in a locale that every machine has."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C.UTF-8"}


def server_environment() -> dict[str, str]:
    """Return the environment variables that PostgreSQL programs need; the others may contain secrets."""
    return {**{key: value for key, value in os.environ.items() if key in _SERVER_VARIABLES}, "LC_ALL": "C.UTF-8"}


def run(
    launcher: Launcher,
    words: Sequence[str],
    *,
    timeout_seconds: float,
    keep_open: Sequence[int] = (),
    note: Callable[[ProcessIdentity], None] = lambda _: None,
) -> str:
    """Run a PostgreSQL program to its end and return what it printed.

    Args:
        launcher: how to run it.
        words: the program and its arguments.
        timeout_seconds: after this time the program is killed.
        keep_open: file descriptors that it inherits (the lock of the sandbox).
        note: called with the process before the program starts.

    Raises:
        Error: the program failed or timed out; the message is its last line.
    """
    name = Path(words[0]).name
    try:
        with subprocess.Popen(
            [*_GATE, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=server_environment(),
            pass_fds=tuple(keep_open),
            cwd="/",
            **launcher.options(),
        ) as process:
            try:
                note(ProcessIdentity(process.pid, start_time(process.pid) or "", words[0]))
                printed: str = process.communicate("go\n", timeout=timeout_seconds)[0]
            except BaseException:
                process.kill()
                raise
    except subprocess.TimeoutExpired as exc:
        raise Error(f"{name} timed out after {timeout_seconds:.0f} s", hint="check the load of the machine") from exc
    except OSError as exc:
        raise Error(f"could not run {words[0]}: {exc}", hint="use other programs: --postgres-bin DIR") from exc
    if process.returncode != 0:
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        reason = next((line for line in lines if "error:" in line or "FATAL" in line), lines[-1] if lines else "")
        raise Error(f"{name} failed: {reason or f'exit code {process.returncode}'}")
    return printed


def spawn(
    launcher: Launcher,
    words: Sequence[str],
    log: Path,
    *,
    note: Callable[[ProcessIdentity], None],
    env: Mapping[str, str],
    keep_open: Sequence[int] = (),
) -> int:
    """Start a process that outlives this one, with its output appended to LOG; return its id.

    Args:
        launcher: how to run it.
        words: the program and its arguments.
        log: created when it does not exist.
        note: called with the process before the program starts; when it fails, the program does not start.
        env: its environment.
        keep_open: file descriptors that it inherits.
    """
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*_GATE, *words],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=dict(env),
            pass_fds=tuple(keep_open),
            start_new_session=True,
            cwd="/",
            **launcher.options(),
        )
    # When the child ends before this process, it stays a zombie until a thread waits for it.
    threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        note(ProcessIdentity(process.pid, start_time(process.pid) or "", words[0]))
        process.stdin.write(b"go\n")
    return process.pid


def start_time(pid: int) -> str | None:
    """Return the start time of a process, as text that differs from that of any other process; None when it ended.

    A zombie has ended.
    """
    if sys.platform.startswith("linux"):
        try:
            stat = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        except (OSError, ValueError):
            return None
        # The name, in parentheses, may contain spaces and parentheses; the fields after it are fixed.
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in ("Z", "X") else f"{_boot()}:{fields[19]}"
    done = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, env=environment()
    )
    state, _, moment = done.stdout.strip().partition(" ")
    return None if done.returncode != 0 or not state or state.startswith("Z") else moment.strip()


@cache
def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def command_line(pid: int) -> tuple[str, ...]:
    """Return the command line of a process; empty when it ended or cannot be read."""
    if sys.platform.startswith("linux"):
        try:
            raw = (_PROC / str(pid) / "cmdline").read_bytes()
        except OSError:
            return ()
        return tuple(os.fsdecode(word) for word in raw.split(b"\0") if word)
    done = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False, env=environment()
    )
    return tuple(done.stdout.split())


def orphaned_processes(data_dir: Path) -> list[ProcessIdentity]:
    """Return the processes of a server whose postmaster ended, and the programs that they run.

    Their program is ``postgres`` and their working directory is DATA_DIR. Only Linux shows both; on other systems the
    result is empty.
    """
    if not _PROC.is_dir():
        return []
    parents: dict[int, list[int]] = {}
    pids = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
                parents.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(entry.name))
                program = (entry / "exe").readlink().name.removesuffix(" (deleted)")
                if program == "postgres" and (entry / "cwd").readlink() == data_dir:
                    pids.append(int(entry.name))
    for pid in pids:
        pids += [child for child in parents.get(pid, ()) if child not in pids]
    started = [(pid, start_time(pid)) for pid in pids]
    return [ProcessIdentity(pid, moment, "") for pid, moment in started if moment is not None]


def wait(condition: Callable[[], bool], timeout_seconds: float, poll_seconds: float = _POLL_SECONDS) -> bool:
    """Wait until CONDITION is true; return whether it became true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_seconds)
    return True


def write_private_file(path: Path, text: str) -> None:
    """Replace a file, in one step, by one that only its owner may read and write.

    The umask does not matter: all threads share it, so no thread may change it for a moment.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
        file.write(text)
    new.replace(path)
