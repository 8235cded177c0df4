"""Planned switchovers, one after the other, under three writers: no change may be lost or come again.

Three kinds of consumers read each primary: ``slot tail`` into a file, a subscription of another server, pg_recvlogical.
After each switchover the old primary is removed, and a new standby is made of the new one. On 16 the slots are pairs,
on 18 failover slots.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT
from tests.fixtures.postgres import Database, find_binaries
from tests.fixtures.waiting import wait_until

ROUNDS: Final = 50
_WRITERS: Final = 3
_NUMBER: Final = re.compile(rb"#(\d{12})#")
_SETTINGS: Final = {
    "autovacuum": "off",
    "hot_standby_feedback": "on",
    "log_min_messages": "warning",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
}


@dataclass
class Writers:
    """Three writers; a file stops them, and ``primary`` is where they write. The number of a row is unique."""

    stop_file: Path
    primary: Database
    written: set[int] = field(default_factory=set)
    last_write: float = 0.0

    def __post_init__(self) -> None:
        self._next = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(_WRITERS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End the writers."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            if self.stop_file.exists():
                time.sleep(0.005)
                continue
            with self.primary.connect() as conn:
                while not (self._over.is_set() or self.stop_file.exists()):
                    with self._lock:
                        numbers = list(range(self._next, self._next + 5))
                        self._next += 5
                    values = ", ".join(f"({n}, '#{n:012d}#')" for n in numbers)
                    conn.execute(f"INSERT INTO t VALUES {values}")  # type: ignore[call-overload]
                    with self._lock:
                        self.written.update(numbers)
                        self.last_write = time.monotonic()
                    time.sleep(0.004)


@dataclass
class Streams:
    """The consumers whose output is a file: both are started again at each primary."""

    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, primary: Database) -> None:
        """Start both at a primary; their output is appended."""
        receive = [
            primary.server.binaries.program("pg_recvlogical"),
            "-d",
            primary.dsn,
            "--slot",
            "received",
            "--start",
        ]
        receive += ["-o", "proto_version=1", "-o", "publication_names=p", "-f", "-", "-F", "1", "-s", "1"]
        for name, words in (
            ("tailed", [SCRIPT, "-q", "--dsn", primary.dsn, "slot", "tail", "tailed"]),
            ("received", receive),
        ):
            with (self.directory / name).open("ab") as file:
                self.processes.append(subprocess.Popen(words, stdout=file))

    def stop(self) -> None:
        """Stop both."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=60)
        self.processes.clear()

    def numbers(self, name: str) -> Counter[int]:
        """Return how often each number was received."""
        return Counter(map(int, _NUMBER.findall((self.directory / name).read_bytes())))


def rdsrepl(*words: str, ok: tuple[int, ...] = (0,)) -> str:
    """Run the program; return what it printed."""
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in ok, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def protect(primary: Database, standby: Database) -> None:
    """Wait until a failover to the standby is safe."""
    is_paired = primary.server.version < 17
    if is_paired:
        rdsrepl("--dsn", primary.dsn, "slot", "sync", "--all", "--with", standby.dsn, "--create", "--yes", ok=(0, 8))

    def is_ready() -> bool:
        if is_paired:
            rdsrepl("--dsn", primary.dsn, "slot", "sync", "--all", "--with", standby.dsn, ok=(0, 8))
        else:
            primary.run("SELECT pg_log_standby_snapshot()")
        done = subprocess.run(
            [SCRIPT, "-q", "--dsn", primary.dsn, "failover", "check", "--to", standby.dsn],
            capture_output=True,
            check=False,
        )
        return done.returncode in (0, 8)

    wait_until(is_ready, "the standby is ready", seconds=60)


