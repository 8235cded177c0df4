"""Snapshots into a running stream with a replica: rows that come from it, and its promotion."""

from __future__ import annotations

import gzip
import json
import os
import signal as signals
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rdsrepl.lsn import Lsn
from rdsrepl.postgres import standby_lag
from rdsrepl.snapshot.requests import PREFIX, Request, encode
from tests.fixtures.failover import failover_pair
from tests.fixtures.postgres import Database, Servers
from tests.fixtures.program import Program, exact
from tests.fixtures.waiting import wait_until
from tests.snapshot.test_incremental import Tail, folded, signal
from tests.workloads.tables import SCHEMA, insert_every_type


def test_rows_of_a_replica_that_lags_and_is_promoted(servers: Servers, rdsrepl: Program, tmp_path: Path) -> None:
    config = Path(rdsrepl.env["XDG_CONFIG_HOME"]) / "rdsrepl" / "config.yaml"
    with failover_pair(servers, rdsrepl, tmp_path, "id int PRIMARY KEY, v text, n int") as pair:
        config.parent.mkdir(parents=True, exist_ok=True)
        dsns = {"replica": pair.standby.dsn(dbname="postgres"), "itself": pair.primary.dsn(dbname="postgres")}
        config.write_text("targets:\n" + "".join(f'  {name}: {{dsn: "{dsn}"}}\n' for name, dsn in dsns.items()))
        primary, standby = Database(pair.primary, "postgres"), Database(pair.standby, "postgres")
        primary.run("INSERT INTO t SELECT i, repeat('x', 20), i FROM generate_series(1, 1000) i")
        tail = Tail(rdsrepl, primary, tmp_path, slot="fo", dsn=pair.dsn)
        with tail.running():
            standby.run("SELECT pg_wal_replay_pause()")
            with unflushed_wal(primary):
                first = encode(Request("first", "fo", ("public.t",), read_from="replica"))
                ((unflushed,),) = primary.run(
                    f"BEGIN; SELECT pg_logical_emit_message(true, '{PREFIX}', '{first}'); COMMIT;"
                    "SET synchronous_commit = off; UPDATE t SET n = n WHERE id = 1",
                    "SELECT pg_current_wal_insert_lsn()",
                )
                text = wait_until(lambda: tail.snapshots().get("first", {}).get("waits_for"), "the state says why")
            assert Lsn.parse(text.removeprefix("the replica replica to replay ")) < unflushed
            standby.run("SELECT pg_wal_replay_resume()")
            tail.wait_for("first")
            _require_every_type(primary, tail)
            signal(primary, Request("itself", "fo", ("public.t",), read_from="itself"))
            assert "is not a standby" in tail.wait_for("itself", "failed")["reason"]
            signal(
                primary, Request("far", "fo", ("public.t",), chunk_rows=50, rows_per_second=500, read_from="replica")
            )
            wait_until(lambda: len(_copied(tail, "far")) >= 100, "a part is written")
            with closing(primary.connect()) as conn:
                # The replica knows a later transaction, and not that this one has not ended.
                conn.execute("BEGIN")
                conn.execute("UPDATE public.t SET v = 'open' WHERE id BETWEEN 900 AND 950")
                primary.run("INSERT INTO t VALUES (3000, 'later', 1)")
                there = "SELECT count(*) FROM public.t WHERE id = 3000"
                wait_until(lambda: standby.value(there), "the replica has it")
                standby.run("SELECT pg_wal_replay_pause()")
                conn.execute("COMMIT")
            primary.run(
                "UPDATE t SET n = -n WHERE id < 900",
                "DELETE FROM t WHERE id % 7 = 0",
                "INSERT INTO t VALUES (2000, 'y', 1)",
            )
            with closing(primary.connect()) as conn:
                (behind,) = wait_until(lambda: standby_lag.ls(conn), "the server says how late the replica is")
            assert behind.name == "standby" and behind.seconds > 0
            state = tail.wait_for("far")
            assert state["tables"][0]["conflicts"] > 0, "the replica had not replayed the changes"
            standby.run("SELECT pg_wal_replay_resume()")
            assert _rows(tail) == primary.run("SELECT id, v, n FROM t ORDER BY id")
            _require_rows_behind_a_standby(
                Tail(rdsrepl, primary, tmp_path / "behind", slot="behind", dsn=pair.dsn), standby
            )
            pair.wait_until_synced("INSERT INTO public.t SELECT max(id) + 1, 'z', 0 FROM public.t")
            signal(primary, Request("over", "fo", ("public.t",), chunk_rows=50, rows_per_second=500))
            wait_until(lambda: len(_copied(tail, "over")) >= 100, "a part is written")
            pair.primary.stop("immediate")
            standby.run("SELECT pg_promote()", "UPDATE t SET v = 'promoted' WHERE id % 2 = 0")
            tail.wait_for("over")
            wait_until(lambda: _rows(tail) == standby.run("SELECT id, v, n FROM t ORDER BY id"), "all is there")
        found = tail.events()
        assert {event["timeline"] for event in found if event["op"] == "r"} == {1, 2}
        assert len({(event["timeline"], event["commit_lsn"], event["seq"]) for event in found}) == len(found)


