"""Kill the primary of a slot pair under load, promote its standby, and compare what the consumer has with the truth.

The truth is the table on the promoted standby: what was committed and replayed. Of what the first consumer wrote, only
what it had confirmed counts. The rest must come from the follower.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from rdsrepl.errors import Error
from rdsrepl.failover.slot_pairs import PairState
from rdsrepl.lsn import Lsn
from rdsrepl.slot_sync.passes import PairOptions, PairSynchronizer
from tests.fixtures.program import Program
from tests.fixtures.slot_pairs import Pair
from tests.fixtures.waiting import wait_until

_SLOT = "orders"
#: what a script without this program does: move the copy to where the standby is.
_NAIVE = (
    f"SELECT pg_replication_slot_advance('{_SLOT}', pg_last_wal_replay_lsn()) FROM pg_replication_slots "
    f"WHERE slot_name = '{_SLOT}' AND confirmed_flush_lsn < pg_last_wal_replay_lsn()"
)


@dataclass(frozen=True)
class Outcome:
    """What one promotion did.

    Attributes:
        state: of the pair at the last pass before the kill.
        rows: committed and replayed.
        lost: rows that neither the first consumer had confirmed nor the second one received.
        repeated: received by both.
        phantoms: rows that the first consumer wrote, and that do not exist any more.
        passes: how many passes were made.
    """

    state: PairState | None
    rows: int
    lost: int
    repeated: int
    phantoms: int
    passes: int


class PreparedPair:
    """A pair of servers with a slot pair, copied for each run."""

    def __init__(self, directory: Path, pair: Pair, rdsrepl: Program) -> None:
        """Make the slot pair, and stop the servers: their directories are the template."""
        self._directory, self._template = directory, pair
        made = rdsrepl("slot", "create", _SLOT, "--pair", pair.standby.dsn(), "--yes", dsn=pair.primary.dsn())
        assert made.code == 0, made.err
        pair.primary.stop("fast")
        pair.standby.stop("fast")

    def copy(self) -> Pair:
        """Return running servers with the same state; ``remove`` ends them."""
        servers = []
        for server in (self._template.primary, self._template.standby):
            place = self._directory / "run" / server.data_dir.name
            place.parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", "--reflink=auto", server.data_dir, place], check=True)
            servers.append(replace(server, data_dir=place, settings=dict(server.settings)))
        for server in servers:
            server.start()
        return Pair(*servers)

    def remove(self, pair: Pair) -> None:
        """Stop the servers and remove their directories; the sockets stay for the next copy."""
        for server in (pair.standby, pair.primary):
            server.stop("immediate")
            subprocess.run(["rm", "-rf", server.data_dir, server.log_file, server.process_file], check=True)


class _Load:
    """Three writers, of which some transactions stay open for a while; and a standby that sometimes lags."""

    def __init__(self, pair: Pair, seed: int, pause_seconds: float) -> None:
        self._pair = pair
        self._pause = pause_seconds
        self._stopped = threading.Event()
        work = [
            *((self._write, random.Random(seed * 10 + number), number) for number in range(3)),
            (self._stay_open, random.Random(seed * 10 + 3), 3),
            (self._hold_back, random.Random(seed * 10 + 4), 4),
        ]
        self._threads = [threading.Thread(target=_until_lost, args=one, daemon=True) for one in work]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _write(self, rng: random.Random, number: int) -> None:
        with closing(self._pair.primary.connect()) as conn:
            row = number * 1_000_000_000
            while not self._stopped.is_set():
                with conn.transaction():
                    for _ in range(rng.choice([1, 1, 2, 5])):
                        size = rng.choice([1, 10, 100])
                        conn.execute(
                            "INSERT INTO public.t SELECT g, repeat('x', %s) FROM generate_series(%s::bigint, %s) g",
                            (rng.randint(1, 50), row, row + size - 1),
                        )
                        row += size
                self._stopped.wait(self._pause)

    def _stay_open(self, rng: random.Random, number: int) -> None:
        with closing(self._pair.primary.connect()) as conn:
            row = number * 1_000_000_000
            while not self._stopped.is_set():
                with conn.transaction(force_rollback=rng.random() < 0.3):
                    conn.execute("INSERT INTO public.t VALUES (%s, 'open')", (row,))
                    self._stopped.wait(rng.uniform(0.05, 0.8))
                    conn.execute("INSERT INTO public.t VALUES (%s, 'late')", (row + 1,))
                row += 2

    def _hold_back(self, rng: random.Random, _: int) -> None:
        with closing(self._pair.standby.connect()) as conn:
            while not self._stopped.wait(rng.uniform(0.1, 0.6)):
                conn.execute("SELECT pg_catalog.pg_wal_replay_pause()")
                self._stopped.wait(rng.uniform(0.0, 0.4))
                conn.execute("SELECT pg_catalog.pg_wal_replay_resume()")
            conn.execute("SELECT pg_catalog.pg_wal_replay_resume()")


def _until_lost(work: Callable[[random.Random, int], None], rng: random.Random, number: int) -> None:
    with suppress(psycopg.Error, Error):
        work(rng, number)


class _Passes:
    """Passes at short intervals, of this program or of a naive script."""

    def __init__(self, pair: Pair, *, naive: bool) -> None:
        self.state: PairState | None = None
        self.count = 0
        self._pair = pair
        self._stopped = threading.Event()
        work = self._naive if naive else self._synchronize
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _synchronize(self) -> None:
        options = PairOptions((_SLOT,), answer_seconds=5.0)
        with PairSynchronizer(self._pair.primary.target(), self._pair.standby.target(), options) as pairs:
            while not self._stopped.wait(random.uniform(0.02, 0.3)):
                try:
                    self.state = pairs.run()[0].state
                    self.count += 1
                except Error:
                    pairs.close()

    def _naive(self) -> None:
        self.state = PairState.ready
        with closing(self._pair.standby.connect()) as conn:
            while not self._stopped.wait(0.1):
                with suppress(psycopg.Error):
                    conn.execute("SET search_path = pg_catalog")
                    conn.execute(_NAIVE)  # type: ignore[call-overload]
                    self.count += 1


def promote_once(
    prepared: PreparedPair,
    rdsrepl: Program,
    seed: int,
    *,
    naive: bool = False,
    pause_seconds: float = 0.0,
    cut_off_seconds: float = 0.0,
    behind: bool = False,
) -> Outcome:
    """Run the load, kill primary and consumer at a random moment, promote, and read the follower.

    Args:
        prepared: the servers.
        rdsrepl: runs the consumers.
        seed: of everything that is random.
        naive: advance with a naive script instead.
        pause_seconds: the pause of a writer after each transaction.
        cut_off_seconds: for how long before the kill the standby receives nothing.
        behind: whether the first consumer delivers only what the standby has replayed.
    """
    rng = random.Random(seed)
    pair = prepared.copy()
    try:
        first, second = rdsrepl.home / "first.jsonl", rdsrepl.home / "second.jsonl"
        state = rdsrepl.home / f"state-{seed}{'-behind' if behind else ''}"
        with first.open("wb") as out:
            consumer = rdsrepl.start(
                *("-q", "slot", "tail", _SLOT, "--publication", "p", "--at-least-once"),
                *(("--behind", pair.standby.dsn()) if behind else ()),
                dsn=pair.primary.dsn(),
                stdout=out,
                stderr=subprocess.DEVNULL,
                env={"XDG_STATE_HOME": str(state)},
            )
        load, passes = _Load(pair, seed, pause_seconds), _Passes(pair, naive=naive)
        try:
            wait_until(lambda: first.stat().st_size > 0 and passes.count > 1, "the consumer receives changes")
            time.sleep(rng.uniform(0.2, 1.5))
            if rng.random() < 0.2:  # a consumer that stands still: its position stays, and the standby's goes on
                os.kill(consumer.pid, signal.SIGSTOP)
                time.sleep(rng.uniform(0.1, 0.4))
            if cut_off_seconds:
                pair.run(pair.standby, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_catalog.pg_reload_conf()")
                gone = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver)"
                wait_until(lambda: pair.run(pair.standby, gone)[0][0], "the standby receives no more")
                received = "SELECT pg_catalog.pg_last_wal_receive_lsn() - '0/0'"
                fork = int(pair.run(pair.standby, received)[0][0])
                time.sleep(cut_off_seconds)
                if not behind:
                    wait_until(lambda: any(lsn > fork for _, lsn in _rows(first)[-1:]), "the consumer is ahead")
            for kill in rng.sample([consumer.kill, pair.primary.kill], 2):
                kill()
            consumer.wait()
        finally:
            load.stop()
            passes.stop()
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_resume()")
        pair.standby.promote()
        confirmed = _confirmed(state)
        with second.open("wb") as out:
            again = rdsrepl.start(
                *("-q", "slot", "tail", _SLOT, "--publication", "p", "--until-now", "--at-least-once"),
                dsn=pair.standby.dsn(),
                stdout=out,
                env={"XDG_STATE_HOME": str(state / "second")},
            )
            assert again.wait(timeout=120) == 0
        rows = {int(row[0]) for row in pair.run(pair.standby, "SELECT id FROM public.t")}
    finally:
        prepared.remove(pair)
    written = _rows(first)
    counted = {row for row, lsn in written if lsn < confirmed}
    received = {row for row, _ in _rows(second)}
    everything = {row for row, _ in written}
    return Outcome(
        passes.state,
        len(rows),
        len(rows - counted - received),
        len(everything & received),
        len(everything - rows),
        passes.count,
    )


def _confirmed(state: Path) -> int:
    """Return what the consumer had confirmed, or was about to confirm: it stores that before."""
    files = list((state / "rdsrepl" / "streamed").glob("*.json"))
    return 0 if not files else int(Lsn.parse(json.loads(files[0].read_text().splitlines()[-1])["confirmed_lsn"]))


def _rows(path: Path) -> Sequence[tuple[int, int]]:
    """Return the rows of a stream, each with its commit's LSN; the last line may be incomplete."""
    rows: list[tuple[int, int]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        change: dict[str, Any] = json.loads(line)
        rows.append((int(change["after"]["id"]), int(Lsn.parse(change["commit_lsn"]))))
    return rows
