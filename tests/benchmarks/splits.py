"""Splits of a primary and its standby: ``failover diff`` must name exactly the transactions that were lost.

The standby is cut off in the middle of three writers, the primary goes on for a while, and the standby is promoted and
written to. What the primary committed after the fork is known from outside: the numbers of the transactions whose rows
the new primary does not have.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT
from tests.fixtures.background import running
from tests.fixtures.postgres import Database, find_binaries, plugin_settings
from tests.fixtures.splits import Split

ROUNDS: Final = 20
_SEED: Final = 20261122


def write(database: Database, number: int, over: threading.Event) -> None:
    """Commit transactions of some rows; each row has the number of its transaction."""
    rng = random.Random(number)
    with database.connect() as conn:
        while not over.is_set():
            rows = rng.randint(1, 20)
            conn.execute(f"INSERT INTO t (xid) SELECT pg_current_xact_id()::text FROM generate_series(1, {rows})")
            if rng.random() < 0.2:
                conn.execute("BEGIN; INSERT INTO t (xid) VALUES ('rolled back'); ROLLBACK")
            time.sleep(rng.uniform(0, 0.01))


def xids(database: Database) -> set[str]:
    """Return the transactions whose rows a server has."""
    return {xid for (xid,) in database.run("SELECT DISTINCT xid FROM t")}


def diff(parted: Split, slot: str) -> dict[str, Any]:
    """Return what the command names."""
    words = ["failover", "diff", "--old", parted.before.dsn, "--new", parted.after.dsn, "--slot", slot, "-o", "json"]
    done = subprocess.run([SCRIPT, "-q", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one(old: PostgresServer, directory: Path, number: int, rng: random.Random) -> int:
    """Provoke a split and compare; return how many transactions were lost."""
    new = old.clone(directory / str(number), slot=f"standby{number}")
    new.start()
    try:
        parted = Split(old, new)
        with running(*(partial(write, parted.before, number * 10 + n) for n in range(3))):
            time.sleep(rng.uniform(0.1, 0.4))
            parted.cut_off()
            time.sleep(rng.uniform(0.05, 0.5))
        new.promote()
        parted.after.run("INSERT INTO t (xid) SELECT 'new' FROM generate_series(1, 100)")
        lost = xids(parted.before) - xids(parted.after)
        for slot in ("published", "all"):
            found = diff(parted, slot)
            named = {str(one["xid"]) for one in found["transactions"]}
            assert named == lost, f"{slot}: missing {lost - named}, too many {named - lost}"
            assert found["complete"]
        for slot in ("published", "all"):
            parted.before.run(f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")
        return len(lost)
    finally:
        new.stop("immediate")
        new.remove()


def report(rounds: int = ROUNDS) -> None:
    """Provoke splits, and print how many transactions were lost and named."""
    programs = find_binaries(15)
    if programs is None:
        raise SystemExit("PostgreSQL 15 with wal2json is needed: apt-get install postgresql-15 postgresql-15-wal2json")
    rng = random.Random(_SEED)
    with tempfile.TemporaryDirectory(prefix="splits-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        settings = {"log_min_messages": "warning", "autovacuum": "off", "max_replication_slots": "50"}
        old = PostgresServer(directory / "old", programs, settings={**settings, **plugin_settings(programs)})
        old.initdb()
        old.start()
        try:
            database = Database(old, "postgres")
            database.run("CREATE TABLE t (id bigserial PRIMARY KEY, xid text)", "CREATE PUBLICATION p FOR TABLE t")
            for slot, plugin in (("published", "pgoutput"), ("all", "wal2json")):
                database.run(f"SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')")
            lost = [one(old, directory, number, rng) for number in range(rounds)]
        finally:
            old.stop("immediate")
            old.remove()
    print(f"\nSplits: {rounds}, with {sum(lost):,} lost transactions ({min(lost)} to {max(lost)}); all named, no other")
