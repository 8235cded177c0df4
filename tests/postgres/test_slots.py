"""Slots: the columns of the catalog, safe creation, and guards against drops and advances by mistake."""

from __future__ import annotations

import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rdsrepl import apply, errors
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import slot_plans, slots, verification, wal
from rdsrepl.postgres.server_identity import ServerIdentity
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.background import running
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database, Servers
    from tests.fixtures.program import Program

KEYS = {
    "slot_name", "plugin", "slot_type", "datoid", "database", "temporary", "active", "active_pid", "xmin",
    "catalog_xmin", "restart_lsn", "confirmed_flush_lsn", "wal_status", "safe_wal_size", "two_phase", "two_phase_at",
    "inactive_since", "conflicting", "invalidation_reason", "failover", "synced", "retained_bytes", "lag_bytes",
    "xmin_age", "catalog_xmin_age", "total_txns", "total_bytes", "walsender",
    "spill_txns", "spill_count", "spill_bytes", "stream_txns", "stream_count", "stream_bytes", "stats_reset",
    "protected",
}  # fmt: skip


def mine(rdsrepl: Program, database: Database) -> list[dict[str, Any]]:
    result = rdsrepl("slot", "list", "-o", "json", dsn=database.dsn)
    assert result.code == 0, result.err
    return [slot for slot in result.json if slot["database"] == database.name]


@pytest.fixture
def name(database: Database) -> str:
    """A slot name for this test only, as slots belong to the whole server."""
    return f"s_{database.name}"