@contextmanager
def servers(version: int, directory: Path) -> Iterator[tuple[Database, Database]]:
    """Start the first primary, with the slots, and the subscriber."""
    programs = find_binaries(version)
    assert programs is not None
    primary = PostgresServer(directory / "0", programs, settings=_SETTINGS)
    subscriber = PostgresServer(directory / "subscriber", programs, settings=_SETTINGS)
    for server in (primary, subscriber):
        server.initdb()
        server.start()
    one, two = Database(primary, "postgres"), Database(subscriber, "postgres")
    one.run("CREATE TABLE t (id bigint PRIMARY KEY, v text)", "CREATE PUBLICATION p FOR TABLE t")
    failover = ["--failover"] if version >= 17 else []
    for name in ("tailed", "received", "subscribed"):
        rdsrepl("--dsn", one.dsn, "slot", "create", name, *failover, "--yes")
    options = "copy_data = false, create_slot = false, slot_name = 'subscribed'" + (
        ", failover = true" * bool(failover)
    )
    two.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        f"CREATE SUBSCRIPTION s CONNECTION '{one.dsn}' PUBLICATION p WITH ({options})",
    )
    try:
        yield one, two
    finally:
        with suppress(psycopg.Error):
            two.run("ALTER SUBSCRIPTION s DISABLE")
        subscriber.stop("immediate")
        subscriber.remove()


def switch_over(version: int, rounds: int) -> tuple[list[float], list[float]]:
    """Switch over again and again; return for each the seconds of the command, and from last write to first change.

    Raises:
        AssertionError: a change is missing, or came again.
    """
    took: list[float] = []
    gaps: list[float] = []
    with tempfile.TemporaryDirectory(prefix="switch-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        os.environ["RDSREPL_STATE_DIR"] = str(directory / "state")
        stop_file = directory / "stop"
        with servers(version, directory) as (primary, subscriber):
            streams = Streams(directory)
            writers = Writers(stop_file, primary)
            started = [primary.server]
            try:
                streams.start(primary)
                for number in range(1, rounds + 1):
                    standby = primary.server.clone(directory / str(number), slot=f"standby{number}")
                    started.append(standby)
                    standby.start()
                    new = Database(standby, "postgres")
                    protect(primary, new)
                    time.sleep(0.3)
                    began = time.monotonic()
                    words = ("--to", new.dsn, "--fence", f"touch {stop_file}", "--subscriber", subscriber.dsn, "--yes")
                    rdsrepl("-q", "--dsn", primary.dsn, "failover", "run", *words)
                    took.append(time.monotonic() - began)
                    before, stopped_at = (directory / "tailed").stat().st_size, writers.last_write
                    streams.stop()
                    streams.start(new)
                    writers.primary = new
                    stop_file.unlink()
                    wait_until(lambda: (directory / "tailed").stat().st_size > before, "the first change", seconds=60)  # noqa: B023
                    gaps.append(time.monotonic() - stopped_at)
                    primary.server.stop("immediate")
                    primary.server.remove()
                    primary = new
                    if number % 10 == 0:
                        print(f"    PostgreSQL {version}: {number} switchovers", flush=True)
                writers.end()
                verify(streams, writers, subscriber)
            finally:
                writers.end()
                streams.stop()
                for server in started:
                    if server.is_running:
                        server.stop("immediate")
    return took, gaps


def verify(streams: Streams, writers: Writers, subscriber: Database) -> None:
    """Make sure that each consumer has each committed row once."""
    last = max(writers.written)
    for name in ("tailed", "received"):
        wait_until(lambda: last in streams.numbers(name), f"{name} has the last row", seconds=60)  # noqa: B023
        found = streams.numbers(name)
        assert set(found) == writers.written, f"{name}: {len(writers.written - set(found))} rows are lost"
        repeated = sum(times > 1 for times in found.values())
        assert repeated == 0, f"{name}: {repeated} rows came again"
    wait_until(lambda: subscriber.value("SELECT max(id) FROM t") == last, "the subscription has the last row")
    assert subscriber.value("SELECT count(*) FROM t") == len(writers.written), "rows of the subscription are lost"
    errors = subscriber.value("SELECT apply_error_count FROM pg_stat_subscription_stats")
    assert errors == 0, "rows came again, or were refused"
    print(f"    {len(writers.written):,} rows at three consumers: 0 lost, 0 repeated", flush=True)


def report(rounds: int = ROUNDS) -> None:
    """Switch over on 18 and on 16, and print counts and times."""
    print(f"\nPlanned switchovers, {rounds} on each version; consumers: slot tail, a subscription, pg_recvlogical")
    for version in (18, 16):
        took, gaps = switch_over(version, rounds)
        what = "pairs" if version < 17 else "failover slots"
        print(
            f"  PostgreSQL {version} ({what}): the command took {statistics.median(took):.1f} s (median), "
            f"{max(took):.1f} s at most; from the last write to the first change on the new one "
            f"{statistics.median(gaps):.1f} s (median), {max(gaps):.1f} s at most"
        )
