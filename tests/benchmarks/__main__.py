"""Run all benchmarks on their own PostgreSQL 15 and print figures and ratios; with names, only those.

``python -m tests.benchmarks slot_pairs repeats`` runs the functions ``report`` of these modules.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from importlib import import_module

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks import (
    aws_cli,
    corruptions,
    file_kills,
    flips,
    fuzz,
    identity,
    kinesis,
    kinesis_faults,
    kinesis_shard,
    pages,
    repeats,
    replay_oracle,
    sandbox_kills,
    scale,
    slot_pairs,
    snapshot,
    snapshot_kills,
    snapshot_rules,
    snapshot_stream,
    splits,
    start_up,
    streams,
    switchovers,
    walkthrough,
)
from tests.benchmarks.measure import SCRIPT, connect, own_server, run


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


def main() -> None:
    """Run all benchmarks, or those that are named."""
    if names := sys.argv[1:]:
        for name in names:
            import_module(f"tests.benchmarks.{name}").report()
        return
    pages.report()
    aws_cli.report()
    walkthrough.report()
    start_up.report()
    with own_server() as server:
        print(f"\nPostgreSQL {'.'.join(map(str, server.binaries.version))}, {os.cpu_count()} cores")
        streams.compare(server)
        million(server)
        streams.latency(server)
        kinesis.compare(server)
        kinesis_shard.report(server)
        kinesis_faults.report(server)
    repeats.report()
    file_kills.report()
    corruptions.report()
    snapshot.report()
    snapshot_rules.report()
    snapshot_kills.report()
    snapshot_stream.report()
    replay_oracle.report()
    identity.report()
    fuzz.report()
    sandbox_kills.report()
    splits.report()
    switchovers.report()
    slot_pairs.report()
    scale.report()
    flips.report()


if __name__ == "__main__":
    main()
