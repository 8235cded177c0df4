"""Kill -9 at random points of a snapshot and of the stream behind it: what a new consumer has at the end.

Four writers change the tables all the time: rows are inserted and deleted, keys move, of five changes four leave the
large value alone. The process is killed while it starts, copies rows, and streams; each time it starts again with the
same command. Sometimes its connections are terminated before. At the end the tables of a consumer that begins with
nothing must be the source's, and the lines of each key must be in order. One of the tables has no key.
"""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import closing
from pathlib import Path

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.snapshot.requests import Method
from tests.benchmarks.measure import own_server
from tests.fixtures.postgres import Database
from tests.fixtures.waiting import wait_until
from tests.workloads import changing_rows, stream_consumer
from tests.workloads.snapshot_tail import SnapshotTail
from tests.workloads.stream_consumer import Consumer, compare, source_rows

KILLS = 100
_KILLS_OF_A_RUN = 10
# A copy of the second number takes some seconds, so that kills meet it.
_ROWS, _INITIAL_ROWS = 4_000, 20_000
# The connections that receive the stream, read rows and write markers.
_TERMINATE = """
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND (backend_type = 'walsender' OR query LIKE 'COPY (SELECT%' OR query LIKE '%pg_logical_emit_message%')
"""
_KEYS: dict[str, tuple[str, ...]] = {"items": ("id",), "places": ("area", "name"), "log": ()}
_TABLES = tuple(f"public.{name}" for name in _KEYS)


def report(kills: int = KILLS) -> None:
    """Kill tails whose snapshot is requested, and tails that begin with a snapshot; half of the kills each."""
    print(f"\nA snapshot and its stream after {kills} kill -9, 4 writers")
    rng = random.Random(kills)
    with own_server(synchronous_commit="on") as server, tempfile.TemporaryDirectory(prefix="rdsrepl-kills-") as name:
        for number in range(max(1, kills // _KILLS_OF_A_RUN)):
            is_initial = number % 2 == 1
            _run(server, Path(name), f"run{number}", is_initial, rng)


def _run(server: PostgresServer, directory: Path, name: str, is_initial: bool, rng: random.Random) -> None:
    with closing(server.connect(dbname="postgres")) as conn:
        conn.execute(f"CREATE DATABASE {name}".encode())
    source = Database(server, name)
    rows = _INITIAL_ROWS if is_initial else _ROWS
    changing_rows.create(source, rows, log=True)
    create = ["--create", "pgoutput", "--allow-snapshot-truncate", *(["--snapshot"] if is_initial else [])]
    tail = SnapshotTail(source, name, directory / name, *create, targets={})
    lost = 0
    with changing_rows.writers(source, rows, pause_seconds=0.01, log=True) as load:
        for kill in range(_KILLS_OF_A_RUN):
            tail.start()
            if not is_initial and kill == 0:
                wait_until(lambda: _is_streamed(source, name), "the slot is streamed")
                tail.request("first", rng.choice([50, 200]), tables=_TABLES, method=Method.slot)
            if not is_initial and kill == _KILLS_OF_A_RUN // 2:
                tail.request("second", 100, tables=_TABLES, method=Method.slot)
            # Starting takes about half a second: some kills come before the first row.
            time.sleep(rng.choice([rng.uniform(0.0, 0.5), rng.uniform(0.5, 1.2), rng.uniform(0.5, 3.0)]))
            terminated = 0
            if rng.random() < 0.5:
                terminated = source.value(_TERMINATE)
                time.sleep(rng.uniform(0.0, 2.0))
            lost += terminated
            _begin_again(tail)
            tail.kill(may_have_ended=terminated > 0)  # a process that loses its first connection ends with an error
        tail.start()
        wait_until(lambda: _is_streamed(source, name) or _begin_again(tail), "the slot is streamed")
        for snapshot_id in ("initial",) if is_initial else ("first", "second"):
            if not is_initial or tail.snapshot(snapshot_id) is not None:
                tail.wait_until_done(snapshot_id)
    tail.wait_until_confirmed()
    tail.stop()
    events = stream_consumer.read(tail.out)
    consumer = Consumer().fold(events)
    kind = "slot tail --snapshot" if is_initial else "snapshot start"
    print(
        f"  {kind:22} {_KILLS_OF_A_RUN} kills  connections lost {lost:2}  transactions {load.transactions:6,}"
        f"  lines {len(events):7,}  rows copied {consumer.copied:6,}  repeats {consumer.repeats}"
        f"  out of order {len(consumer.out_of_order)}  ",
        end="",
    )
    differences = [compare(consumer.tables[table], source_rows(source, table, key)) for table, key in _KEYS.items()]
    print("; ".join(map(str, differences)), flush=True)
    assert not any(differences) and not consumer.out_of_order, (name, differences)
    source.run(f"SELECT pg_drop_replication_slot('{name}')")


def _is_streamed(source: Database, name: str) -> bool:
    query = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}' AND active"
    return bool(source.value(query))


def _begin_again(tail: SnapshotTail) -> bool:
    """Remove the file and start again, if a copy that ended early left rows and no slot; the error says so."""
    if tail.process is not None and tail.process.poll() and b"file is not empty" in tail.errors.read_bytes():
        tail.out.unlink()
        tail.errors.unlink()
        tail.start()
    return False