def _require_every_type(primary: Database, tail: Tail) -> None:
    """Rows of a replica are what the server's to_json prints."""
    with closing(primary.connect()) as conn:
        for statement in (*SCHEMA, "ALTER PUBLICATION p ADD TABLE every_type"):
            conn.execute(statement.encode())
        insert_every_type(conn)
        wait_until(lambda: b"every_type" in tail.out.read_bytes(), "the stream has them")
        signal(primary, Request("types", "fo", ("public.every_type",), read_from="replica"))
        tail.wait_for("types")
        conn.execute("SET TimeZone = 'UTC'")
        conn.execute("SET IntervalStyle = 'iso_8601'")
        expected = conn.execute("SELECT row_to_json(e)::text FROM every_type e ORDER BY id").fetchall()
    lines = [line for line in tail.out.read_text().splitlines() if '"table":"every_type"' in line]
    found = [exact(line)["after"] for line in lines if '"op":"r"' in line]
    assert list(map(json.dumps, found)) == [json.dumps(exact(text)) for (text,) in expected]


def _require_rows_behind_a_standby(tail: Tail, standby: Database) -> None:
    """Into files that are closed and compressed; nothing is written that the standby has not replayed."""
    tail.out.parent.mkdir()
    files = ("--to", f"file:{tail.out.parent / 'rows.jsonl'}", "--rotate-size", "100kB", "--rotate-compress", "gzip")
    with tail.running("--behind", "replica", *files):
        standby.run("SELECT pg_wal_replay_pause()")
        signal(tail.source, Request("gated", "behind", ("public.t",), chunk_rows=100))
        wait_until(lambda: tail.status("gated") == "running", "the request is read")
        tail.source.run("UPDATE t SET v = 'gated' WHERE id % 3 = 0")
        standby.run("SELECT pg_wal_replay_resume()")
        tail.wait_for("gated")
    closed = sorted(tail.out.parent.glob("rows.*.jsonl.gz"))
    lines = b"".join(gzip.decompress(path.read_bytes()) for path in closed)
    last = tail.out.parent / "rows.jsonl"
    found = [json.loads(line) for line in (lines + last.read_bytes()).splitlines()]
    expected = tail.source.run("SELECT id, v, n FROM t ORDER BY id")
    assert sorted((row["id"], row["v"], row["n"]) for row in folded(found, "t").values()) == expected
    assert len(closed) >= 2 and len({(one["commit_lsn"], one["seq"]) for one in found}) == len(found)


@contextmanager
def unflushed_wal(primary: Database) -> Iterator[None]:
    """Stop the process that flushes what transactions leave to it (``synchronous_commit = off``)."""
    pid = primary.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    os.kill(pid, signals.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signals.SIGCONT)


def _rows(tail: Tail) -> list[tuple[int, str, int]]:
    return sorted((row["id"], row["v"], row["n"]) for row in folded(tail.events(), "t").values())


def _copied(tail: Tail, snapshot_id: str) -> list[int]:
    return [
        event["key"]["id"] for event in tail.events() if event["op"] == "r" and event["snapshot"]["id"] == snapshot_id
    ]
