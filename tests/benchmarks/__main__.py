"""Run all benchmarks on their own PostgreSQL 15 and print figures and ratios; with names, only those.

``python -m tests.benchmarks slot_pairs repeats`` runs the functions ``report`` of these modules.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks import (
    corruptions,
    file_kills,
    fuzz,
    identity,
    kinesis,
    kinesis_faults,
    kinesis_shard,
    pages,
    repeats,
    replay_oracle,
    sandbox_kills,
    slot_pairs,
)
from tests.benchmarks.measure import SCRIPT, Cost, connect, own_server, run

ROUNDS = 3
TRANSACTIONS = 400_000


def backlog(server: PostgresServer) -> int:
    """Create a backlog like pgbench's: small transactions of three changes; return its number of messages."""
    with closing(connect(server)) as conn:
        conn.execute("CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))")
        conn.execute("CREATE TABLE tellers (tid int PRIMARY KEY, bid int, tbalance int)")
        conn.execute(
            "CREATE TABLE history (hid bigserial PRIMARY KEY, tid int, aid int, delta numeric(10,2), at timestamptz)"
        )
        conn.execute("INSERT INTO accounts SELECT g, g % 10, 0, '' FROM generate_series(1, 10000) g")
        conn.execute("INSERT INTO tellers SELECT g, g % 10, 0 FROM generate_series(1, 100) g")
        conn.execute("CREATE PUBLICATION p FOR ALL TABLES")
        for slot, plugin in (("w", "wal2json"), ("g", "pgoutput")):
            conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
        conn.execute(
            f"""DO $$ BEGIN FOR i IN 1..{TRANSACTIONS} LOOP
                UPDATE accounts SET abalance = abalance + i WHERE aid = 1 + i % 10000;
                UPDATE tellers SET tbalance = tbalance + i WHERE tid = 1 + i % 100;
                INSERT INTO history (tid, aid, delta, at) VALUES (i % 100, i % 10000, i / 7.0, clock_timestamp());
                COMMIT; END LOOP; END $$"""
        )
        # A synchronous commit: everything before it is flushed, and so precedes the end that is read next.
        conn.execute("SET synchronous_commit = on")
        conn.execute("SELECT pg_current_xact_id()")
    return TRANSACTIONS * 5


def streams(server: PostgresServer, directory: Path) -> None:
    """Stream a backlog to a file: pg_recvlogical, raw, and pgoutput as json and wal2json."""
    messages = backlog(server)
    dsn = server.dsn(user="bench", dbname="bench")
    with closing(connect(server)) as conn:
        row = conn.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert row is not None
        end = str(row[0])
    ours = [SCRIPT, "-q", "--dsn", dsn, "slot", "tail"]
    runs: dict[str, Callable[[str, Path], Cost]] = {
        "pg_recvlogical, wal2json v2": lambda slot, out: run(
            [server.binaries.program("pg_recvlogical"), "-d", dsn, "--slot", slot, "--start", "--no-loop"]  # noqa: RUF005
            + ["-o", "format-version=2", "--endpos", end, "-f", str(out)]
        ),
        "rdsrepl raw, wal2json v2": lambda slot, out: run([*ours, slot, "-f", "raw", "--until-lsn", end], out),
        "rdsrepl json, pgoutput": lambda slot, out: run([*ours, slot, "-f", "json", "--until-lsn", end], out),
        "rdsrepl wal2json, pgoutput": lambda slot, out: run([*ours, slot, "-f", "wal2json", "--until-lsn", end], out),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    sizes: dict[str, int] = {}
    for number in range(ROUNDS):
        for index, (name, measure) in enumerate(runs.items()):
            source, slot = "g" if "pgoutput" in name else "w", f"s{number}_{index}"
            with closing(connect(server)) as conn:
                conn.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (source, slot))
            out = directory / slot
            costs[name].append(measure(slot, out))
            sizes[name] = out.stat().st_size
            out.unlink()
            with closing(connect(server)) as conn:
                conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    print(f"\nBacklog of {messages:,} messages to a file, median of {ROUNDS} (wall s, user+sys s, peak MB, bytes)")
    base = _median(costs["pg_recvlogical, wal2json v2"])
    for name, measured in costs.items():
        cost = _median(measured)
        print(
            f"  {name:<28} {cost.wall:6.2f} {cost.cpu:6.2f} {cost.memory:6.1f} {sizes[name]:>12,}"
            f"   wall × {cost.wall / base.wall:.2f}, CPU × {cost.cpu / base.cpu:.2f} of pg_recvlogical"
        )


