"""The delivery contract to Kinesis at full size: kills, refusals and a failover together; a minute without Kinesis."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from rdsrepl.lsn import Lsn
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import connect, own_server
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until
from tests.workloads.kcl_consumer import of_record
from tests.workloads.kinesis_server import KinesisServer, reshard

STREAM = "changes"
AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1"}
HOT = 5
# Changes of a transaction, and how many of them have frequent keys: a fifth.
ROWS = 20
HOT_ROWS = 4
_CHANGE = (
    "INSERT INTO t SELECT i, 1, repeat('x', 100) FROM unnest(%s::int[]) i ON CONFLICT (id) DO UPDATE SET n = t.n + 1"
)

Connect = Callable[[], "psycopg.Connection[Any]"]
# (commit LSN, number in its transaction) identifies a change.
Identity = tuple[int, int]


@dataclass(frozen=True)
class FaultLoad:
    """The amount of load and faults.

    Attributes:
        changes: how many are committed, at least.
        per_second: the rate of changes.
        keys: the number of rows; a fifth of the changes goes to five of them.
        kills: how often the tail is killed.
        life_seconds: how long a tail runs, from and to.
        partial: the share of records that Kinesis refuses.
        aggregate: whether --aggregate is used.
        seed: of the random numbers.
    """

    changes: int = 200_000
    per_second: int = 2_500
    keys: int = 5_000
    kills: int = 20
    life_seconds: tuple[float, float] = (1.0, 5.0)
    partial: float = 0.3
    aggregate: bool = False
    seed: int = 1


@dataclass(frozen=True)
class FaultResult:
    """The result of a run in which no change was lost or out of order.

    Attributes:
        changes: committed.
        arrived: changes in the stream, with repeats.
        refused: records that Kinesis refused.
        kills: of a running tail.
        failover_seconds: the duration of the failover command.
        seconds: from the first change to the last one confirmed.
    """

    changes: int
    arrived: int
    refused: int
    kills: int
    failover_seconds: float
    seconds: float

    @property
    def repeats(self) -> int:
        """How many changes came again."""
        return self.arrived - self.changes


class SteadyWriter(threading.Thread):
    """A client that commits transactions at a steady rate until it is stopped, through a failover too."""

    def __init__(self, connect: Connect, *, keys: int, per_second: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.committed = 0
        self._failure: BaseException | None = None
        self._stopped = False
        self._connect = connect
        self._keys = keys
        self._per_second = per_second
        self._random = random.Random(seed)

    def stop(self, *, after: int = 0) -> None:
        """Stop the client after it has committed this many changes.

        Raises:
            AssertionError: it failed.
        """
        while self._failure is None and self.committed < after:
            time.sleep(0.05)
        self._stopped = True
        self.join()
        assert self._failure is None, repr(self._failure)

    def run(self) -> None:
        """Commit until stopped."""
        try:
            while not self._stopped:
                with suppress(psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
                    self._work()
                time.sleep(0.05)
        except BaseException as exc:
            self._failure = exc
            raise

    def _work(self) -> None:
        with closing(self._connect()) as conn:
            began, before = time.monotonic(), self.committed
            while not self._stopped:
                hot = self._random.sample(range(HOT), HOT_ROWS)
                others = self._random.sample(range(HOT, self._keys), ROWS - HOT_ROWS)
                conn.execute(_CHANGE, (hot + others,))
                self.committed += ROWS
                due = began + (self.committed - before) / self._per_second
                time.sleep(max(0.0, due - time.monotonic()))


_IS_STREAMED = "SELECT active FROM pg_replication_slots WHERE slot_name = 'faults'"


@dataclass
class TailProcess:
    """The program under test, started and killed again and again."""

    program: Program
    words: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    dsn: str | None = None
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start the tail."""
        self.starts += 1
        with self.log.open("ab") as err:
            self.process = self.program.start(*self.words, *more, dsn=self.dsn, env=self.env, stdout=err, stderr=err)
        return self.process

    def kill(self) -> None:
        """Kill the tail with SIGKILL."""
        assert self.process is not None
        assert self.process.poll() is None, f"the tail ended: {self.log.read_text()[-2000:]}"
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End the tail if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class KillSnapshot:
    """The state at a kill: how many records each shard had, and then the confirmed position."""

    arrived: tuple[int, ...]
    confirmed: int


