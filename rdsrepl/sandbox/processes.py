"""Processes of the sandbox: started detached, recognised for certain, ended one by one.

A process is never sought by its name. It is ours when its start time is the recorded one, or when it works in a data
directory of ours; a process id alone proves nothing after a crash or a reboot.
"""

from __future__ import annotations

import os
import pwd
import shutil
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
from typing import Final

from rdsrepl.errors import Error

_PROC: Final = Path("/proc")
_UNPRIVILEGED: Final = 65534
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Launcher:
    """How to run a PostgreSQL program, which refuses to be root.

    Attributes:
        prefix: the words before the program's own.
        user: the user id to run as; None is whoever we are.
        group: the group id that goes with ``user``.
        owner: who must own the data directory, as (user id, group id); None is whoever we are.
    """

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None
    owner: tuple[int, int] | None = None

    def own(self, path: Path) -> None:
        """Give PATH to the user the programs run as."""
        if self.owner is not None:
            os.chown(path, *self.owner)


@cache
def launcher(program: str) -> Launcher:
    """Return a way to run PostgreSQL's PROGRAM (a path) that works for this user, on this machine.

    An ordinary user needs none. For root there are three, the first that works is taken: a user namespace in which
    root has another number (nothing changes its owner, and root's own 0700 directories stay readable); another user
    that keeps the right to pass such directories; that user without it.

    Raises:
        Error: none of them works.
    """
    if os.geteuid() != 0:
        return Launcher()
    ways = [
        Launcher(("unshare", "--user", f"--map-user={_UNPRIVILEGED}", f"--map-group={_UNPRIVILEGED}", "--")),
    ]
    if (entry := _servant()) is not None:
        owner = (entry.pw_uid, entry.pw_gid)
        names = (f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups")
        caps = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
        ways.append(Launcher(("setpriv", *names, *caps, "--"), owner=owner))
        ways.append(Launcher(user=entry.pw_uid, group=entry.pw_gid, owner=owner))
    for way in ways:
        if (not way.prefix or shutil.which(way.prefix[0])) and _works(way, program):
            return way
    raise Error(
        f"cannot run {program} as root: PostgreSQL refuses root, and no other user here can run it",
        hint="run the sandbox as an ordinary user, or name binaries that every user may read: --postgres-bin DIR",
    )


def _servant() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def _works(way: Launcher, program: str) -> bool:
    try:
        done = subprocess.run(
            [*way.prefix, program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=way.user,
            group=way.group,
            extra_groups=None if way.user is None else [],
            env=environment(),
            timeout=30,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def environment() -> dict[str, str]:
    """Return our environment without ``PG*`` (meant for other servers), and in a locale every machine has."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C.UTF-8"}


def run(way: Launcher, words: Sequence[str], *, timeout_seconds: float, keep_open: Sequence[int] = ()) -> str:
    """Run a PostgreSQL program to its end and return what it printed.

    Args:
        way: how to run it.
        words: the program and its arguments.
        timeout_seconds: after that long it is killed.
        keep_open: file descriptors that it shall hold while it lives (the sandbox's lock).

    Raises:
        Error: it failed, or took too long; the message is its own last line.
    """
    name = Path(words[0]).name
    try:
        done = subprocess.run(
            [*way.prefix, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            user=way.user,
            group=way.group,
            extra_groups=None if way.user is None else [],
            env=environment(),
            timeout=timeout_seconds,
            check=False,
            pass_fds=keep_open,
            cwd="/",
        )
    except subprocess.TimeoutExpired as exc:
        raise Error(f"{name} did not end within {timeout_seconds:.0f} s", hint="is the machine very busy?") from exc
    except OSError as exc:
        raise Error(f"{words[0]} cannot be run: {exc}", hint="name other binaries: --postgres-bin DIR") from exc
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        said = next((line for line in lines if "error:" in line or "FATAL" in line), lines[-1] if lines else "")
        refused = "Permission denied" in done.stdout and way.user is not None
        raise Error(
            f"{name} failed: {said or f'exit code {done.returncode}'}",
            hint="user "
            + pwd.getpwuid(way.user).pw_name
            + " must be able to enter the directory: set RDSREPL_SANDBOX_DIR to one under /var/tmp"
            if refused and way.user is not None
            else None,
        )
    return done.stdout


def spawn(way: Launcher, words: Sequence[str], log: Path, *, extra: Mapping[str, str] | None = None) -> int:
    """Start a process that outlives us, its output appended to LOG; return its id."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*way.prefix, *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            user=way.user,
            group=way.group,
            extra_groups=None if way.user is None else [],
            env={**environment(), **(extra or {})},
            start_new_session=True,
            cwd="/",
        )
    # Whoever of us two ends first: if it is the child, somebody has to take note of it, or it stays a zombie.
    threading.Thread(target=process.wait, name=f"wait-{process.pid}", daemon=True).start()
    return process.pid


def started(pid: int) -> str | None:
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


def working_in(directory: Path) -> list[int]:
    """Return the processes whose working directory is DIRECTORY itself: a PostgreSQL server's, all of them.

    Only Linux can tell; elsewhere the answer is empty.
    """
    found = []
    wanted = str(directory)
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdecimal():
            with suppress(OSError):
                if (entry / "cwd").readlink() == Path(wanted) and started(int(entry.name)) is not None:
                    found.append(int(entry.name))
    return found


def end(pid: int, identity: str, *, how: signal.Signals = signal.SIGTERM, timeout_seconds: float = 10.0) -> None:
    """Ask a process to end, and kill it when it has not after the time; another process of that id is left alone."""
    if _signal(pid, identity, how) and not wait(lambda: started(pid) != identity, timeout_seconds):
        _signal(pid, identity, signal.SIGKILL)
        wait(lambda: started(pid) != identity, 5.0)


def _signal(pid: int, identity: str, how: signal.Signals) -> bool:
    if started(pid) != identity:
        return False
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return False
    return True


def wait(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Wait until CONDITION holds; return whether it came to hold in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Make files under another mask for a moment."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