def million(server: PostgresServer) -> None:
    """Measure the memory for a transaction of 1,000,000 rows."""
    with closing(connect(server)) as conn:
        conn.execute("CREATE TABLE big (id int PRIMARY KEY, v text)")
        conn.execute("SELECT pg_create_logical_replication_slot('m', 'pgoutput')")
        conn.execute("INSERT INTO big SELECT g, 'row ' || g FROM generate_series(1, 1000000) g")
    cost = run(
        [
            SCRIPT,
            "-q",
            "--dsn",
            server.dsn(user="bench", dbname="bench"),
            "slot",
            "tail",
            "m",
            "-f",
            "json",
            "--until-now",
        ]
    )
    print(f"\nOne transaction of 1,000,000 rows: {cost.wall:.2f} s, peak {cost.memory:.1f} MB")


def latency(server: PostgresServer) -> None:
    """Measure the time from COMMIT to the line on stdout, on an idle server."""
    dsn = server.dsn(user="bench", dbname="bench")
    with closing(connect(server)) as conn:
        conn.execute("CREATE TABLE ping (id int PRIMARY KEY)")
        conn.execute("SET synchronous_commit = on")
        for slot, plugin in (("l", "pgoutput"), ("lw", "wal2json")):
            conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
        commands = {
            "rdsrepl json, pgoutput": [SCRIPT, "-q", "--dsn", dsn, "slot", "tail", "l", "-f", "json"],
            "pg_recvlogical, wal2json v2": [
                *[server.binaries.program("pg_recvlogical"), "-d", dsn, "--slot", "lw", "--start", "-f", "-"],
                *["-o", "format-version=2", "-o", "include-transaction=false"],
            ],
        }
        print("\nFrom before COMMIT to the line on stdout, idle server, 200 changes (median, 95th percentile, ms)")
        for number, (name, command) in enumerate(commands.items()):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert process.stdout is not None
            took: list[float] = []
            for change in range(220):
                time.sleep(0.02)
                started = time.monotonic()
                conn.execute("INSERT INTO ping VALUES (%s)", (number * 1000 + change,))
                process.stdout.readline()
                took.append((time.monotonic() - started) * 1000)
            process.terminate()
            process.wait()
            process.stdout.close()
            took = sorted(took[20:])
            print(f"  {name:<28} {statistics.median(took):6.2f} {took[int(len(took) * 0.95)]:6.2f}")


def start_up() -> None:
    """Measure the start-up time of the program."""
    commands = {"rdsrepl --version": [SCRIPT, "--version"], "rdsrepl slot --help": [SCRIPT, "slot", "--help"]}
    if aws := shutil.which("aws"):
        commands["aws --version"] = [aws, "--version"]
    walls = {name: [run(command).wall for _ in range(11)][1:] for name, command in commands.items()}
    medians = {name: statistics.median(values) for name, values in walls.items()}
    print("\nStart-up, median of 10 (s)")
    for name, value in medians.items():
        ratio = f"   aws --version takes {medians['aws --version'] / value:.1f} ×" if "aws --version" in medians else ""
        print(f"  {name:<28} {value:6.3f}{ratio if 'aws' not in name else ''}")


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(getattr(cost, field) for cost in costs) for field in ("wall", "cpu", "memory")))


def main() -> None:
    """Run all benchmarks, or those that are named."""
    if names := sys.argv[1:]:
        for name in names:
            import_module(f"tests.benchmarks.{name}").report()
        return
    pages.report()
    start_up()
    with own_server() as server, tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory:
        print(f"\nPostgreSQL {'.'.join(map(str, server.binaries.version))}, {os.cpu_count()} cores")
        streams(server, Path(directory))
        million(server)
        latency(server)
        kinesis.compare(server)
        kinesis_shard.report(server)
        kinesis_faults.report(server)
    repeats.report()
    file_kills.report()
    corruptions.report()
    replay_oracle.report()
    identity.report()
    fuzz.report()
    sandbox_kills.report()
    slot_pairs.report()


if __name__ == "__main__":
    main()
