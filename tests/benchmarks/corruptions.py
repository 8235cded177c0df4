"""Compare a table of a publisher and its subscriber: how fast, and whether planted corruptions are found under load.

Ten million rows are compared once, equal, beside ``psql`` that counts both tables. Then, in each round, 50 corruptions
of all kinds are planted on the subscriber while three writers change hot rows, insert and delete; every one must be
proven, and nothing else may be. Afterwards they are repaired.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT, connect, own_server
from tests.fixtures.background import running

ROWS = 10_000_000
LOADED_ROWS = 200_000
ROUNDS = 20
CORRUPTIONS = 50
_TABLE = "(id bigint PRIMARY KEY, name text, amount numeric, at timestamptz, n int, flag bool, doc jsonb)"
_ROW = "i, 'name ' || i, i * 1.01, '2026-01-01'::timestamptz + i * interval '1 s', i, mod(i, 2) = 0, '{}'"
# Keys up to here are changed by the writers all the time; corruptions are planted above.
_HOT = 200


def report() -> None:
    """Run both parts and print the figures."""
    with own_server() as source, own_server() as target:
        _corruptions(source, target)
        _speed(source, target)


def _copy(source: PostgresServer, target: PostgresServer, name: str, rows: int) -> None:
    with closing(connect(source)) as here, closing(connect(target)) as there:
        here.execute(f"CREATE TABLE {name} {_TABLE}")
        here.execute(f"INSERT INTO {name} SELECT {_ROW} FROM generate_series(1, {rows}) i")
        here.execute(f"VACUUM ANALYZE {name}")
        here.execute(f"CREATE PUBLICATION {name} FOR TABLE {name}")
        there.execute(f"CREATE TABLE {name} {_TABLE}")
        there.execute(f"CREATE SUBSCRIPTION {name} CONNECTION '{source.dsn(dbname='bench')}' PUBLICATION {name}")
        while there.execute("SELECT 1 FROM pg_subscription_rel WHERE srsubstate <> 'r'").fetchone():
            time.sleep(0.2)
        there.execute(f"VACUUM ANALYZE {name}")


def _verify(source: PostgresServer, target: PostgresServer, *more: str) -> tuple[int, Any, float]:
    words = [SCRIPT, "verify", "--source", source.dsn(dbname="bench"), "--to", target.dsn(dbname="bench"), *more]
    began = time.monotonic()
    done = subprocess.run([*words, "-o", "json"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 8, 9), done.stderr
    return done.returncode, json.loads(done.stdout), time.monotonic() - began


def _speed(source: PostgresServer, target: PostgresServer) -> None:
    _copy(source, target, "large", ROWS)
    began = time.monotonic()
    for server in (source, target):
        with closing(connect(server)) as conn:
            conn.execute("SELECT count(*), sum(hashtext(large::text)) FROM large")
    peer = time.monotonic() - began
    with closing(connect(source)) as conn:
        conn.execute("ALTER DATABASE bench SET log_min_duration_statement = 0")
    logged = source.log_file.stat().st_size
    code, found, seconds = _verify(source, target, "--table", "large")
    assert code == 0, found
    with source.log_file.open("rb") as log:
        log.seek(logged)
        longest = max(float(duration) for duration in re.findall(rb"duration: ([0-9.]+) ms", log.read()))
    print(
        f"{ROWS:,} equal rows: verify {seconds:.1f} s, its longest statement on the source {longest / 1000:.1f} s; "
        f"sum(hashtext(row::text)) on both sides {peer:.1f} s"
    )
    with closing(connect(source)) as conn:
        conn.execute("ALTER DATABASE bench RESET log_min_duration_statement")
    with closing(connect(target)) as there, closing(connect(source)) as here:
        there.execute("DROP SUBSCRIPTION large")
        there.execute("DROP TABLE large")
        here.execute("DROP TABLE large")


@contextmanager
def _load(source: PostgresServer) -> Iterator[list[int]]:
    commits = [0, 0, 0]

    def work(number: int, over: threading.Event) -> None:
        chance = random.Random(number)
        with closing(connect(source)) as conn:
            while not over.is_set():
                key = chance.randint(1, _HOT)
                conn.execute("UPDATE loaded SET n = n + 1, name = name || '' WHERE id = %s", (key,))
                new = -chance.randint(1, 1_000)
                conn.execute(
                    f"INSERT INTO loaded SELECT {_ROW} FROM (VALUES (%s)) v (i) ON CONFLICT DO NOTHING", (new,)
                )
                conn.execute("DELETE FROM loaded WHERE id = %s", (-chance.randint(1, 1_000),))
                commits[number] += 3

    with running(*(partial(work, number) for number in range(3))):
        yield commits


_KINDS = (
    "UPDATE loaded SET name = name || ' ' WHERE id = %s",
    "UPDATE loaded SET name = NULL WHERE id = %s",
    "UPDATE loaded SET amount = amount + 0.01 WHERE id = %s",
    "UPDATE loaded SET at = at + interval '1 microsecond' WHERE id = %s",
    "UPDATE loaded SET flag = NOT flag WHERE id = %s",
    "UPDATE loaded SET doc = '{\"a\": null}' WHERE id = %s",
    "UPDATE loaded SET n = NULL, name = n::text WHERE id = %s",
    "DELETE FROM loaded WHERE id = %s",
    f"INSERT INTO loaded SELECT {_ROW} FROM (VALUES (%s::bigint)) v (i)",
)
# Two rows: a key that moved, and rows that exchanged their values.
_MOVED = f"UPDATE loaded SET id = id + {2 * LOADED_ROWS} WHERE id = %s"
_EXCHANGED = """
UPDATE loaded a SET name = b.name, amount = b.amount, at = b.at, n = b.n, flag = b.flag, doc = b.doc
  FROM loaded b WHERE a.id IN (%(one)s, %(other)s) AND b.id IN (%(one)s, %(other)s) AND a.id <> b.id
