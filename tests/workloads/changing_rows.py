"""Writers that change a table with large values while its rows are copied, and commits that become visible late."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.background import running
from tests.fixtures.postgres import Database
from tests.fixtures.waiting import wait_until

#: of a value that is stored outside of its row.
LARGE = 3_000
_CREATE = """
CREATE TABLE items (id bigint PRIMARY KEY, a text, big text);
ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
CREATE TABLE places (area int, name text, n int, big text, PRIMARY KEY (area, name));
ALTER TABLE places ALTER big SET STORAGE EXTERNAL;
INSERT INTO items SELECT i, 'first', repeat(md5(i::text), 94) FROM generate_series(1, {rows}) i;
INSERT INTO places SELECT i % 7, 'place "' || i || E'"\\n', i, repeat(md5(i::text), 94)
  FROM generate_series(1, {rows} / 5) i;
CREATE PUBLICATION items FOR TABLE items, places;
"""
_CREATE_LOG = """
CREATE TABLE log (a int, v text, big text);
ALTER TABLE log ALTER big SET STORAGE EXTERNAL;
ALTER TABLE log REPLICA IDENTITY FULL;
INSERT INTO log SELECT i % 500, 'row ' || i % 7, repeat(md5((i % 9)::text), 94) FROM generate_series(1, {rows}) i;
ALTER PUBLICATION items ADD TABLE log;
"""


def create(source: Database, rows: int, *, log: bool = False) -> None:
    """Create the tables ``items`` and ``places`` and their publication ``items``.

    With LOG there is also a table without a key, which has the same rows several times.
    """
    with closing(source.connect()) as conn:
        conn.execute(_CREATE.replace("{rows}", str(rows)).encode())
        if log:
            conn.execute(_CREATE_LOG.replace("{rows}", str(rows)).encode())


@dataclass
class Load:
    """What the writers did."""

    rows: int
    transactions: int = 0
    pause_seconds: float = 0.0
    hold_seconds: float = 0.0
    log: bool = False


@contextmanager
def writers(
    source: Database,
    rows: int,
    *,
    count: int = 4,
    pause_seconds: float = 0.0,
    hold_seconds: float = 0.0,
    log: bool = False,
) -> Iterator[Load]:
    """Change rows in random transactions; of five changes, four leave the large value alone.

    They pause between transactions, and hold them before the commit; both are averages. With LOG a fifth of the changes
    is of the table without a key.
    """
    load = Load(rows, pause_seconds=pause_seconds, hold_seconds=hold_seconds, log=log)
    with running(*(partial(_write, source, load, random.Random(n)) for n in range(count))):
        yield load


def _write(source: Database, load: Load, rng: random.Random, over: threading.Event) -> None:
    import psycopg

    number = 0
    with closing(source.connect()) as conn:
        while not over.is_set():
            try:
                with conn.transaction():
                    for _ in range(rng.randrange(1, 6)):
                        number += 1
                        of_log = load.log and rng.random() < 0.2
                        conn.execute(*(_log_statement if of_log else _statement)(load.rows, rng, number))
                    if load.hold_seconds:
                        over.wait(rng.uniform(0, 2 * load.hold_seconds))
                load.transactions += 1
            except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                continue
            if load.pause_seconds:
                over.wait(rng.uniform(0, 2 * load.pause_seconds))


def _log_statement(rows: int, rng: random.Random, number: int) -> tuple[bytes, tuple[object, ...]]:
    one, other, dice = rng.randrange(500), rng.randrange(500), rng.random()
    row = b"ctid = (SELECT ctid FROM log WHERE a = %s LIMIT 1 FOR UPDATE SKIP LOCKED)"
    if dice < 0.5:
        return b"UPDATE log SET a = %s WHERE " + row, (other, one)
    if dice < 0.75:
        return b"DELETE FROM log WHERE " + row, (one,)
    return b"INSERT INTO log SELECT a, v, big FROM log WHERE a = %s LIMIT 2", (one,)


def _statement(rows: int, rng: random.Random, number: int) -> tuple[bytes, tuple[object, ...]]:
    value, large = f"{rng.randrange(1 << 30)}.{number}", f"{rng.randrange(1 << 60):016x}" * (LARGE // 16)
    one, other = rng.randrange(1, rows + rows // 20), rng.randrange(1, rows + rows // 20)
    dice = rng.random()
    if dice < 0.15:
        if dice < 0.10:
            return b"UPDATE places SET n = n + 1 WHERE area = %s AND n %% 11 = %s", (one % 7, other % 11)
        return b"UPDATE places SET area = %s, n = n + 1 WHERE n = %s", (other % 7, one)
    if dice < 0.80:
        return b"UPDATE items SET a = %s WHERE id = %s", (value, one)
    if dice < 0.85:
        return b"UPDATE items SET a = %s, big = %s WHERE id = %s", (value, large, one)
    if dice < 0.90:
        return b"INSERT INTO items VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", (one, value, large)
    if dice < 0.94:
        return b"DELETE FROM items WHERE id = %s", (one,)
    return b"UPDATE items SET id = %s, a = %s WHERE id = %s", (other, value, one)


class SynchronousStandby:
    """``pg_receivewal`` as the synchronous standby of a server: commits wait while it is stopped."""

    NAME = "acknowledges"

    def __init__(self, server: PostgresServer, directory: Path) -> None:
        directory.mkdir()
        self._server = server
        command = [server.binaries.program("pg_receivewal"), "-D", str(directory), "-d", server.dsn()]
        with closing(server.connect()) as conn:
            conn.execute("SELECT pg_create_physical_replication_slot(%s, true)", (self.NAME,))
        self._process = subprocess.Popen(
            [*command, "--synchronous", "--slot", self.NAME, "--no-password"],
            env={**os.environ, "PGAPPNAME": self.NAME},
            stderr=subprocess.DEVNULL,
        )
        self._set(self.NAME)
        wait_until(lambda: self._is_synchronous(), "the standby acknowledges commits")

    def _set(self, names: str) -> None:
        with closing(self._server.connect()) as conn:
            conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            conn.execute("SELECT pg_reload_conf()")

    def _is_synchronous(self) -> bool:
        with closing(self._server.connect()) as conn:
            states = conn.execute(
                "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s", (self.NAME,)
            ).fetchall()
        return states == [("sync",)]

    def hold(self) -> None:
        """Let commits wait."""
        self._process.send_signal(signal.SIGSTOP)

    def acknowledge(self) -> None:
        """Let the commits that wait become visible, and later ones at once."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Commits do not wait any more."""
        self.acknowledge()
        self._set("")
        self._process.terminate()
        self._process.wait()
        with closing(self._server.connect()) as conn:
            wait_until(
                lambda: (
                    conn.execute(
                        "SELECT NOT active FROM pg_replication_slots WHERE slot_name = %s", (self.NAME,)
                    ).fetchone()
                    == (True,)
                ),
                "the standby's slot is free",
            )
            conn.execute("SELECT pg_drop_replication_slot(%s)", (self.NAME,))


