"""What a file has after many kill -9 under a steady load: every change once, in order, in each format.

The tail appends to a file, or rotates and compresses it, and is killed at random moments: also while it starts, closes
a file or compresses one. Then the files are read in the order of their names.
"""

from __future__ import annotations

import random
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.tail.sinks.compression import SUFFIXES, opener
from tests.benchmarks.measure import SCRIPT, connect, own_server
from tests.fixtures.background import running
from tests.fixtures.failover import FailoverPair
from tests.fixtures.postgres import find_binaries

KILLS = 30
FAILOVERS = 2
_ROWS, _LARGE_ROWS = 20, 10_000
# The id of an inserted row: in JSON, in wal2json's, in pgoutput's own message.
_IDS = {
    "json": re.compile(rb'"after":{"id":(\d+)'),
    "debezium": re.compile(rb'"after":{"id":(\d+)'),
    "wal2json": re.compile(rb'"name":"id","type":"bigint","value":(\d+)'),
    "raw wal2json": re.compile(rb'"name":"id","type":"bigint","value":(\d+)'),
    "raw pgoutput": re.compile(rb"I....N\x00\x02t...[\x01-\x14](\d+)t", re.DOTALL),
}


@dataclass(frozen=True)
class Case:
    """A way to write a file."""

    format: str
    plugin: str
    rotate: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.format} ({self.plugin})" + (" " + " ".join(self.rotate) if self.rotate else "")

    @property
    def ids(self) -> re.Pattern[bytes]:
        """Finds the ids of its changes."""
        return _IDS.get(self.format) or _IDS[f"raw {self.plugin}"]


_ROTATE = ("--rotate-size", "300kB", "--rotate-compress", "gzip")
_PLAIN = (
    Case("wal2json", "pgoutput"),
    Case("wal2json", "wal2json"),
    Case("raw", "wal2json"),
    Case("raw", "pgoutput"),
)
CASES = (
    *_PLAIN,
    Case("json", "pgoutput", _ROTATE),
    Case("debezium", "pgoutput", _ROTATE),
    Case("wal2json", "pgoutput", (*_ROTATE[:2], "--rotate-every", "1s", "--rotate-compress", "zstd")),
    Case("raw", "wal2json", _ROTATE),
    Case("raw", "pgoutput", _ROTATE[:2]),
)


FAILOVER_CASES = (
    Case("wal2json", "pgoutput"),
    Case("raw", "pgoutput", ("--rotate-size", "20kB")),
    Case("json", "pgoutput", ("--rotate-size", "20kB", "--rotate-compress", "gzip")),
)


def contents(directory: Path) -> bytes:
    """Return what the files of a directory have, in the order of their names; the current one is the last."""
    closed = sorted(path for path in directory.iterdir() if path.name.startswith("out.") and path.suffix != ".rdsrepl")
    return b"".join(map(_content, [*closed, directory / "out"]))


def _content(path: Path) -> bytes:
    methods = [method for method, suffix in SUFFIXES.items() if path.suffix == suffix]
    if not methods:
        return path.read_bytes()
    with path.open("rb") as file, opener(methods[0])(file, "rb") as compressed:
        return compressed.read()


@contextmanager
def load(server: PostgresServer) -> Iterator[None]:
    """Commit small transactions, and a large one now and then; the id of a row is its number in the stream."""

    def work(over: threading.Event) -> None:
        with closing(connect(server)) as conn:
            for number in count(1):
                if over.wait(0.01):
                    return
                rows = _LARGE_ROWS if number % 500 == 0 else _ROWS
                conn.execute("INSERT INTO t (v) SELECT repeat('x', 100) FROM generate_series(1, %s)", (rows,))

    with running(work):
        yield


def run_case(server: PostgresServer, case: Case, directory: Path, kills: int, rng: random.Random) -> None:
    """Kill a tail again and again, and check what it wrote."""
    directory.mkdir()
    slot = f"kills_{directory.name}"
    out = directory / "out"
    out.touch()
    with closing(connect(server)) as conn:
        conn.execute("TRUNCATE t RESTART IDENTITY")
        conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, case.plugin))
    command = [SCRIPT, "-q", "--dsn", server.dsn(user="bench", dbname="bench"), "slot", "tail", slot]
    command += ["--format", case.format, *case.rotate]
    if case.rotate:
        command += ["--to", f"file:{out}"]

    def start(*words: str) -> subprocess.Popen[bytes]:
        with out.open("ab") as file:
            return subprocess.Popen([*command, *words], stdout=file)

    with load(server):
        for _ in range(kills):
            tail = start()
            time.sleep(rng.uniform(0.4, 1.6))
            assert tail.poll() is None, f"{case.name}: ended by itself"
            tail.kill()
            tail.wait()
    with closing(connect(server)) as conn:
        # Commits are asynchronous here, and only flushed WAL is sent: a synchronous one flushes all before it.
        conn.execute("SET synchronous_commit = on")
        conn.execute("SELECT pg_logical_emit_message(true, 'end', '')")
    assert start("--until-now").wait() == 0
    with closing(connect(server)) as conn:
        wanted = [int(row[0]) for row in conn.execute("SELECT id FROM t ORDER BY id").fetchall()]
        conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    check(case, f"{kills} kills", directory, wanted)