def test_a_slot_of_another_database_is_reached_with_dbname(database: Database, name: str, rdsrepl: Program) -> None:
    """It is shown and dropped from any database; the hints of commands that read it name its database."""
    database.run(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')", "CREATE PUBLICATION p")
    elsewhere = database.server.dsn(dbname="postgres")
    shown = rdsrepl("slot", "show", name, dsn=elsewhere)
    assert f"slot peek {name} --dbname {database.name}" in shown.err
    assert "another database" not in rdsrepl("slot", "show", name, dsn=database.dsn).err
    start = f"connect to its database: {shlex.join(['rdsrepl', '--dsn', elsewhere, '--dbname', database.name])}"
    for words in (
        ["slot", "peek", name, "--publication", "p"],
        ["slot", "tail", name, "--publication", "p", "--until-now"],
        ["slot", "advance", name, "--to-current", "--yes"],
    ):
        refused = rdsrepl(*words, "-o", "json", dsn=elsewhere)
        assert (refused.code, refused.error["error"]) == (4, "refused")
        assert refused.error["hint"] == f"{start} {shlex.join(words)} -o json"
        pasted = shlex.split(refused.error["hint"].removeprefix("connect to its database: rdsrepl "))
        assert rdsrepl(*pasted).code == 0
    assert rdsrepl("slot", "lag", name, dsn=elsewhere).code == 0
    assert rdsrepl("slot", "drop", name, "--yes", dsn=elsewhere).code == 0


def test_create_list_show_drop(database: Database, name: str, rdsrepl: Program) -> None:
    created = rdsrepl("slot", "create", name, "--yes", "-o", "json", dsn=database.dsn)
    assert created.code == 0, created.err
    assert created.json["status"] == "applied"
    assert created.json["steps"][0]["returned"]["slot_name"] == name
    (slot,) = mine(rdsrepl, database)
    assert set(slot) == KEYS
    assert (slot["slot_name"], slot["plugin"], slot["active"], slot["walsender"]) == (name, "pgoutput", False, None)
    assert (slot["inactive_since"] is not None) == (database.server.version >= 17)
    database.run("CREATE TABLE t AS SELECT generate_series(1, 10000)")
    expected = database.run(
        "SELECT pg_current_wal_lsn() - restart_lsn, pg_current_wal_lsn() - confirmed_flush_lsn "
        f"FROM pg_replication_slots WHERE slot_name = '{name}'"
    )[0]
    shown = rdsrepl("slot", "show", name, "-o", "json", dsn=database.dsn).json
    assert shown["retained_bytes"] >= expected[0] > 100_000
    assert shown["lag_bytes"] >= expected[1] > 100_000
    assert shown["catalog_xmin_age"] >= 0
    table = rdsrepl("slot", "show", name, dsn=database.dsn)
    assert "holder" in table.out
    assert name in rdsrepl("slot", "list", "-o", "yaml", dsn=database.dsn).out
    dropped = rdsrepl("slot", "drop", name, "--yes", dsn=database.dsn)
    assert dropped.code == 0
    assert "is not consumed" in dropped.err
    assert mine(rdsrepl, database) == []


def test_plan_dry_run_check_and_nobody_to_ask(database: Database, name: str, rdsrepl: Program) -> None:
    dry = rdsrepl("slot", "create", name, "--dry-run", dsn=database.dsn)
    assert dry.code == 0
    assert f"pg_create_logical_replication_slot('{name}', 'pgoutput')" in dry.out
    assert rdsrepl("slot", "create", name, "--check", dsn=database.dsn).code == 7
    refused = rdsrepl("slot", "create", name, "-o", "json", dsn=database.dsn)
    assert (refused.code, refused.error["error"]) == (4, "not_confirmed")
    assert "--yes" in refused.error["hint"]
    planned = rdsrepl("slot", "create", name, "--dry-run", "-o", "json", dsn=database.dsn).json
    assert planned["status"] == "planned"
    assert mine(rdsrepl, database) == []


def test_bad_creations_touch_nothing(database: Database, name: str, rdsrepl: Program) -> None:
    def fails(code: int, error: str, *words: str, **options: Any) -> None:
        result = rdsrepl("slot", "create", *words, "--yes", "-o", "json", dsn=database.dsn, **options)
        assert (result.code, result.error["error"]) == (code, error), result.err
        assert result.error["hint"]

    for bad in ("Upper", "has-dash", "", "x" * 64, "rds_mine"):
        fails(2, "bad_value", bad)
    assert rdsrepl("slot", "create", name, "--yes", "--two-phase", dsn=database.dsn).code == 0
    fails(4, "already_exists", name)
    if database.server.version < 17:
        fails(4, "unsupported", name + "f", "--failover")
    else:
        assert rdsrepl("slot", "create", name + "f", "--failover", "--yes", dsn=database.dsn).code == 0
        assert [slot["failover"] for slot in mine(rdsrepl, database)] == [False, True]
    if database.server.version != 15:  # the wheel has no wal2json
        fails(4, "plugin_not_allowed", name + "w", "--plugin", "wal2json")
    assert rdsrepl("slot", "create", name, "--plugin", "mine", dsn=database.dsn).code == 2
    assert mine(rdsrepl, database)[0]["two_phase"] is True


def test_the_replication_protocol_serves_where_the_function_does_not(
    database: Database, name: str, rdsrepl: Program
) -> None:
    role = f"r_{database.name}"
    function = next(
        row[0]
        for row in database.run(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'pg_create_logical_replication_slot'"
        )
    )
    database.run(
        f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'", f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"
    )
    try:
        dsn = database.server.dsn(user=role, dbname=database.name)
        result = rdsrepl("slot", "create", name, "--yes", "-o", "json", dsn=dsn, env={"PGPASSWORD": "x"})
        assert result.code == 0, result.err
        assert result.json["steps"][0]["protocol"] == "replication"
        assert [slot["slot_name"] for slot in mine(rdsrepl, database)] == [name]
    finally:
        database.run(f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC", f"DROP ROLE {role}")


def test_a_running_transaction_is_named_and_no_orphan_stays(database: Database, name: str, rdsrepl: Program) -> None:
    database.run("CREATE TABLE t (id integer)")
    with closing(database.connect()) as blocker:
        pid = blocker.info.backend_pid
        blocker.execute("BEGIN")
        blocker.execute("INSERT INTO t VALUES (1)")
        words = ("slot", "create", name, "--yes", "--timeout", "2s", "-o", "json")
        result = rdsrepl(*words, dsn=database.dsn)
        assert (result.code, result.error["error"]) == (1, "timed_out")
        assert f"PID {pid}" in result.error["message"]
        killed = rdsrepl.start("slot", "create", name + "k", "--yes", dsn=database.dsn, stderr=subprocess.DEVNULL)
        waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%create_logical%' AND wait_event_type = 'Lock'"
        of_killed = wait_until(lambda: database.run(waiting), "it waits")
        killed.kill()
        killed.wait()
        stopped = rdsrepl.start("slot", "create", name + "i", "--yes", dsn=database.dsn, stderr=subprocess.DEVNULL)
        wait_until(lambda: set(database.run(waiting)) - set(of_killed), "it waits, too")
        stopped.send_signal(signal.SIGINT)
        assert stopped.wait(timeout=120) == 130
        # The backend must detect that its client was killed, before the transaction ends.
        wait_until(lambda: not database.run(waiting), "the server cancels the creation")
        blocker.execute("COMMIT")
    time.sleep(0.5)
    assert mine(rdsrepl, database) == []


def test_a_prepared_transaction_is_named(db15: Database, rdsrepl: Program) -> None:
    gid = f"stuck_{db15.name}"
    db15.run("CREATE TABLE t (id integer)")
    with closing(db15.connect()) as conn:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO t VALUES (1)")
        conn.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        result = rdsrepl("slot", "create", f"s_{db15.name}", "--yes", "--timeout", "2s", dsn=db15.dsn)
        assert result.code == 1
        assert gid in result.err
    finally:
        db15.run(f"ROLLBACK PREPARED '{gid}'")


def test_an_active_slot_is_not_dropped(database: Database, name: str, rdsrepl: Program) -> None:
    database.run(
        "CREATE PUBLICATION p FOR ALL TABLES", f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
    )
    tail = rdsrepl.start("-q", "slot", "tail", name, dsn=database.dsn, stdout=subprocess.DEVNULL)
    try:
        streaming = "SELECT FROM pg_stat_replication WHERE state = 'streaming' AND pid = (SELECT active_pid FROM "
        streaming += f"pg_replication_slots WHERE slot_name = '{name}')"
        wait_until(lambda: database.run(streaming), "it streams")
        (slot,) = mine(rdsrepl, database)
        sender = slot["walsender"]
        assert (sender["pid"], sender["application"], sender["state"]) == (slot["active_pid"], "rdsrepl", "streaming")
        assert sender["user"] == database.server.superuser
        for verb in (("drop", name), ("advance", name, "--to-current")):
            refused = rdsrepl("slot", *verb, "--yes", "-o", "json", dsn=database.dsn)
            assert (refused.code, refused.error["error"]) == (4, "slot_active")
            assert f"PID {slot['active_pid']}" in refused.error["message"]
        assert f"PID {slot['active_pid']}" in rdsrepl("slot", "list", dsn=database.dsn).out
    finally:
        tail.send_signal(signal.SIGINT)
        tail.wait(timeout=120)


def test_a_stale_plan_drops_nothing(db15: Database) -> None:
    name = f"s_{db15.name}"
    db15.run(f"SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')")
    with closing(db15.connect()) as conn:
        plan = slot_plans.drop(slots.get(conn, name), server=wal.get(conn))
    db15.run("CREATE TABLE t ()", f"SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())")
    with pytest.raises(errors.StalePlan):
        apply.run(plan, db15.target, done=lambda outcome: None, waiting=lambda step, seconds, blockers: None)
    assert db15.run(f"SELECT FROM pg_replication_slots WHERE slot_name = '{name}'")


def test_advance(database: Database, name: str, rdsrepl: Program) -> None:
    database.run(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')", "CREATE TABLE t AS SELECT 1 AS x")

    def advance(*words: str) -> Any:
        return rdsrepl("slot", "advance", name, *words, "-o", "json", dsn=database.dsn)

    lsn = str(database.value("SELECT pg_current_wal_lsn()"))
    assert advance(lsn, "--yes").json["steps"][0]["returned"]["end_lsn"] == lsn
    assert advance(lsn).json["status"] == "unchanged"
    database.run("INSERT INTO t VALUES (2)")
    moved = rdsrepl("slot", "advance", name, "--to-current", "--yes", dsn=database.dsn)
    assert moved.code == 0
    assert "are skipped" in moved.err
    for code, words in ((2, ("0/1",)), (2, ("FFFFFFFF/0",)), (2, ("garbage",)), (2, ()), (2, (lsn, "--to-current"))):
        assert advance(*words, "--yes").code == code
    other = rdsrepl("slot", "advance", name, "--to-current", "--yes", dsn=database.server.dsn())
    assert other.code == 4
    assert f"--dbname {database.name}" in other.err


def test_a_missing_slot_suggests_its_neighbour(database: Database, name: str, rdsrepl: Program) -> None:
    database.run(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    for verb in ("show", "drop"):
        result = rdsrepl("slot", verb, name + "x", "-o", "json", dsn=database.dsn)
        assert (result.code, result.error["error"]) == (3, "not_found")
        assert name in result.error["hint"]


def test_physical_slots_are_left_alone(db15: Database, rdsrepl: Program) -> None:
    name = f"ph_{db15.name}"
    db15.run(f"SELECT pg_create_physical_replication_slot('{name}')")
    try:
        result = rdsrepl("slot", "drop", name, "--yes", dsn=db15.dsn)
        assert result.code == 4
        assert "physical" in result.err
    finally:
        db15.run(f"SELECT pg_drop_replication_slot('{name}')")


@pytest.fixture
def lonely(pg15: PostgresServer, tmp_path: Path) -> Iterator[PostgresServer]:
    """A server without logical decoding and with a single slot."""
    made = PostgresServer(
        tmp_path / "lonely", pg15.binaries, settings={"wal_level": "replica", "max_replication_slots": "1"}
    )
    made.initdb()
    made.start()
    yield made
    made.stop("immediate")
    made.remove()


def test_a_server_that_is_not_ready_says_why(lonely: PostgresServer, rdsrepl: Program) -> None:
    for words in (("slot", "create", "s", "--yes"), ("slot", "tail", "s")):
        result = rdsrepl(*words, "-o", "json", dsn=lonely.dsn())
        assert (result.code, result.error["error"]) == (4, "wal_level_not_logical")
        assert "param-group create NAME --cluster ID" in result.error["hint"]
    lonely.settings["wal_level"] = "logical"
    lonely.restart()
    assert rdsrepl("slot", "create", "first", "--yes", dsn=lonely.dsn()).code == 0
    full = rdsrepl("slot", "create", "second", "--yes", "-o", "json", dsn=lonely.dsn())
    assert (full.code, full.error["error"]) == (4, "slots_exhausted")
    assert "first" in full.error["hint"]


@pytest.mark.parametrize("version", [15, 18])
def test_on_a_standby(version: int, servers: Any, rdsrepl: Program, tmp_path: Path) -> None:
    """A standby supports slot list in every version, slot create and slot tail since 16."""
    writer = PostgresServer(tmp_path / "w", servers.get(version).binaries)
    writer.initdb()
    writer.start()
    reader = writer.clone(tmp_path / "r", slot="reader")
    try:
        reader.start()
        listed = rdsrepl("slot", "list", "-o", "json", dsn=writer.dsn())
        assert [slot["slot_type"] for slot in listed.json] == ["physical"]
        assert rdsrepl("slot", "list", "-o", "json", dsn=reader.dsn()).code == 0
        words = ("slot", "create", "onstandby", "--yes", "--timeout", "3s", "-o", "json")
        created = rdsrepl(*words, dsn=reader.dsn())
        if version < 16:
            assert (created.code, created.error["error"]) == (4, "not_primary")
            assert rdsrepl("slot", "tail", "any", "-o", "json", dsn=reader.dsn()).error["error"] == "not_primary"
            return
        assert (created.code, created.error["error"]) == (1, "timed_out")
        assert "pg_log_standby_snapshot" in created.error["message"]

        def snapshots(over: threading.Event) -> None:
            with closing(writer.connect()) as conn:
                while not over.wait(0.2):
                    conn.execute("SELECT pg_log_standby_snapshot()")

        with running(snapshots):
            words = ("slot", "create", "onstandby", "--yes", "--timeout", "60s", "-o", "json")
            created = rdsrepl(*words, dsn=reader.dsn())
        assert created.code == 0, created.err
        with closing(writer.connect()) as conn:
            conn.execute("CREATE TABLE public.t (id integer PRIMARY KEY)")
            conn.execute("CREATE PUBLICATION p FOR ALL TABLES")
            conn.execute("INSERT INTO public.t VALUES (7)")
        tail = rdsrepl("slot", "tail", "onstandby", "--limit", "1", "--publication", "p", dsn=reader.dsn())
        assert tail.lines[0]["after"] == {"id": 7}, tail.err
    finally:
        for each in (reader, writer):
            each.stop("immediate")
            each.remove()


@pytest.mark.parametrize(
    ("libraries", "allowed"),
    [
        (None, True),
        ("pgoutput, test_decoding", False),
        ("pgoutput,test_decoding,wal2json", True),
        ('pgoutput, "wal2json"', True),
        ('"pgoutput, wal2json"', False),
        ("", False),
    ],
)
def test_output_plugin_libraries(libraries: str | None, allowed: bool) -> None:
    assert slots.plugin_allowed(libraries, "wal2json") is allowed


@pytest.mark.parametrize(
    ("name", "plugin", "owner"),
    [
        ("abcdefgh12345678_00016402_12345678_1234_1234_1234_123456789abc", "test_decoding", "AWS DMS"),
        ("pgl_db_provider_sub", "pglogical_output", "pglogical"),
        ("debezium", "pgoutput", "Debezium"),
        ("orders", "decoderbufs", "Debezium"),
        ("fivetran_pgoutput_slot", "pgoutput", "Fivetran"),
        ("airbyte_slot", "pgoutput", "Airbyte"),
        ("orders_cdc", "pgoutput", None),
    ],
)
def test_the_owner_of_a_slot_is_known_and_a_drop_warns_of_it(name: str, plugin: str, owner: str | None) -> None:
    slot = slots.planned(name, plugin, "app")
    assert slot.owner == owner
    server = ServerIdentity("app", datetime.now(UTC), False, Lsn(1), 1)
    warnings = " ".join(slot_plans.drop(slot, server=server).warnings)
    assert owner is None or f"{owner} creates slots with such a name" in warnings
    assert ("creates slots" in warnings) == (owner is not None)


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"wal_status": "lost"}, "its WAL was removed"),
        ({"invalidation_reason": "idle_timeout"}, "idle_timeout"),
        ({"conflicting": True}, "it conflicted with recovery"),
    ],
)
def test_a_lost_slot_is_lost_by_any_of_three_columns(column: dict[str, Any], reason: str) -> None:
    slot = slots.planned("orders", "pgoutput", "app")
    assert (slot.is_lost, slot.lost_reason) == (False, None)
    lost = replace(slot, **column)
    assert (lost.is_lost, lost.lost_reason) == (True, reason)