@contextmanager
def _repeating(
    action: Callable[[], object], undo: Callable[[], object], held: tuple[float, float], free: tuple[float, float]
) -> Iterator[None]:
    rng = random.Random(4)

    def work(over: threading.Event) -> None:
        while not over.is_set():
            action()
            over.wait(rng.uniform(*held))
            undo()
            over.wait(rng.uniform(*free))

    with running(work):
        yield


@contextmanager
def delayed_commits(server: PostgresServer, directory: Path) -> Iterator[SynchronousStandby]:
    """Let commits become visible late, again and again."""
    standby = SynchronousStandby(server, directory)
    with ExitStack() as stack:
        stack.callback(standby.close)
        stack.enter_context(_repeating(standby.hold, standby.acknowledge, (0.02, 0.12), (0.001, 0.01)))
        yield standby


@contextmanager
def paused_replay(standby: PostgresServer) -> Iterator[None]:
    """Let a standby replay late, again and again."""
    with closing(standby.connect()) as conn:
        with _repeating(
            lambda: conn.execute("SELECT pg_wal_replay_pause()"),
            lambda: conn.execute("SELECT pg_wal_replay_resume()"),
            (0.2, 0.6),
            (0.01, 0.05),
        ):
            yield
        conn.execute("SELECT pg_wal_replay_resume()")