@dataclass
class SandboxCluster:
    """A cluster that can fail over, and connections to its writer."""

    program: Program
    variables: dict[str, str] = field(default_factory=dict)

    def connect(self) -> psycopg.Connection[Any]:
        """Connect to the writer."""
        found = self.variables
        password = Path(found["PGPASSFILE"]).read_text().split(":")[4].split("\n")[0]
        return psycopg.connect(
            host=found["PGHOST"], port=found["PGPORT"], user=found["PGUSER"], dbname=found["PGDATABASE"],
            password=password, autocommit=True, connect_timeout=3, keepalives_idle=2,
        )  # fmt: skip

    def value(self, query: str) -> Any:
        """Return a query's one value."""
        with closing(self.connect()) as conn:
            row = conn.execute(query).fetchone()
        assert row is not None
        return row[0]

    def run(self, *words: str) -> str:
        """Run the program in its own process; return its output."""
        process = self.program.start("-q", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"{words}: {err.decode()}"
        return out.decode()


@contextmanager
def sandbox(home: Path) -> Iterator[SandboxCluster]:
    """Start a sandbox in HOME."""
    made = SandboxCluster(Program(home))
    try:
        made.run("sandbox", "up")
        made.variables = json.loads(made.run("-o", "json", "sandbox", "env"))
        yield made
    finally:
        made.run("sandbox", "down")


def stream_with_faults(home: Path, size: FaultLoad) -> FaultResult:
    """Run changes, refusals, kills and a failover; check that every change arrived, in order.

    With aggregation the stream is resharded before every kill, and the consumer discards what a KCL discards.

    Raises:
        AssertionError: a change is missing or out of order.
    """
    chosen = random.Random(size.seed + 1)
    with sandbox(home) as box, KinesisServer(STREAM, seed=size.seed + 2) as kinesis:
        with closing(box.connect()) as conn:
            conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int, v text)")
            conn.execute("CREATE PUBLICATION faults FOR TABLE t")
        box.run("-t", "sandbox", "slot", "create", "faults", "--yes")
        kinesis.faults.partial, kinesis.faults.slow_seconds = size.partial, 0.002
        words: tuple[str, ...] = (
            "-t",
            "sandbox",
            "slot",
            "tail",
            "faults",
            "--publication",
            "faults",
            "--to",
            f"kinesis:{STREAM}",
        )
        words += ("--endpoint-url", kinesis.url, *(["--aggregate"] if size.aggregate else []))
        tail = TailProcess(box.program, words, {}, home / "tail.log")
        writer = SteadyWriter(box.connect, keys=size.keys, per_second=size.per_second, seed=size.seed)
        marks: list[KillSnapshot] = []
        failover_seconds = 0.0
        began = time.monotonic()
        try:
            writer.start()
            for kill in range(size.kills):
                tail.start()
                if kill == size.kills // 2:
                    time.sleep(size.life_seconds[0])
                    # A tail that starts while the server shuts down ends with an error, as every command does.
                    wait_until(lambda: box.value(_IS_STREAMED), "the slot is streamed")
                    failing = time.monotonic()
                    box.run("-t", "sandbox", "cluster", "failover", "sandbox", "--yes")
                    failover_seconds = time.monotonic() - failing
                time.sleep(chosen.uniform(*size.life_seconds))
                if size.aggregate:
                    reshard(kinesis.shards[STREAM], chosen)
                    time.sleep(0.2)
                tail.kill()
                arrived = tuple(len(shard.records) for shard in kinesis.shards[STREAM])
                marks.append(KillSnapshot(arrived, _confirmed(box)))
            writer.stop(after=size.changes)
            last = tail.start("--until-now")
            assert last.wait(600) == 0, tail.log.read_text()[-2000:]
        finally:
            tail.end()
        seconds = time.monotonic() - began
        with closing(box.connect()) as conn:
            expected = dict(conn.execute("SELECT id, n FROM t").fetchall())
        assert sum(expected.values()) >= writer.committed >= size.changes, "the server kept what it acknowledged"
        arrived_changes = _check(kinesis, expected, marks)
    return FaultResult(sum(expected.values()), arrived_changes, kinesis.refused, len(marks), failover_seconds, seconds)


def _confirmed(box: SandboxCluster) -> int:
    query = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'faults'"
    return int(Lsn.parse(box.value(query)))


def _check(kinesis: KinesisServer, expected: dict[int, int], marks: list[KillSnapshot]) -> int:
    """Check arrivals, their order for each key, and confirmed positions; return how many changes arrived."""
    arrived = 0
    first: dict[int, list[tuple[Identity, int]]] = {}
    # The first arrival of each change: shard and position.
    places: dict[Identity, tuple[int, int]] = {}
    for number, shard in enumerate(kinesis.shards[STREAM]):
        for position, (key, data) in enumerate(shard.records):
            for _, one in of_record(shard, key, data):
                arrived += 1
                event = json.loads(one)
                identity = (int(Lsn.parse(event["commit_lsn"])), int(event["seq"]))
                if identity not in places:
                    places[identity] = (number, position)
                    first.setdefault(event["after"]["id"], []).append((identity, event["after"]["n"]))
    assert {key: len(changes) for key, changes in first.items()} == expected, "each change once, without repeats"
    for row_id, changes in first.items():
        assert changes == sorted(changes), f"commit order of row {row_id}"
        assert [n for _, n in changes] == list(range(1, expected[row_id] + 1)), f"values of row {row_id}"
    for mark in marks:
        for (commit_lsn, _), (number, position) in places.items():
            was_there = number < len(mark.arrived) and position < mark.arrived[number]
            assert commit_lsn >= mark.confirmed or was_there, "confirmed, and not in the stream"
    return arrived


