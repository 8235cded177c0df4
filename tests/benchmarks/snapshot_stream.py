"""A snapshot into a running stream: its rate beside 5,000 changes a second, and the latency of the stream meanwhile.

After the end, what a consumer has is compared with the table.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import IO

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.snapshot.requests import PREFIX, Request, encode
from tests.benchmarks.measure import SCRIPT, connect, own_server

ROWS = 1_000_000
CHANGES_PER_SECOND = 5_000
PER_TRANSACTION = 50
WARM_UP_SECONDS = 3.0
_PING = re.compile(rb'"table":"ping".*?"after":\{"id":\d+,"at":([0-9.]+)')


class Writer(threading.Thread):
    """Updates rows of the table at a steady rate; each transaction also inserts the time when it began."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        self._server, self.stopped, self.transactions = server, threading.Event(), 0

    def run(self) -> None:
        with closing(connect(self._server)) as conn:
            conn.execute("SET synchronous_commit = on")  # otherwise the WAL is sent up to 200 ms later
            began = time.monotonic()
            while not self.stopped.is_set():
                first = self.transactions * 7_919 % (ROWS - PER_TRANSACTION) + 1
                conn.execute(
                    "WITH u AS (UPDATE items SET n = n + 1 WHERE id BETWEEN %s AND %s)"
                    " INSERT INTO ping (at) VALUES (%s)",
                    (first, first + PER_TRANSACTION - 2, time.time()),
                )
                self.transactions += 1
                due = began + self.transactions * PER_TRANSACTION / CHANGES_PER_SECOND
                self.stopped.wait(max(0.0, due - time.monotonic()))


class Reader(threading.Thread):
    """Reads the output, keeps it, and notes the latency of each ping with the time when it came."""

    def __init__(self, output: IO[bytes], copy: Path) -> None:
        super().__init__()
        self._output, self._copy = output, copy
        self.pings: list[tuple[float, float]] = []

    def run(self) -> None:
        rest = b""
        with self._copy.open("wb") as file:
            while data := self._output.read1(1 << 20):  # type: ignore[attr-defined]
                now = time.time()
                file.write(data)
                whole, newline, after = data.rpartition(b"\n")
                text = rest + whole if newline else b""
                rest = after if newline else rest + data
                self.pings += [(now, now - float(match[1])) for match in _PING.finditer(text)]


def _ms(latencies: list[float]) -> str:
    latencies = sorted(latencies)
    median, p95 = statistics.median(latencies) * 1000, latencies[len(latencies) * 95 // 100] * 1000
    return f"median {median:6.1f} ms, 95th percentile {p95:6.1f} ms"


def report() -> None:
    """Print rate and latencies; assert that the consumer has every row as the table has it."""
    with (
        own_server() as server,
        tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory,
        closing(connect(server)) as conn,
    ):
        conn.execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, name text, amount numeric(12,2), at timestamptz, n int,"
            " flag bool, note text)"
        )
        conn.execute(
            "INSERT INTO items SELECT i, 'name of ' || i, i * 1.01, '2026-01-01'::timestamptz + i * interval '1 s',"
            f" i, i % 2 = 0, md5(i::text) FROM generate_series(1, {ROWS}) i"
        )
        conn.execute("CREATE TABLE ping (id bigserial PRIMARY KEY, at float8)")
        conn.execute("CREATE PUBLICATION p FOR TABLE items, ping")
        conn.execute("VACUUM ANALYZE items")
        state, copy = Path(directory) / "state.json", Path(directory) / "out"
        dsn = server.dsn(user="bench", dbname="bench")
        command = [SCRIPT, "-q", "--dsn", dsn, "slot", "tail", "s", "--create", "pgoutput", "--publication", "p"]
        process = subprocess.Popen([*command, "-f", "json", "--state", str(state)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        reader, writer = Reader(process.stdout, copy), Writer(server)
        reader.start()
        while not conn.execute("SELECT 1 FROM pg_replication_slots WHERE active").fetchone():
            time.sleep(0.05)
        writer.start()
        time.sleep(WARM_UP_SECONDS)
        before = len(reader.pings)
        began, changes, cpu = time.monotonic(), writer.transactions, _cpu_seconds(process.pid)
        conn.execute(
            "SELECT pg_logical_emit_message(true, %s, %s)",
            (PREFIX, encode(Request("bench", "s", ("public.items",)))),
        )
        while not state.exists() or json.loads(state.read_text())["snapshots"][0]["status"] != "done":
            assert process.poll() is None
            time.sleep(0.02)
        seconds, changes = time.monotonic() - began, writer.transactions - changes
        cpu = _cpu_seconds(process.pid) - cpu
        during = len(reader.pings)
        time.sleep(WARM_UP_SECONDS)
        writer.stopped.set()
        writer.join()
        end = conn.execute("SELECT pg_current_wal_lsn()").fetchone()
        while not conn.execute("SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn >= %s", end).fetchone():
            time.sleep(0.05)
        process.terminate()
        process.wait()
        reader.join()
        wrong = _wrong_rows(conn.execute("SELECT id, n FROM items").fetchall(), copy)
        conflicts = json.loads(state.read_text())["snapshots"][0]["tables"][0]["conflicts"]
    quiet = [latency for _, latency in reader.pings[:before] + reader.pings[during:]]
    busy = [latency for _, latency in reader.pings[before:during]]
    print(f"\nSnapshot of {ROWS:,} rows into a stream with {changes * PER_TRANSACTION / seconds:,.0f} changes/s")
    print(f"  {ROWS / seconds:,.0f} rows/s ({seconds:.1f} s), {cpu:.1f} s of CPU of the tail")
    print(f"  {conflicts} rows in conflict, {wrong} wrong")
    print(f"  latency before and after  {_ms(quiet)}")
    print(f"  latency meanwhile         {_ms(busy)}")
    assert wrong == 0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wrong_rows(rows: list[tuple[int, int]], copy: Path) -> int:
    seen: dict[int, int] = {}
    row = re.compile(rb'"table":"items".*?"after":\{"id":(\d+),.*?"n":(\d+)')
    with copy.open("rb") as file:
        for line in file:
            if match := row.search(line):
                seen[int(match[1])] = int(match[2])
    return sum(seen.get(key) != n for key, n in rows) + abs(len(seen) - len(rows))
