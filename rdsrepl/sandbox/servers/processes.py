"""Processes of the sandbox: started detached, recognised for certain, ended one by one.

A process is never sought by its name or by where it stands. It is ours when its id, its start time and its command are
those that were written down, and they are written down before its program begins: it waits at a gate until then. What
a killed postmaster leaves is the one exception: programs called ``postgres`` that work in a data directory of ours.
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
# The user that root's servers run as. Not `postgres`, which owns real servers' files where those are installed.
_SERVER_USER: Final = "nobody"
_POLL_SECONDS: Final = 0.02
# A program begins when a line comes, and not at all when we are killed before: then there is the end of the file.
_GATE: Final = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
# What a server may know of our environment: programs that its users run see it.
_SERVER_VARIABLES: Final = frozenset(
    {"PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"}
)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Which process it is; an id alone proves nothing after a crash or a reboot.

    Attributes:
        pid: its id.
        started: when it started (``started``), which no other process of that id shares.
        command: a part of one of its words: the program's path.
    """

    pid: int
    started: str
    command: str

    def is_running(self) -> bool:
        """Say whether that very process lives."""
        return start_time(self.pid) == self.started and any(self.command in word for word in command_line(self.pid))

    def send(self, how: signal.Signals) -> bool:
        """Send a signal to that very process; return whether it was there."""
        try:
            # Between the look at a process and the signal its id can become another's, but a descriptor cannot.
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
        """Ask the process to end, and kill it when it has not after the time."""
        if self.send(how) and not wait(lambda: start_time(self.pid) != self.started, timeout_seconds):
            self.send(signal.SIGKILL)
            wait(lambda: start_time(self.pid) != self.started, 5.0)


@dataclass(frozen=True, slots=True)
class Launcher:
    """How to run a PostgreSQL program, which refuses to be root.

    Attributes:
        owner: whom the programs run as, and who owns their directories, as (user id, group id); None is whoever we are.
    """

    owner: tuple[int, int] | None = None

    def chown(self, path: Path) -> None:
        """Give PATH, which is in a directory of ours, to the user the programs run as."""
        if self.owner is not None:
            os.chown(path, *self.owner, follow_symlinks=False)

    @contextmanager
    def open_directory(self, directory: Path) -> Iterator[tuple[Path, tuple[int, ...]]]:
        """Yield a path by which the programs reach DIRECTORY, and the file descriptors that they inherit for it.

        The directories above may be root's own, which the programs' user cannot enter: a descriptor leads past them.
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
        """Read, write and make files as the user the programs run as; for this thread only.

        What is in a server's directory is that user's: a symbolic link there must not lead us where only root may go.

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
        """Return what ``subprocess`` is told to run a program so."""
        if self.owner is None:
            return {}
        return {"user": self.owner[0], "group": self.owner[1], "extra_groups": []}

    @property
    def user_name(self) -> str | None:
        """The name of the user the programs run as; None when it has none."""
        with suppress(KeyError):
            return pwd.getpwuid(os.geteuid() if self.owner is None else self.owner[0]).pw_name
        return None


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _set_filesystem_user(user: int, group: int) -> None:
    for call, number in ((_libc().setfsgid, group), (_libc().setfsuid, user)):
        call(number)
        # It never says whether it worked; asked for an impossible number, it says which one is in force.
        if call(-1) != number:
            raise Error(f"could not read and write files as user id {user}", hint="run the sandbox as an ordinary user")


@cache
def launcher_for(program: str) -> Launcher:
    """Return a launcher to run PostgreSQL's PROGRAM (a path) that works for this user, on this machine.

    An ordinary user needs none. Root's servers run as ``nobody``, with no right of root's: so do the programs that a
    server's users make it run. A user namespace would not do: outside of it such a process is root.

    Raises:
        Error: it does not work.
    """
    if os.geteuid() != 0:
        return Launcher()
    hint = "run the sandbox as an ordinary user, or name binaries that every user may read: --postgres-bin DIR"
    try:
        entry = pwd.getpwnam(_SERVER_USER)
    except KeyError:
        raise Error(f"cannot run {program} as root: there is no user {_SERVER_USER}", hint=hint) from None
    launcher = Launcher((entry.pw_uid, entry.pw_gid))
    if not sys.platform.startswith("linux") or entry.pw_uid == 0 or not _works(launcher, program):
        raise Error(
            f"cannot run {program} as root: PostgreSQL refuses root, and user {_SERVER_USER} cannot run it", hint=hint
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
    """Return our environment without ``PG*`` (meant for other servers), and in a locale every machine has."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C.UTF-8"}


def server_environment() -> dict[str, str]:
    """Return what PostgreSQL's programs need of our environment; it may hold secrets that are not for them."""
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
        timeout_seconds: after that long it is killed.
        keep_open: file descriptors that it shall hold while it lives (the sandbox's lock).
        note: told which process it is, before the program begins.

    Raises:
        Error: it failed, or took too long; the message is its own last line.
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
        raise Error(f"{name} did not end within {timeout_seconds:.0f} s", hint="is the machine very busy?") from exc
    except OSError as exc:
        raise Error(f"{words[0]} cannot be run: {exc}", hint="name other binaries: --postgres-bin DIR") from exc
    if process.returncode != 0:
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        said = next((line for line in lines if "error:" in line or "FATAL" in line), lines[-1] if lines else "")
        raise Error(f"{name} failed: {said or f'exit code {process.returncode}'}")
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
    """Start a process that outlives us, its output appended to LOG; return its id.

    Args:
        launcher: how to run it.
        words: the program and its arguments.
        log: made when it is not there.
        note: told which process it is, before the program begins; when that fails it never does.
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
    # Whoever of us two ends first: if it is the child, somebody has to take note of it, or it stays a zombie.
    threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        note(ProcessIdentity(process.pid, start_time(process.pid) or "", words[0]))
        process.stdin.write(b"go\n")
    return process.pid


def start_time(pid: int) -> str | None:
    """Return when a process started, as text that no other process shares with it; None when it does not live.

    A zombie does not live.
    """
    if sys.platform.startswith("linux"):
        try:
            stat = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        except (OSError, ValueError):
            return None
        # The name, in parentheses, may hold spaces and parentheses itself; the fields after it are fixed.
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
    """Return a process's words; empty when it does not live or they cannot be read."""
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
    """Return the processes of a server whose postmaster is gone, and the programs that those run.

    They are known by their program, ``postgres``, and their working directory, DATA_DIR itself. A shell that stands
    there is none of them. Only Linux can tell; elsewhere the answer is empty.
    """
    if not _PROC.is_dir():
        return []
    parents: dict[int, list[int]] = {}
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
                parents.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(entry.name))
                program = (entry / "exe").readlink().name.removesuffix(" (deleted)")
                if program == "postgres" and (entry / "cwd").readlink() == data_dir:
                    found.append(int(entry.name))
    for pid in found:
        found += [child for child in parents.get(pid, ()) if child not in found]
    moments = [(pid, start_time(pid)) for pid in found]
    return [ProcessIdentity(pid, moment, "") for pid, moment in moments if moment is not None]


def wait(condition: Callable[[], bool], timeout_seconds: float, poll_seconds: float = _POLL_SECONDS) -> bool:
    """Wait until CONDITION holds; return whether it came to hold in time."""
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