def test_a_conflicting_slot_is_not_verified(servers: Servers, tmp_path: Path) -> None:
    """PostgreSQL 16 does not set wal_status to lost for a slot that conflicted with recovery on a standby."""
    writer = PostgresServer(tmp_path / "w", servers.get(16).binaries, settings={"autovacuum": "off"})
    writer.initdb()
    writer.start()
    reader = writer.clone(tmp_path / "r", slot="reader", settings={"hot_standby_feedback": "off"})
    try:
        reader.start()
        with ThreadPoolExecutor(1) as pool, closing(reader.connect()) as conn, closing(writer.connect()) as source:
            made = pool.submit(conn.execute, "SELECT pg_create_logical_replication_slot('sb', 'pgoutput')")
            wait_until(
                lambda: source.execute("SELECT pg_log_standby_snapshot()") and made.done(), "the slot is created"
            )
            source.execute("CREATE TABLE public.t (id integer); DROP TABLE public.t")
            source.execute("VACUUM FULL pg_catalog.pg_class")
            conflict = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'sb' AND conflicting"
            wait_until(lambda: conn.execute(conflict).fetchone() is not None, "the slot conflicts")
            conn.execute("SELECT pg_promote()")
        condition = verification.slots(["sb"]).probe(reader.target())
        assert (condition.met, condition.failed) == (False, "invalidated slots: sb")
    finally:
        for each in (reader, writer):
            each.stop("immediate")
            each.remove()