"""


def _plant(target: PostgresServer, chance: random.Random) -> set[int]:
    """Damage rows of the subscriber in all ways; return the keys that differ now."""
    keys = chance.sample(range(_HOT + 1, LOADED_ROWS), CORRUPTIONS)
    expected = set()
    with closing(connect(target)) as conn:
        exchanged, moved = keys[:2], keys[2]
        conn.execute(_EXCHANGED, {"one": exchanged[0], "other": exchanged[1]})
        conn.execute(_MOVED, (moved,))
        expected |= {*exchanged, moved, moved + 2 * LOADED_ROWS}
        for key in keys[4:]:
            kind = chance.choice(_KINDS)
            used = key + LOADED_ROWS if kind.startswith("INSERT") else key
            conn.execute(kind, (used,))
            expected.add(used)
    assert len(expected) == CORRUPTIONS
    return expected


def _corruptions(source: PostgresServer, target: PostgresServer) -> None:
    chance = random.Random(7)
    _copy(source, target, "loaded", LOADED_ROWS)
    missed = wrong = planted = cleared = unproven = unrepaired = hot = 0
    took: list[float] = []
    with _load(source) as commits:
        for _ in range(ROUNDS):
            expected = _plant(target, chance)
            # A row that changes all the time and is missing: its updates find nothing to change.
            lost = chance.randint(1, _HOT)
            with closing(connect(target)) as conn:
                conn.execute("DELETE FROM loaded WHERE id = %s", (lost,))
            _, found, seconds = _verify(source, target, "--table", "loaded")
            (table,) = found["tables"]
            proven = {int(row["key"]["id"]) for row in table["keys"]}
            hot += lost in proven
            proven.discard(lost)
            with closing(connect(source)) as conn, conn.transaction():
                conn.execute("DELETE FROM loaded WHERE id = %s", (lost,))
                conn.execute(f"INSERT INTO loaded SELECT {_ROW} FROM (VALUES (%s::bigint)) v (i)", (lost,))
            planted += len(expected)
            missed += len(expected - proven)
            wrong += len(proven - expected)
            cleared += table["cleared"]
            unproven += table["not_proven"]
            took.append(seconds)
            code, _, _ = _verify(source, target, "--table", "loaded", "--repair", "--yes")
            unrepaired += code == 9
        done = sum(commits)
    print(
        f"{planted} corruptions in {ROUNDS} rounds beside {done:,} commits: {missed} missed, {wrong} false, "
        f"{unproven} not proven, {cleared} cleared; {min(took):.1f} to {max(took):.1f} s a round; "
        f"{unrepaired} repairs that left a difference; of {ROUNDS} missing rows that change all the time {hot} proven"
    )
    assert missed == wrong == unrepaired == 0
