"""A server for benchmarks, and the measurement of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.postgres import Database, find_binaries, plugin_settings

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

SCRIPT = str(Path(sys.executable).with_name("rdsrepl"))


@dataclass(frozen=True)
class Cost:
    """The cost of a process: wall and CPU seconds, peak memory in MB."""

    wall: float
    cpu: float
    memory: float


def run(command: Sequence[str], out: Path | None = None, *, codes: Sequence[int] = (0,)) -> Cost:
    """Run a command to its end and measure it; it must end with one of these exit codes."""
    with (out or Path(os.devnull)).open("wb") as file:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE)
        status = Path(f"/proc/{process.pid}/status")
        peak = 0
        while True:
            # ru_maxrss includes this parent's memory; VmHWM is the program's own.
            for line in status.read_text().splitlines() if status.exists() else ():
                if line.startswith("VmHWM"):
                    peak = max(peak, int(line.split()[1]))
            pid, code, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        wall = time.monotonic() - started
    assert process.stderr is not None
    err = process.stderr.read().decode()
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode not in codes:
        raise SystemExit(f"{command}: ended with {process.returncode}: {err}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak / 1000)


def ended_sessions_cpu(server: PostgresServer) -> float:
    """Return the CPU seconds of the server's processes that have ended, each of which was a session."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # cutime and cstime of proc(5)


def connect(server: PostgresServer) -> Connection:
    """Open a connection to the database ``bench`` with the server's own settings; the caller closes it."""
    return Database(server, "bench").connect()


@contextmanager
def own_server(**more: str) -> Iterator[PostgresServer]:
    """Start a server with a database ``bench``; MORE are settings of the server."""
    programs = find_binaries(15)
    if programs is None:
        raise SystemExit("PostgreSQL 15 with wal2json is needed: apt-get install postgresql-15 postgresql-15-wal2json")
    with tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory:
        settings = {"max_wal_size": "16GB", "autovacuum": "off", "shared_buffers": "512MB", "synchronous_commit": "off"}
        server = PostgresServer(
            Path(directory) / "pg", programs, settings={**settings, **plugin_settings(programs), **more}
        )
        server.initdb()
        server.start()
        try:
            with closing(server.connect()) as conn:
                conn.execute("CREATE DATABASE bench")
                conn.execute("CREATE ROLE bench SUPERUSER LOGIN PASSWORD 'bench'")
            os.environ["PGPASSWORD"] = "bench"  # over TCP, like to RDS
            yield server
        finally:
            server.stop("immediate")
            server.remove()