def check(case: Case, what: str, directory: Path, wanted: Sequence[int]) -> None:
    """Compare what the files of a directory have with the ids of the committed rows, and print the result.

    After a failover they may also have rows that only the old primary had.
    """
    ids = [int(found) for found in case.ids.findall(contents(directory))]
    missing, repeated = len(set(wanted) - set(ids)), len(ids) - len(set(ids))
    others, files = len(set(ids) - set(wanted)), len(list(directory.iterdir()))
    print(f"  {case.name:72} {what}  changes {len(wanted):9,}  files {files:4}  missing {missing}  ", end="")
    print(f"repeated {repeated}  in order {ids == sorted(ids)}  of the old primary only {others}", flush=True)
    assert not missing and not repeated and ids == sorted(ids), f"{case.name}: {directory}"


def run_failover(case: Case, rng: random.Random) -> None:
    """Promote a standby that lacks the last WAL, under load, and kill the tail before and after."""
    binaries = find_binaries(18)
    assert binaries is not None
    with tempfile.TemporaryDirectory(prefix="rdsrepl-files-") as name, ExitStack() as stack:
        primary = PostgresServer(Path(name) / "primary", binaries, settings={"log_min_messages": "warning"})
        primary.initdb()
        primary.start()
        standby = primary.clone(Path(name) / "standby", slot="standby")
        for server in (primary, standby):
            stack.callback(server.remove)
            stack.callback(server.stop, "immediate")
        standby.start()
        with closing(primary.connect()) as conn:
            conn.execute("CREATE TABLE public.t (id bigint PRIMARY KEY, v text)")
            conn.execute("CREATE PUBLICATION p FOR TABLE public.t")
        create = [SCRIPT, "-q", "--dsn", primary.dsn(), "slot", "create", "fo", "--failover", "--yes"]
        subprocess.run(create, check=True, capture_output=True)
        directory = Path(name) / "files"
        directory.mkdir()
        wanted = _fail_over(case, FailoverPair(primary, standby), directory / "out", rng)
        check(case, "a failover", directory, wanted)


def _fail_over(case: Case, pair: FailoverPair, out: Path, rng: random.Random) -> list[int]:
    """Return the ids of the new primary's rows."""
    command = [SCRIPT, "-q", "--dsn", pair.dsn, "slot", "tail", "fo", "--publication", "p", "--format", case.format]
    command += [*case.rotate, "--to", f"file:{out}"] if case.rotate else []

    def start(*words: str) -> subprocess.Popen[bytes]:
        with out.open("ab") as file:
            return subprocess.Popen([*command, *words], stdout=file)

    def restarted(tail: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        tail.kill()
        tail.wait()
        return start()

    tail = start()
    pair.wait_until_synced("SELECT pg_logical_emit_message(false, 'x', '', true)")
    with _inserting(pair.primary, 1):
        time.sleep(1 + rng.random())
        with closing(pair.standby.connect()) as conn:  # from now on it receives nothing
            conn.execute("ALTER SYSTEM SET primary_conninfo = ''")
            conn.execute("SELECT pg_reload_conf()")
        tail = restarted(tail) if rng.random() < 0.5 else tail
        time.sleep(1)
        pair.primary.stop("immediate")
    tail = restarted(tail) if rng.random() < 0.5 else tail
    pair.standby.promote()
    with _inserting(pair.standby, 1_000_000):
        for _ in range(3):
            time.sleep(0.6 + rng.random())
            tail = restarted(tail)
        time.sleep(1)
    tail.kill()
    tail.wait()
    assert start("--until-now").wait() == 0
    with closing(pair.standby.connect()) as conn:
        return [int(row[0]) for row in conn.execute("SELECT id FROM public.t ORDER BY id").fetchall()]


@contextmanager
def _inserting(server: PostgresServer, first: int) -> Iterator[None]:
    """Insert rows one by one, until the end or until the server stops."""

    def work(over: threading.Event) -> None:
        import psycopg

        with suppress(psycopg.Error), closing(server.connect()) as conn:
            for number in count(first):
                if over.wait(0.002):
                    return
                conn.execute("INSERT INTO public.t VALUES (%s, 'x')", (number,))
                if number % 50 == 0:
                    conn.execute("SELECT pg_log_standby_snapshot()")

    with running(work):
        yield


def report(kills: int = KILLS, failovers: int = FAILOVERS) -> None:
    """Kill tails in each way to write a file, and print what is missing and repeated."""
    print(f"\nA file after kill -9 under load, {kills} kills each")
    rng = random.Random(kills)
    with own_server() as server, tempfile.TemporaryDirectory(prefix="rdsrepl-files-") as directory:
        with closing(connect(server)) as conn:
            conn.execute("CREATE TABLE t (id bigserial PRIMARY KEY, v text)")
            conn.execute("CREATE PUBLICATION p FOR TABLE t")
        for number, case in enumerate(CASES):
            run_case(server, case, Path(directory) / str(number), kills, rng)
    for case in FAILOVER_CASES:
        for _ in range(failovers):
            run_failover(case, rng)
