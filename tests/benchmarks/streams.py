"""The stream beside pg_recvlogical, unencrypted and over TLS: time, CPU and latency.

The programs take turns, and the least of several runs counts: another program on the machine makes a run slower, never
faster. The ratios are those of the issue: raw wal2json against pg_recvlogical at most 1.0 of its time and 0.55 of its
CPU, json from pgoutput at most 0.85 and 1.0. pg_recvlogical's own CPU depends on how often it is woken up: on a machine
that is busy it is woken up for more messages at once and needs up to a half less.

The CPU of the server's wal sender is the lower limit of the time. It is measured as well, because it depends on the
reader: while a slow reader keeps the connection's window closed, the kernel sends many messages in one segment, and a
fast one gets a segment for each.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT, Cost, connect, ended_sessions_cpu, own_server, run
from tests.workloads.tls import tls

ROUNDS = 4
TRANSACTIONS = 400_000
CHANGES = 3 * TRANSACTIONS
BASE = "pg_recvlogical, wal2json v2"
# The most that the issue allows, of pg_recvlogical's wall time and CPU.
WANTED = {"rdsrepl raw, wal2json v2": (1.0, 0.55), "rdsrepl json, pgoutput": (0.85, 1.0)}
MODES = {"unencrypted": "disable", "TLS": "require"}
LATENCY_CHANGES = 400


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
        conn.execute("CREATE TABLE flushed ()")
    return TRANSACTIONS * 5


def compare(server: PostgresServer) -> None:
    """Stream a backlog to a file with each program, without and with TLS."""
    messages = backlog(server)
    with closing(connect(server)) as conn:
        row = conn.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert row is not None
        end = str(row[0])
    with tls(server), tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory:
        for mode, sslmode in MODES.items():
            costs = _costs(server, f"sslmode={sslmode}", end, Path(directory))
            print(
                f"\nBacklog of {messages:,} messages to a file, {mode}, least of {ROUNDS} runs "
                "(wall s, user+sys s, MB, the server's user+sys s)"
            )
            base, _ = costs[BASE]
            for name, (cost, server_cpu) in costs.items():
                wall, cpu = cost.wall / base.wall, cost.cpu / base.cpu
                wanted = "" if name not in WANTED else " (wanted: {:.2f}, {:.2f})".format(*WANTED[name])
                print(
                    f"  {name:<28} {cost.wall:6.2f} {cost.cpu:6.2f} {cost.memory:6.1f} {server_cpu:6.2f}   "
                    f"wall × {wall:.2f}, CPU × {cpu:.2f} of pg_recvlogical{wanted}"
                )


def _costs(server: PostgresServer, sslmode: str, end: str, directory: Path) -> dict[str, tuple[Cost, float]]:
    """Return the least cost of each program, and the CPU seconds of the server's sessions meanwhile.

    The outputs of the same plugin are the same.
    """
    dsn = f"{server.dsn(user='bench', dbname='bench')} {sslmode}"
    recvlogical = [server.binaries.program("pg_recvlogical"), "-d", dsn, "--start", "--no-loop", "--endpos", end]
    ours = [SCRIPT, "-q", "--dsn", dsn, "slot", "tail", "--until-lsn", end]
    runs: dict[str, Callable[[str, Path], Cost]] = {
        BASE: lambda slot, out: run([*recvlogical, "--slot", slot, "-o", "format-version=2", "-f", str(out)]),
        "rdsrepl raw, wal2json v2": lambda slot, out: run([*ours, slot, "-f", "raw"], out),
        "rdsrepl json, pgoutput": lambda slot, out: run([*ours, slot, "-f", "json"], out),
        "rdsrepl wal2json, pgoutput": lambda slot, out: run([*ours, slot, "-f", "wal2json"], out),
        "rdsrepl debezium, pgoutput": lambda slot, out: run([*ours, slot, "-f", "debezium"], out),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    sessions: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        written: dict[str, int] = {}
        for index, (name, measure) in enumerate(runs.items()):
            source, slot = "g" if "pgoutput" in name else "w", f"s{number}_{index}"
            with closing(connect(server)) as conn:
                conn.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (source, slot))
            out = directory / slot
            before = ended_sessions_cpu(server)
            costs[name].append(measure(slot, out))
            with out.open("rb") as file:
                written[name] = sum(b'"table":' in line for line in file)
            out.unlink()
            with closing(connect(server)) as conn:
                conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            sessions[name].append(ended_sessions_cpu(server) - before)
        assert set(written.values()) == {CHANGES}, written
    fields = ("wall", "cpu", "memory")
    return {
        name: (Cost(*(min(getattr(cost, field) for cost in measured) for field in fields)), min(sessions[name]))
        for name, measured in costs.items()
    }


def latency(server: PostgresServer) -> None:
    """Measure the time from INSERT to the line on stdout, at about 100 changes/s."""
    with tls(server), closing(connect(server)) as conn:
        conn.execute("CREATE TABLE ping (id bigserial PRIMARY KEY)")
        conn.execute("CREATE PUBLICATION ping FOR TABLE ping")
        conn.execute("SET synchronous_commit = on")
        for slot, plugin in (("l", "pgoutput"), ("lw", "wal2json")):
            conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
        print(f"\nFrom before INSERT to the line on stdout, {LATENCY_CHANGES} changes (median, 95th percentile, ms)")
        for mode, sslmode in MODES.items():
            dsn = f"{server.dsn(user='bench', dbname='bench')} sslmode={sslmode}"
            commands = {
                "rdsrepl json, pgoutput": [SCRIPT, "-q", "--dsn", dsn, "slot", "tail", "l", "--publication", "ping"],
                BASE: [
                    *[server.binaries.program("pg_recvlogical"), "-d", dsn, "--slot", "lw", "--start", "-f", "-"],
                    *["-F", "0", "-o", "format-version=2", "-o", "include-transaction=false"],
                ],
            }
            for name, command in commands.items():
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                assert process.stdout is not None
                took: list[float] = []
                for _ in range(LATENCY_CHANGES + 20):
                    time.sleep(0.01)
                    started = time.monotonic()
                    row = conn.execute("INSERT INTO ping DEFAULT VALUES RETURNING id").fetchone()
                    assert row is not None
                    while f'"id":{row[0]}'.encode() not in (line := process.stdout.readline()):
                        # The other program's changes come first.
                        assert line or process.poll() is None
                        if f'"value":{row[0]}'.encode() in line:
                            break
                    took.append((time.monotonic() - started) * 1000)
                process.terminate()
                process.wait()
                process.stdout.close()
                took = sorted(took[20:])
                p95 = took[int(len(took) * 0.95)]
                print(f"  {name:<28} {mode:<12} {statistics.median(took):6.2f} {p95:6.2f}")


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


def report() -> None:
    """Run all on a server of their own."""
    with own_server() as server:
        print(f"\nPostgreSQL {'.'.join(map(str, server.binaries.version))}, {os.cpu_count()} cores")
        compare(server)
        million(server)
        latency(server)