@dataclass(frozen=True)
class OutageResult:
    """The effects of an outage of Kinesis.

    Attributes:
        seconds: down.
        per_second: changes that went on being committed.
        memory: peak, in MB.
        reply_gap: the longest time between two status updates, at the server.
        connections: how many the server had; 1 means no reconnect.
        caught_up_seconds: from Kinesis' return until nothing older than a second was missing.
        caught_up_rate: changes a second that arrived in that time.
    """

    seconds: float
    per_second: int
    memory: float
    reply_gap: float
    connections: int
    caught_up_seconds: float
    caught_up_rate: float


def stream_through_outage(server: PostgresServer, home: Path, *, seconds: float, per_second: int) -> OutageResult:
    """Stop Kinesis under load, and start it again."""
    dsn = server.dsn(user="bench", dbname="bench")
    with closing(connect(server)) as conn:
        conn.execute("ALTER SYSTEM SET wal_sender_timeout = '5s'")
        conn.execute("SELECT pg_reload_conf()")
        conn.execute("DROP TABLE IF EXISTS t CASCADE")
        conn.execute("CREATE TABLE t (id int PRIMARY KEY, n int, v text)")
        conn.execute("DROP PUBLICATION IF EXISTS outage")
        conn.execute("CREATE PUBLICATION outage FOR TABLE t")
        conn.execute("SELECT pg_create_logical_replication_slot('outage', 'pgoutput')")
    with KinesisServer(STREAM) as kinesis:
        words: tuple[str, ...] = ("slot", "tail", "outage", "--publication", "outage", "--to", f"kinesis:{STREAM}")
        words += ("--endpoint-url", kinesis.url)
        tail = TailProcess(Program(home), words, {**AWS, "PGPASSWORD": "bench"}, home / "outage.log", dsn)
        writer = SteadyWriter(lambda: psycopg.connect(dsn, autocommit=True), keys=5_000, per_second=per_second, seed=1)
        process = tail.start()
        pids: set[int] = set()
        gap = 0.0

        def watch(until: Callable[[], bool]) -> float:
            nonlocal gap
            began = time.monotonic()
            while not until():
                row = conn.execute(
                    "SELECT pid, extract(epoch FROM clock_timestamp() - reply_time)::float8 FROM pg_stat_replication"
                ).fetchone()
                assert process.poll() is None, tail.log.read_text()
                assert row is not None, "the server has no walsender"
                pids.add(row[0])
                gap = max(gap, row[1] or 0.0)
                time.sleep(0.25)
            return time.monotonic() - began

        try:
            with closing(connect(server)) as conn:
                while conn.execute("SELECT 1 FROM pg_stat_replication").fetchone() is None:
                    time.sleep(0.05)
                writer.start()
                watch(_after(5))
                kinesis.faults.down = True
                watch(_after(seconds))
                memory = _peak_mb(process.pid)
                kinesis.faults.down = False
                before = _arrived(kinesis)
                took = watch(lambda: _arrived(kinesis) >= writer.committed - per_second)
                caught = _arrived(kinesis) - before
                writer.stop()
                watch(lambda: _arrived(kinesis) >= writer.committed)
                memory = max(memory, _peak_mb(process.pid))
            process.terminate()
            assert process.wait(60) == 0, tail.log.read_text()
        finally:
            tail.end()
        with closing(connect(server)) as conn:
            expected: dict[int, int] = dict(conn.execute("SELECT id, n FROM t").fetchall())
            conn.execute("SELECT pg_drop_replication_slot('outage')")
        _check(kinesis, expected, [])
    return OutageResult(seconds, per_second, memory, gap, len(pids), took, caught / took)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _arrived(kinesis: KinesisServer) -> int:
    return sum(len(shard.records) for shard in kinesis.shards[STREAM])


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1000


def report() -> None:
    """Run both scenarios, and print the results."""
    with own_server() as server, tempfile.TemporaryDirectory(prefix="rdsrepl-faults-") as directory:
        home = Path(directory)
        for size in (FaultLoad(aggregate=True), FaultLoad(changes=30_000, per_second=700, kills=10)):
            name = "with --aggregate" if size.aggregate else "without"
            (home / name).mkdir()
            came = stream_with_faults(home / name, size)
            print(
                f"\nKinesis under faults, {name}: {came.changes:,} changes over {size.keys:,} keys, "
                f"a fifth of them over {HOT}; {size.partial:.0%} of the records refused, one failover under load"
            )
            print(f"  nothing lost, keys in commit order, nothing confirmed that had not arrived; {came.seconds:.0f} s")
            print(f"  {came.kills} kills (-9), failover {came.failover_seconds:.1f} s, {came.refused:,} refusals")
            print(f"  {came.repeats:,} changes came again: {came.repeats / came.changes:.1%}")
        down = stream_through_outage(server, home, seconds=60, per_second=5_000)
        print(f"\nKinesis down for {down.seconds:.0f} s while {down.per_second:,} changes/s are committed")
        print(f"  peak {down.memory:.1f} MB; status updates at most {down.reply_gap:.1f} s old", end="")
        print(f" (wal_sender_timeout 5 s), {down.connections} connection")
        print(f"  caught up {down.caught_up_seconds:.1f} s after its return, at {down.caught_up_rate:,.0f} changes/s")
