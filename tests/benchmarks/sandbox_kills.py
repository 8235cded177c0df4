"""``sandbox up`` and ``down``, killed at random moments: the next ``down`` must leave no process and no file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from rdsrepl.sandbox.servers import processes
from tests.benchmarks.measure import SCRIPT

ROUNDS: Final = 20
_SEED: Final = 20261121


def report(rounds: int = ROUNDS) -> None:
    """Kill ``up`` in each round, then run another one, a killed ``down`` or nothing; then ``down``, and check.

    Raises:
        AssertionError: a process, a file or a directory of sockets is left.
    """
    chance = random.Random(_SEED)
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/tmp") as directory:
        home, sockets = Path(directory, "sandbox"), Path(directory, "tmp")
        sockets.mkdir(mode=0o755)
        # The servers' user needs access to its sockets there.
        Path(directory).chmod(0o755)
        env = {
            **os.environ,
            "RDSREPL_SANDBOX_DIR": str(home),
            "XDG_CONFIG_HOME": str(Path(directory, "config")),
            "TMPDIR": str(sockets),
        }
        for number in range(rounds):
            _run(env, "up", kill_after_seconds=chance.uniform(0.2, 6.0))
            then = chance.choice(("up", "killed down", "nothing"))
            if then == "up":
                assert _run(env, "up") == 0, f"round {number}: up after a killed up"
            elif then == "killed down":
                _run(env, "down", kill_after_seconds=chance.uniform(0.1, 2.0))
            assert _run(env, "down") == 0, f"round {number}: down"
            left = [*_processes(home), *map(str, sockets.iterdir()), *([str(home)] if home.exists() else [])]
            assert left == [], f"round {number}, then {then}: {left}"
    print(f"sandbox up killed {rounds} times: no process and no file is left")


def _run(env: dict[str, str], verb: str, *, kill_after_seconds: float | None = None) -> int:
    program = subprocess.Popen([SCRIPT, "-q", "sandbox", verb], env=env, stdout=subprocess.DEVNULL)
    if kill_after_seconds is not None:
        time.sleep(kill_after_seconds)
        program.send_signal(signal.SIGKILL)
    return program.wait(timeout=300)


def _processes(home: Path) -> list[str]:
    """Return the processes that name the sandbox's directory or work in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        words = processes.command_line(int(entry.name))
        try:
            place = str((entry / "cwd").readlink())
        except OSError:
            place = ""
        if place.startswith(str(home)) or any(str(home) in word for word in words):
            found.append(f"{entry.name}: {' '.join(words)}")
    return found
