"""A snapshot into a running stream while a standby does not follow, with an output that is slow, and at a rate.

It must stop while the standby is behind and then go on; the rows of a chunk must be few enough for the slow output; the
rate must be reached and not exceeded. At the end a new consumer must have the source's rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from rdsrepl.snapshot.pacing import MOST_BYTES
from rdsrepl.snapshot.requests import PREFIX, Request, encode
from tests.benchmarks.measure import SCRIPT, own_server
from tests.fixtures.postgres import Database
from tests.fixtures.waiting import wait_until
from tests.workloads import changing_rows, stream_consumer
from tests.workloads.snapshot_tail import SnapshotTail
from tests.workloads.stream_consumer import Consumer, compare, source_rows

_ROWS = 10_000
_SLOW_BYTES_PER_SECOND = 500_000
_RATES = ((1_000, 10_000), (1_000, 100), (4_000, 500))


def report() -> None:
    """Print the figures; assert what the module says, except the times."""
    with own_server(synchronous_commit="on") as server, tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as place:
        directory, source = Path(place), Database(server, "bench")
        changing_rows.create(source, _ROWS)
        standby = server.clone(directory / "standby", slot="standby")
        standby.start()
        try:
            _behind(source, Database(standby, "bench"), directory)
        finally:
            standby.stop("immediate")
            standby.remove()
        source.run("SELECT pg_drop_replication_slot('standby')")
        _slow(source, directory)
        _rates(source, directory)


def _behind(source: Database, standby: Database, directory: Path) -> None:
    tail = _started(source, directory / "behind")
    with changing_rows.writers(source, _ROWS, count=1, pause_seconds=0.02):
        _request(source, Request("behind", tail.slot, ("public.items",), chunk_rows=50, rows_per_second=500))
        wait_until(lambda: (tail.snapshot("behind") or {}).get("status") == "running", "it runs")
        standby.run("SELECT pg_wal_replay_pause()")
        began = time.monotonic()
        wait_until(lambda: (tail.snapshot("behind") or {}).get("waits_for"), "it waits for the standby")
        waits, rows = (tail.snapshot("behind") or {})["waits_for"], _copied(tail)
        print(f"\nA standby that does not replay\n  after {time.monotonic() - began:.1f} s: waits for {waits}")
        time.sleep(5)
        assert _copied(tail) == rows, "no row was read"
        standby.run("SELECT pg_wal_replay_resume()")
        wait_until(lambda: _copied(tail) > rows, "it goes on")
        tail.wait_until_done("behind")
    tail.wait_until_confirmed()
    tail.stop()
    consumer = Consumer().fold(stream_consumer.read(tail.out))
    difference = compare(consumer.tables["items"], source_rows(source, "items", ("id",)))
    print(f"  {consumer.copied:,} rows copied, {difference}")
    assert not difference


def _slow(source: Database, directory: Path) -> None:
    """Read the output slowly; no chunk may be larger than what was agreed."""
    words = ["slot", "tail", "slow", "--create", "pgoutput", "--publication", "items", "-f", "json"]
    state, sizes = directory / "slow.json", Counter[int]()
    process = subprocess.Popen(
        [SCRIPT, "-q", "--dsn", source.dsn, *words, "--state", str(state)],
        stdout=subprocess.PIPE,
        env={**os.environ, "XDG_STATE_HOME": str(directory / "home")},
    )
    assert process.stdout is not None
    output = process.stdout

    def read() -> None:
        for line in output:
            if not line.endswith(b"\n"):
                return  # the process was killed
            event = json.loads(line)
            if event["op"] == "r":
                sizes[event["snapshot"]["chunk"]] += len(line)
            time.sleep(len(line) / _SLOW_BYTES_PER_SECOND)

    reader = threading.Thread(target=read)
    reader.start()
    active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'slow' AND active"
    wait_until(lambda: source.run(active), "the slot is streamed")
    _request(source, Request("slow", "slow", ("public.items",)))
    wait_until(lambda: sum(sizes.values()) > 8 * MOST_BYTES, "some chunks are read")
    process.kill()
    process.wait()
    reader.join()
    print(f"Output that takes {_SLOW_BYTES_PER_SECOND:,} bytes/s, rows of 3 kB")
    print(f"  {len(sizes)} chunks, the largest of {max(sizes.values()):,} bytes")
    assert max(sizes.values()) < 2 * MOST_BYTES


def _rates(source: Database, directory: Path) -> None:
    tail = _started(source, directory / "rates")
    print("Rates")
    for rate, chunk_rows in _RATES:
        name = f"r{rate}-{chunk_rows}"
        _request(source, Request(name, tail.slot, ("public.items",), None, chunk_rows, rate))
        wait_until(lambda name=name: (tail.snapshot(name) or {}).get("status") == "running", "it runs")  # type: ignore[misc]
        began = time.monotonic()
        state = tail.wait_until_done(name)
        found = state["tables"][0]["rows"] / (time.monotonic() - began)
        print(f"  --rate {rate:,}/s --chunk {chunk_rows:,}: {found:,.0f} rows/s")
    tail.stop()


def _started(source: Database, directory: Path) -> SnapshotTail:
    tail = SnapshotTail(source, directory.name, directory, "--create", "pgoutput", targets={})
    tail.start()
    active = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{tail.slot}' AND active"
    wait_until(lambda: source.run(active), "the slot is streamed")
    return tail


def _request(source: Database, request: Request) -> None:
    with closing(source.connect()) as conn:
        conn.execute("SELECT pg_logical_emit_message(true, %s, %s)", (PREFIX, encode(request)))


def _copied(tail: SnapshotTail) -> int:
    return tail.out.read_bytes().count(b'"op":"r"')
