"""The start of the program: completion, help, and ``slot list`` up to its connection, beside the AWS CLI.

CPU seconds, the least of some runs that alternate: another load on the machine adds to a time, and never subtracts.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.measure import SCRIPT

ROUNDS = 15
# What slot list cannot do without.
_LIBRARIES = "import sys, typer, psycopg; psycopg.connect(sys.argv[1])"


def started(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start a command without output; return its process."""
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    return os.posix_spawnp(command[0], list(command), {**os.environ, **environment}, file_actions=silent)


def to_its_end(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the CPU seconds of a command."""
    _, status, usage = os.wait4(started(command, environment), 0)
    assert os.waitstatus_to_exitcode(status) == 0, command
    return usage.ru_utime + usage.ru_stime


def to_its_connection(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the CPU seconds of a command until it connects to a server; PORT in it is replaced."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        pid = started([word.replace("PORT", str(listener.getsockname()[1])) for word in command], environment)
        listener.accept()[0].close()
        # The time on a CPU in nanoseconds, of the first thread, which connects.
        cpu = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return cpu


def completion(words: str) -> dict[str, str]:
    """Return the environment with which bash asks for the completion of the last word."""
    return {
        "_RDSREPL_COMPLETE": "complete_bash",
        "COMP_WORDS": words.replace(" ", "\n"),
        "COMP_CWORD": str(words.count(" ")),
    }


def report() -> None:
    """Measure, and print the figures."""
    server = "host=127.0.0.1 port=PORT dbname=x user=x"
    python, listing = sys.executable, [SCRIPT, "slot", "list", "--dsn", server]
    measured = {
        "python -c pass": lambda: to_its_end([python, "-c", "pass"], {}),
        "python -c 'import boto3'": lambda: to_its_end([python, "-c", "import boto3"], {}),
        "typer and psycopg, to the connection": lambda: to_its_connection([python, "-c", _LIBRARIES, server], {}),
        "rdsrepl --version": lambda: to_its_end([SCRIPT, "--version"], {}),
        "complete: rdsrepl slot l": lambda: to_its_end([SCRIPT], completion("rdsrepl slot l")),
        "complete: rdsrepl slot list --so": lambda: to_its_end([SCRIPT], completion("rdsrepl slot list --so")),
        "rdsrepl slot list, to the connection": lambda: to_its_connection(listing, {}),
        "rdsrepl slot --help": lambda: to_its_end([SCRIPT, "slot", "--help"], {}),
    }
    aws = shutil.which("aws", path=str(Path(python).parent)) or shutil.which("aws")
    if aws is not None:
        measured["aws --version"] = lambda: to_its_end([aws, "--version"], {})
    least = dict.fromkeys(measured, float("inf"))
    for _ in range(ROUNDS):
        for name, measure in measured.items():
            least[name] = min(least[name], measure())
    print(f"\nStart-up: CPU seconds, the least of {ROUNDS} alternating runs")
    for name, seconds in least.items():
        ratio = f"   {seconds / least['aws --version']:.2f} × aws --version" if aws is not None else ""
        print(f"  {name:<38} {seconds:6.3f}{ratio if name != 'aws --version' else ''}")
