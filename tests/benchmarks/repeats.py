"""How many changes come again after kill -9 under a steady load: of pg_recvlogical, to a pipe, a file and Kinesis.

Each consumer has a slot of its own on the same changes. It is killed a random time after its first output; what it had
written then and writes again in the next run is a repeat.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.kinesis import AWS
from tests.benchmarks.measure import SCRIPT, connect, own_server
from tests.fixtures.background import running
from tests.workloads.kcl_consumer import delivered, of_record
from tests.workloads.kinesis_server import KinesisServer

KILLS = 20
CHANGES_PER_SECOND = 2000
_ROWS = 20
# The id of a change, in our format and in wal2json's; ours has it in the key as well.
_ID = re.compile(rb'(?:"key":{"id":|"name":"id","type":"bigint","value":)(\d+)')


@contextmanager
def load(server: PostgresServer) -> Iterator[None]:
    """Commit transactions of 20 rows at a steady rate; the id of a row is its number in the stream."""

    def work(over: threading.Event) -> None:
        with closing(connect(server)) as conn:
            began, done = time.monotonic(), 0
            while not over.is_set():
                conn.execute("INSERT INTO t (v) SELECT repeat('x', 100) FROM generate_series(1, %s)", (_ROWS,))
                done += _ROWS
                time.sleep(max(0.0, began + done / CHANGES_PER_SECOND - time.monotonic()))

    with running(work):
        yield


def changes(path: Path) -> int:
    """Return how many complete lines a file has; each is a change."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def repeats(path: Path, before: int) -> int:
    """Return how many of the lines after the first BEFORE have an id that the first ones have."""
    # Where a consumer left the beginning of a line, the next run's first line is joined to it: its last id counts.
    ids = [int(_ID.findall(line)[-1]) for line in path.read_bytes().split(b"\n")[:-1]]
    seen = max(ids[:before], default=0)
    return sum(1 for one in ids[before:] if one <= seen)


def measure(start: Callable[[Path], subprocess.Popen[bytes]], path: Path, kills: int) -> list[int]:
    """Kill a consumer again and again; return the repeats of each kill."""
    rng, found = random.Random(kills), []
    path.touch()
    for number in range(kills + 1):
        before = changes(path)
        consumer = start(path)
        while changes(path) <= before + 1:
            time.sleep(0.02)
        if number:
            time.sleep(0.3)
            found.append(repeats(path, before))
        time.sleep(rng.uniform(1, 3))
        consumer.kill()
        consumer.wait()
        time.sleep(0.2)
    return found


def to_kinesis(server: PostgresServer, kills: int) -> None:
    """Kill a tail to a Kinesis server that refuses 30 % of the records; print the repeats of each kill."""
    tail = [SCRIPT, "-q", "--dsn", server.dsn(user="bench", dbname="bench"), "slot", "tail", "kinesis"]
    for name, more in (("rdsrepl, Kinesis", []), ("rdsrepl, --aggregate", ["--aggregate"])):
        with closing(connect(server)) as conn:
            row = conn.execute("SELECT coalesce(max(id), 0) FROM t").fetchone()
            conn.execute("SELECT pg_create_logical_replication_slot('kinesis', 'pgoutput')")
        with KinesisServer("changes") as kinesis:
            kinesis.faults.partial, kinesis.faults.slow_seconds = 0.3, 0.005
            command = [*tail, "--to", "kinesis:changes", "--accept-gap", "--endpoint-url", kinesis.url, *more]
            with load(server):
                found = _measure_kinesis(command, kinesis, kills)
            subprocess.run([*command, "--until-now"], env={**os.environ, **AWS}, check=True)
            come = {int(json.loads(data)["key"]["id"]) for _, data in delivered(kinesis.shards["changes"])}
        _print(f"{name} (30 % refused)", found)
        with closing(connect(server)) as conn:
            last = conn.execute("SELECT max(id) FROM t").fetchone()
            assert row is not None and last is not None and come == set(range(row[0] + 1, last[0] + 1)), "lost"
            conn.execute("SELECT pg_drop_replication_slot('kinesis')")


def _measure_kinesis(command: list[str], kinesis: KinesisServer, kills: int) -> list[int]:
    rng, found = random.Random(kills), []
    shards = kinesis.shards["changes"]
    seen: set[int] = set()
    for number in range(kills + 1):
        starts = [len(shard.records) for shard in shards]
        consumer = subprocess.Popen(command, env={**os.environ, **AWS})
        while sum(len(shard.records) for shard in shards) <= sum(starts):
            time.sleep(0.02)
        time.sleep(rng.uniform(1.5, 3.5))
        consumer.kill()
        consumer.wait()
        time.sleep(0.3)
        come = [
            int(json.loads(data)["key"]["id"])
            for shard, start in zip(shards, starts, strict=True)
            for one in shard.records[start:]
            for _, data in of_record(shard, *one)
        ]
        if number:
            found.append(len(set(come) & seen))
        seen.update(come)
    return found


def _print(name: str, found: list[int]) -> None:
    print(f"  {name:34} median {statistics.median(found):8,.0f}  most {max(found):8,}  all {sum(found):9,}")


def report(kills: int = KILLS) -> None:
    """Measure the consumers in one run, and print repeats a kill."""
    with own_server() as server, tempfile.TemporaryDirectory(prefix="rdsrepl-repeats-") as directory:
        dsn = server.dsn(user="bench", dbname="bench")
        with closing(connect(server)) as conn:
            conn.execute("CREATE TABLE t (id bigserial PRIMARY KEY, v text)")
            conn.execute("CREATE PUBLICATION p FOR TABLE t")
        receive = [server.binaries.program("pg_recvlogical"), "-d", dsn, "--start", "--no-loop", "--slot"]
        options = ["-o", "format-version=2", "-o", "include-transaction=false"]
        tail = [SCRIPT, "-q", "--dsn", dsn, "slot", "tail"]

        def to_file(command: list[str]) -> Callable[[Path], subprocess.Popen[bytes]]:
            def start(path: Path) -> subprocess.Popen[bytes]:
                with path.open("ab") as file:
                    return subprocess.Popen(command, stdout=file)

            return start

        def through_pipe(path: Path) -> subprocess.Popen[bytes]:
            # The reader goes on until the pipe ends, so what was in the pipe counts as taken.
            with path.open("ab") as file:
                reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
            with suppress(OSError):
                assert reader.stdin is not None
                return subprocess.Popen([*tail, "pipe"], stdout=reader.stdin)
            raise SystemExit("could not start")

        consumers = {
            "pg_recvlogical": ("wal2json", to_file([*receive, "plain", *options, "-f", "-"])),
            "pg_recvlogical -s1 -F1": ("wal2json", to_file([*receive, "short", *options, "-s1", "-F1", "-f", "-"])),
            "rdsrepl, pipe": ("pgoutput", through_pipe),
            "rdsrepl, file": ("pgoutput", to_file([*tail, "file"])),
        }
        slots = ("plain", "short", "pipe", "file")
        print(f"\nRepeats after kill -9 at {CHANGES_PER_SECOND:,} changes/s, {kills} kills each")
        for slot, (name, (plugin, start)) in zip(slots, consumers.items(), strict=True):
            with closing(connect(server)) as conn:
                conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
            with load(server):
                found = measure(start, Path(directory) / slot, kills)
            with closing(connect(server)) as conn:
                conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            _print(name, found)
        to_kinesis(server, kills)
