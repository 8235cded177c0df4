"""To Kinesis: ours beside the copied script, on the same backlog and the same stand-in; and our own ceiling."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from rdsrepl.sandbox.servers import Server
from tests.benchmarks.measure import SCRIPT, run

CHANGES = 600_000
KEYS = 5_000
COPIED = 5_000
AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1"}


@contextmanager
def stand_in(*words: str) -> Iterator[str]:
    """Run the stand-in as a process of its own; give its address."""
    command = [sys.executable, "-m", "tests.kinesis_standin", *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def compare(server: Server) -> None:
    """Measure and print."""
    os.environ.update(AWS)
    with closing(server.connect(dbname="bench")) as conn:
        conn.execute("CREATE TABLE changes (id int PRIMARY KEY, k int, v text)")
        conn.execute("CREATE PUBLICATION k FOR TABLE changes")
        for slot, plugin in (("k", "pgoutput"), ("kw", "wal2json")):
            conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
        conn.execute(f"INSERT INTO changes SELECT i, i % {KEYS}, repeat('x', 150) FROM generate_series(1, {CHANGES}) i")
    dsn = server.dsn(user="bench", dbname="bench")
    ours = [SCRIPT, "-q", "--dsn", dsn, "slot", "tail", "k", "--publication", "k", "--to", "kinesis:changes"]
    ours += ["--no-confirm", "--endpoint-url"]
    with stand_in("--null") as url:
        print(f"\nTo Kinesis that takes everything at once: {CHANGES:,} rows of 200 bytes (changes/s, peak MB)")
        for name, words, count in (
            ("own keys", ["--until-now"], CHANGES),
            (f"{KEYS:,} keys", ["--until-now", "--partition-by", "k"], CHANGES),
            ("own keys, --aggregate", ["--until-now", "--aggregate"], CHANGES),
            ("one key, --aggregate", ["--partition-by", "table", "--aggregate", "--limit", "100000"], 100_000),
            ("one key", ["--partition-by", "table", "--limit", "3000"], 3_000),
        ):
            cost = run([*ours, url, *words])
            print(f"  {name:<28} {count / cost.wall:9,.0f} {cost.memory:6.1f}")
    with stand_in() as url:
        copied = run([sys.executable, "-m", "tests.benchmarks.copied_script", dsn, "kw", url, str(COPIED)])
        mine = run([*ours, url, "--limit", str(20 * COPIED)])
    theirs, rate = COPIED / copied.wall, 20 * COPIED / mine.wall
    print("\nTo the same stand-in, which keeps what it takes (changes/s)")
    print(f"  {'copied script':<28} {theirs:9,.0f}   one put_record a message, one key")
    print(f"  {'rdsrepl':<28} {rate:9,.0f}   × {rate / theirs:.1f}")
