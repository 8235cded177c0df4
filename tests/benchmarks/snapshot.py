"""Copy a million rows into a file as ``json`` (``slot tail --snapshot``), beside ``psql COPY`` in one run."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

from tests.benchmarks.measure import SCRIPT, connect, own_server, run

ROWS = 1_000_000
ROUNDS = 3


def report() -> None:
    """Print the time and the CPU of both, and the ratio."""
    with own_server() as server, tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory:
        with closing(connect(server)) as conn:
            conn.execute(
                "CREATE TABLE items (id bigint PRIMARY KEY, name text, amount numeric(12,2), at timestamptz, n int,"
                " flag bool, note text)"
            )
            conn.execute(
                "INSERT INTO items SELECT i, 'name of ' || i, i * 1.01, '2026-01-01'::timestamptz + i * interval '1 s',"
                f" i, i % 2 = 0, md5(i::text) FROM generate_series(1, {ROWS}) i"
            )
            conn.execute("CREATE PUBLICATION items FOR TABLE items")
            conn.execute("VACUUM ANALYZE items")
        dsn, out = server.dsn(user="bench", dbname="bench"), Path(directory) / "out"
        ours, theirs = [], []
        for number in range(ROUNDS):
            copy = [server.binaries.program("psql"), "-X", "-d", dsn, "-c", "COPY items TO STDOUT"]
            theirs.append(run(copy, out))
            out.unlink()
            command = [SCRIPT, "-q", "--dsn", dsn, "slot", "tail", f"s{number}", "--create", "pgoutput", "--snapshot"]
            ours.append(run([*command, "--publication", "items", "-f", "json", "--until-now"], out))
            with out.open("rb") as file:
                assert sum(1 for _ in file) == ROWS
            out.unlink()
    psql, snapshot = (min(costs, key=lambda cost: cost.wall) for costs in (theirs, ours))
    print(f"\nSnapshot of {ROWS:,} rows into a file, least of {ROUNDS}")
    print(f"  psql COPY                    {psql.wall:6.2f} s   {psql.cpu:6.2f} s of CPU")
    print(
        f"  slot tail --snapshot, json   {snapshot.wall:6.2f} s   {snapshot.cpu:6.2f} s of CPU   "
        f"{snapshot.wall / psql.wall:.1f} × the time, {ROWS / snapshot.wall:,.0f} rows/s, {snapshot.memory:.0f} MB"
    )
