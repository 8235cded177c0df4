"""``slot prune`` on real servers: dropped and kept slots, races, crashes, and the audit file."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from rdsrepl import apply, errors
from rdsrepl.apply import runner, statements
from rdsrepl.cli.slot import prune_report
from rdsrepl.config import Target
from rdsrepl.plan import Plan, Statement, Step
from rdsrepl.postgres import connection, slot_plans, slots, wal
from rdsrepl.retention import prune_rules
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.state import audit
from tests.fixtures.builders import slot
from tests.fixtures.lone_server import Place, attached, is_new, silent, start, wait_until_idle
from tests.fixtures.postgres import Database, find_binaries
from tests.fixtures.program import Program
from tests.fixtures.terminal import Terminal
from tests.fixtures.waiting import wait_until


def test_idle_slots_are_dropped_and_audited(place: Place) -> None:
    place.make("old", "older")
    place.run(
        "CREATE TABLE IF NOT EXISTS t (x text)", "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 500)"
    )
    idle = wait_until_idle(place)
    done = place.prune("--slot", "old*", "--all", "--confirm", "2 slots", *idle)
    assert done.code == 0, done.err
    assert place.names() == set()
    for said in ("permanently lost", "idle  ", " slot create old --plugin pgoutput", "Freed in total"):
        assert said in done.err
    entries = place.audit()
    assert [(one["phase"], one["slot"]["slot_name"]) for one in entries] == [
        ("intent", "old"),
        ("outcome", "old"),
        ("intent", "older"),
        ("outcome", "older"),
    ] or [(one["phase"], one["slot"]["slot_name"]) for one in entries] == [
        ("intent", "older"),
        ("outcome", "older"),
        ("intent", "old"),
        ("outcome", "old"),
    ]
    last = entries[-1]
    assert (
        last["outcome"] == "dropped" and last["command"] == "slot prune" and last["os_user"] and last["database_user"]
    )
    assert last["server"] == place.run("SELECT system_identifier::text FROM pg_control_system()")[0][0]
    assert last["slot"]["confirmed_flush_lsn"] and last["slot"]["plugin"] == "pgoutput"
    assert "{" not in done.err and done.err.count("\naudit: 2 outcomes written to ") == 1
    place.make("last")
    logged = place.prune("--slot", "last", *wait_until_idle(place), "--yes", "--log-format", "json")
    lines = [json.loads(line) for line in logged.err.splitlines()]
    outcomes = [line for line in lines if line.get("phase") == "outcome"]
    assert outcomes == [place.audit()[-1]] and "audit: " not in logged.err


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        ([{"lag_bytes": 0}, {"wal_status": "lost"}], ["no changes; they were all consumed, or are already lost"]),
        ([{"lag_bytes": None}], ["the undelivered changes of 1 slot: old0 (an unknown amount of WAL)"]),
        (
            [{"lag_bytes": n << 30} for n in (0, 1, 2, 3, 4)],
            ["the undelivered changes of 4 slots: old4 (4.0 GB of WAL), old3 (3.0 GB of WAL), old2 (2.0 GB of WAL) "
             "and 1 more"],
        ),
        (
            [{"lag_bytes": 0}, {"slot_type": "physical"}],
            ["no changes; they were all consumed, or are already lost",
             "1 physical slot: its standby must be rebuilt, unless it gets its WAL from an archive"],
        ),
    ],
)  # fmt: skip
def test_what_is_lost_is_said_in_few_lines(columns: list[dict[str, Any]], lines: list[str]) -> None:
    acted_on: Any = [SimpleNamespace(slot=slot(f"old{n}", **each)) for n, each in enumerate(columns)]
    first, *rest = lines
    assert prune_report.consequences(acted_on) == (f"permanently lost: {first}", *rest)


def test_the_prompt_keeps_what_is_lost_on_a_screen_of_24_rows(place: Place) -> None:
    if not is_new(place):
        return  # only the server's inactive_since proves idle time without sampling
    names = [f"slot_with_a_name_that_is_as_long_as_the_server_allows_{n:02}xxxxxxxxxxx" for n in range(40)]
    place.make(*names)
    place.run("SELECT pg_logical_emit_message(true, 'x', repeat('y', 3000000))")
    time.sleep(0.25)
    start_program = (
        "from rdsrepl.retention import prune_rules; prune_rules.MIN_IDLE_SECONDS = 0.0\n"
        "from rdsrepl.cli.main import app; app()"
    )
    place.rdsrepl.command[:] = [sys.executable, "-c", start_program]
    words = ("--dsn", place.dsn, "slot", "prune", "--all", "--inactive-for", "200ms")
    person = Terminal(place.rdsrepl, *words, rows=24, columns=80)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", person.wait_for("confirm:"))
    person.type("41 slots")
    assert person.wait() == 4 and len(place.names()) == 40
    rows = [line[at : at + 80] for line in shown.splitlines() for at in range(0, max(len(line), 1), 80)]
    last_screen = " ".join("\n".join(rows[-24:]).split())
    assert "Plan: 0 to create, 0 to change, 40 to drop" in last_screen
    assert "permanently lost: the undelivered changes of 40 slots: slot_with" in last_screen
    assert " and 37 more" in last_screen and last_screen.endswith("type 40 slots to confirm:") and "SELECT" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_saved_plan_drops_the_slots_that_it_showed(place: Place, tmp_path: Path) -> None:
    place.make("old")
    path = tmp_path / "prune.json"
    idle = wait_until_idle(place)
    made = place.prune("--slot", "*", "--all", *idle, "--out", str(path), "-o", "json")
    assert made.code == 0 and [one["slot_name"] for one in made.json["candidates"]] == ["old"], made.err
    place.make("later")
    wait_until_idle(place)
    done = place.rdsrepl("apply", str(path), "--confirm", "1 slot")
    assert done.code == 0 and place.names() == {"later"}, done.err
    assert [one["outcome"] for one in place.audit() if one["phase"] == "outcome"] == ["dropped"]


def test_dry_run_document(place: Place) -> None:
    place.make("old", "debezium_orders", "prod_a")
    config = place.rdsrepl.home / "config.yaml"
    config.write_text("protect: ['prod_*']\n")
    idle = wait_until_idle(place)
    done = place.prune(*idle, "--dry-run", "-o", "json", env={"RDSREPL_CONFIG": str(config)})
    assert done.code == 0 and place.names() == {"old", "debezium_orders", "prod_a"}
    (candidate,) = done.json["candidates"]
    assert candidate["slot_name"] == "old" and candidate["idle_seconds"] >= 0.2
    assert candidate["idle_proof"] == ("server" if is_new(place) else "observed")
    assert candidate["recreate"].endswith(" slot create old --plugin pgoutput --dbname postgres")
    kept = {one["slot_name"]: [obstacle["rule"] for obstacle in one["obstacles"]] for one in done.json["kept"]}
    assert kept == {"debezium_orders": ["named_only"], "prod_a": ["protected"]}
    (statement,) = done.json["statements"]
    assert "'old'" in statement and "NOT active" in statement and '"restart_lsn" = ' in statement
    checked = place.prune(*idle, "--check", "-o", "json", env={"RDSREPL_CONFIG": str(config)})
    assert checked.code == 7
    assert not (place.rdsrepl.home / "state/rdsrepl/audit.jsonl").exists()
    plain = place.prune(*idle, "--dry-run", env={"RDSREPL_CONFIG": str(config)})
    assert "pg_drop_replication_slot" in plain.out and "protected by the config file: prod_*" in plain.out


def test_protection_and_its_exception(place: Place) -> None:
    place.make("prod_a")
    config = place.rdsrepl.home / "config.yaml"
    config.write_text("protect: ['prod_*']\n")
    env = {"RDSREPL_CONFIG": str(config)}
    idle = wait_until_idle(place)
    refused = place.rdsrepl("slot", "drop", "prod_a", "--yes", dsn=place.dsn, env=env)
    assert refused.code == 4 and "is protected (prod_*" in refused.err and "--unprotect prod_a" in refused.err
    kept = place.prune("--slot", "prod_a", *idle, "--yes", env=env)
    assert kept.code == 4 and "slot prod_a cannot be pruned" in kept.err and place.names() == {"prod_a"}
    gone = place.prune("--slot", "prod_a", "--unprotect", "prod_a", *idle, "--yes", env=env)
    assert gone.code == 0 and place.names() == set(), gone.err


def test_refusal_without_a_confirmation(place: Place) -> None:
    place.make("old")
    refused = place.prune("--slot", "old", *wait_until_idle(place))
    assert refused.code == 4 and place.names() == {"old"}
    assert not (place.rdsrepl.home / "state/rdsrepl/audit.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no slots selected"),
        (("--slot", "*", "--inactive-for", "1s"), 2, "selects every logical slot of this server"),
        (("--slot", "nothing"), 3, "no replication slot nothing"),
        (("--slot", "old", "--slot", "none*"), 3, "no replication slot none*"),
        (("--slot", ""), 2, "--slot is empty"),
        (("--retaining-over", "lots"), 2, "'lots' is not a size"),
        (("--inactive-for", "yesterday"), 2, "'yesterday' is not a duration"),
        (("--lost", "--retaining-over", "1GB"), 2, "exclude each other"),
        (("--slot", "old", "--confirm", "1 slot"), 2, "--confirm requires --all"),
        (("--slot", "old", "--subscriber", "host=127.0.0.1 port=1"), 5, "--subscriber:"),
        (("--slot", "old", "--subscriber", "host=127.0.0.1 password=geheim"), 2, "a password on the command line"),
        (("--slot", "old", "--subscriber", "postgresql://a:geheim@127.0.0.1/b"), 2, "a password on the command line"),
    ],
)
def test_invalid_input(place: Place, words: tuple[str, ...], code: int, said: str) -> None:
    place.make("old", "other")
    done = place.prune(*words, "--yes")
    assert done.code == code and said in done.err, done.err
    assert "geheim" not in done.err
    assert place.names() == {"old", "other"}


def test_an_idle_time_shorter_than_a_failover_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    done = place.prune("--slot", "old", "--inactive-for", "30s", "--yes")
    assert done.code == 2 and "after a failover a consumer can be disconnected for that long" in done.err


def test_a_wrong_confirmation_is_refused(place: Place) -> None:
    place.make("a", "b")
    done = place.prune("--slot", "*", "--all", "--confirm", "3 slots", *wait_until_idle(place))
    assert done.code == 4 and "names 3 slots, not 2 slots" in done.err and place.names() == {"a", "b"}
    silent = place.prune("--slot", "*", "--all", "--yes", *wait_until_idle(place))
    assert silent.code == 4 and "--confirm 2 slots" in silent.err and place.names() == {"a", "b"}


def test_before_17_only_observe_proves_idleness(place: Place) -> None:
    if is_new(place):
        place.make("old")
        fresh = place.prune("--slot", "old", "--inactive-for", "1h", "--yes")
        assert "inactive_since of the server" in fresh.err and place.names() == {"old"}
        (kept,) = place.prune("--slot", "old", "--observe", "60s", "--dry-run", "-o", "json").json["kept"]
        (obstacle,) = kept["obstacles"]
        assert obstacle["rule"] == "not_idle" and "1h00m required" in obstacle["reason"], (
            "watching asks for nothing less"
        )
        return
    place.make("old")
    first = place.prune("--slot", "old", "--yes")
    assert first.code == 4 and "idle time unknown" in first.err and place.names() == {"old"}
    short = place.prune("--slot", "old", "--inactive-for", "1h", "--observe", "1s", "--yes")
    assert "1h00m required" in short.err and place.names() == {"old"}, "the longer time must be proven"
    place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
    place.run("SELECT pg_replication_slot_advance('old', pg_current_wal_lsn())")
    sampled = place.prune("--slot", "old", "--observe", "1s", "--yes")
    assert sampled.code == 0 and place.names() == set(), sampled.err
    assert "sampling the slots" in sampled.err and "no activity in" in sampled.err and "samples" in sampled.err


def test_a_consumer_that_reads_without_confirming_is_detected(place: Place) -> None:
    """The consumer connects, fails and reconnects: the slot does not move, but it is in use."""
    place.run("DROP PUBLICATION IF EXISTS all_of_it", "CREATE PUBLICATION all_of_it FOR ALL TABLES")
    place.make("used")
    place.run("CREATE TABLE IF NOT EXISTS t (x text)", "INSERT INTO t VALUES ('a')")
    idle = wait_until_idle(place)
    words = ("--slot", "used", *idle, "--dry-run", "-o", "json")
    assert len(place.prune(*words).json["candidates"]) == 1
    with connection.open(place.target) as conn:
        plan = slot_plans.drop(slots.get(conn, "used"), server=wal.get(conn))
    place.run(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('used', NULL, NULL, 'proto_version', '1', "
        "'publication_names', 'all_of_it')"
    )
    if is_new(place):  # before 17 only samples count (test_prune_safety.py)
        words = ("--slot", "used", "--inactive-for", "60s", "--dry-run", "-o", "json")
        assert place.prune(*words).json["candidates"] == []
    with pytest.raises(errors.StalePlan):
        apply.run(plan, place.target, **silent())
    assert place.names() == {"used"}


def test_advance_discards_the_backlog_and_keeps_the_slot(place: Place) -> None:
    place.make("behind")
    place.run(
        "CREATE TABLE IF NOT EXISTS t (x text)", "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 500)"
    )
    idle = wait_until_idle(place)
    before = place.run("SELECT pg_current_wal_lsn()")[0][0]
    done = place.prune("--slot", "behind", *idle, "--advance", "--yes")
    assert done.code == 0, done.err
    assert place.names() == {"behind"}
    assert place.run(f"SELECT confirmed_flush_lsn >= '{before}' FROM pg_replication_slots")[0][0]
    assert [(one["event"], one["phase"], one.get("outcome")) for one in place.audit()] == [
        ("slot_advance", "intent", None),
        ("slot_advance", "outcome", "advanced"),
    ]
    renamed = place.prune("--slot", "behind", *idle, "--keep-last", "--yes")
    assert renamed.code == 2 and "--advance" in renamed.err


def test_advance_only_from_the_slots_database(place: Place) -> None:
    """A slot can only be advanced from its own database; another slot is reported and not counted."""
    place.run("CREATE DATABASE elsewhere")
    try:
        place.make("here")
        with closing(psycopg.connect(place.dsn, dbname="elsewhere", autocommit=True)) as conn:
            conn.execute("SELECT pg_create_logical_replication_slot('there', 'pgoutput')")
        place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
        before = place.run("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'there'")
        words = ("--slot", "*", "--all", *wait_until_idle(place), "--advance", "--confirm", "1 slot")
        done = place.prune(*words)
        assert done.code == 0 and "advance 1 slot: done" in done.out, done.err
        assert "slot there belongs to database elsewhere" in done.err and "the slot is not changed" in done.err
        assert place.run("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'there'") == before
    finally:
        place.run("SELECT pg_drop_replication_slot('there')", "DROP DATABASE elsewhere")


def test_physical_slots_require_include_physical_and_rds_slots_are_kept(place: Place) -> None:
    place.run(
        "SELECT pg_create_physical_replication_slot('standby_1', true)",
        "SELECT pg_create_physical_replication_slot('rds_eu_west_1_db_abc', true)",
    )
    idle = wait_until_idle(place)
    done = place.prune("--slot", "standby_1", "--slot", "rds_*", *idle, "--yes")
    assert done.code == 4 and len(place.names()) == 2 and "--include-physical" in done.err
    done = place.prune("--slot", "standby_1", "--slot", "rds_*", "--include-physical", *idle, "--yes")
    assert done.code == 0 and place.names() == {"rds_eu_west_1_db_abc"}, done.err


def test_a_slot_of_a_subscriber_is_kept(place: Place, make_database: Any, pg16: PostgresServer) -> None:
    subscriber: Database = make_database(pg16)
    place.make("shop")
    subscriber.run(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p "
        "WITH (connect = false, slot_name = 'shop')"
    )
    try:
        idle = wait_until_idle(place)
        done = place.prune(*idle, "--subscriber", subscriber.dsn, "--yes")
        assert done.code == 0 and place.names() == {"shop"}, done.err
        assert "slot of subscription s of" in done.err and "--slot shop" in done.err
    finally:
        subscriber.run("ALTER SUBSCRIPTION s SET (slot_name = NONE)", "DROP SUBSCRIPTION s")


def test_a_slot_of_a_local_subscription_is_kept(place: Place) -> None:
    place.make("shop")
    place.run(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p "
        "WITH (connect = false, slot_name = 'shop')"
    )
    try:
        done = place.prune(*wait_until_idle(place), "--yes")
        assert done.code == 0 and place.names() == {"shop"}
        assert "slot of subscription s in database postgres of this server" in done.err
    finally:
        place.run("ALTER SUBSCRIPTION s SET (slot_name = NONE)", "DROP SUBSCRIPTION s")


def test_no_drop_without_an_audit_entry(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("old")
    idle = wait_until_idle(place)
    trail = place.rdsrepl.home / "state/rdsrepl/audit.jsonl"
    trail.mkdir(parents=True)
    for words in (("prune", "--slot", "old", *idle), ("drop", "old")):
        done = place.rdsrepl("slot", *words, "--yes", dsn=place.dsn)
        assert done.code == 4 and "could not write the audit file" in done.err, done.err
        assert "RDSREPL_STATE_DIR" in done.err and place.names() == {"old"}


def test_slot_drop_is_audited(place: Place) -> None:
    place.make("old")
    assert place.rdsrepl("slot", "drop", "old", "--yes", dsn=place.dsn).code == 0
    assert [(one["phase"], one["command"]) for one in place.audit()] == [
        ("intent", "slot drop"),
        ("outcome", "slot drop"),
    ]
    assert (place.rdsrepl.home / "state/rdsrepl/audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_truncated_line_in_the_audit_file_affects_only_itself(place: Place) -> None:
    place.make("old")
    trail = place.rdsrepl.home / "state/rdsrepl/audit.jsonl"
    trail.parent.mkdir(parents=True)
    trail.write_text('{"time": "2026')
    assert place.rdsrepl("slot", "drop", "old", "--yes", dsn=place.dsn).code == 0
    torn, *rest = trail.read_text().splitlines()
    assert torn == '{"time": "2026' and [json.loads(line)["phase"] for line in rest] == ["intent", "outcome"]


def test_a_partially_written_intent_is_removed(tmp_path: Path) -> None:
    """A full disk accepts a part of a line without an error, and so does a limit on the file size."""
    script = (
        "import os, resource\n"
        "from rdsrepl import errors; from rdsrepl.state import audit\n"
        "audit.append({'n': 1, 'pad': 'x' * 100})\n"
        "size = os.path.getsize(audit.audit_file())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    audit.append({'n': 2, 'pad': 'y' * 100})\n"
        "except errors.Refused as exc:\n"
        "    print(exc.message)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print(audit.append({'n': 3}))\n"
        "print(audit.process_identity()['os_user'])\n"
    )
    environment = {
        **os.environ,
        "RDSREPL_STATE_DIR": str(tmp_path),
        "USER": "another_user",
        "LOGNAME": "another_user",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    refused, line, user = done.stdout.splitlines()
    assert "could not write the audit file" in refused and "No space left" in refused
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(one)["n"] for one in lines] == [1, 3] and lines[-1] == line
    assert user == pwd.getpwuid(os.getuid()).pw_name, "not what the environment says"


# Races: between the plan and the drop.


def consume(place: Place, name: str) -> None:
    place.run(f"SELECT count(*) FROM pg_logical_slot_get_binary_changes('{name}', NULL, NULL, 'proto_version', '1', "
              "'publication_names', 'none')")  # fmt: skip


def test_a_slot_that_is_used_between_plan_and_drop_is_never_dropped(place: Place) -> None:
    place.run("DROP PUBLICATION IF EXISTS none", "CREATE PUBLICATION none")
    place.make("raced")
    ways: list[Callable[[], Any]] = [
        lambda: place.run("SELECT pg_replication_slot_advance('raced', pg_current_wal_lsn())"),
        lambda: consume(place, "raced"),
        lambda: place.run(
            "SELECT pg_drop_replication_slot('raced')",
            "SELECT pg_create_logical_replication_slot('raced', 'pgoutput')",
        ),
    ]
    for number in range(90):
        with connection.open(place.target) as conn:
            plan = slot_plans.drop(slots.get(conn, "raced"), server=wal.get(conn))
        place.run("SELECT pg_logical_emit_message(true, 'x', 'y')", "SELECT pg_log_standby_snapshot()") if is_new(
            place
        ) else place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
        ways[number % 3]()
        with pytest.raises(errors.StalePlan):
            apply.run(plan, place.target, **silent())
        assert place.names() == {"raced"}, number
    for _ in range(10):
        with connection.open(place.target) as conn:
            plan = slot_plans.drop(slots.get(conn, "raced"), server=wal.get(conn))
        with attached(place, "raced"), pytest.raises(errors.StalePlan):
            apply.run(plan, place.target, **silent())
        assert place.names() == {"raced"}
        wait = time.monotonic() + 120
        while place.run("SELECT active FROM pg_replication_slots")[0][0]:
            assert time.monotonic() < wait


def test_a_consumer_that_connects_at_any_time_keeps_its_slot(place: Place) -> None:
    """Either the consumer streams and the slot exists, or the slot is dropped and the consumer gets an error."""
    place.run("DROP PUBLICATION IF EXISTS none", "CREATE PUBLICATION none")
    for number in range(20):
        place.make("raced")
        with connection.open(place.target) as conn:
            plan = slot_plans.drop(slots.get(conn, "raced"), server=wal.get(conn))
        came: list[str] = []
        decided = threading.Event()

        def come(came: list[str] = came, decided: threading.Event = decided, number: int = number) -> None:
            time.sleep(number % 10 / 2000)
            try:
                with attached(place, "raced"):
                    came.append("in")
                    decided.wait(120)
            except (AssertionError, IndexError):
                came.append("gone")

        consumer = threading.Thread(target=come)
        consumer.start()
        try:
            apply.run(plan, place.target, **silent())
            dropped = True
        except errors.Error:
            dropped = False
        there = place.names() == {"raced"}
        decided.set()
        consumer.join(120)
        assert there is not dropped and came == (["gone"] if dropped else ["in"]), number
        place.drop_slots()


def test_a_failed_drop_does_not_stop_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("a", "b", "c")
    idle = wait_until_idle(place)
    real = apply.run

    def late(plan: Plan, target: Target, **more: Any) -> Any:
        place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
        place.run("SELECT pg_replication_slot_advance('b', pg_current_wal_lsn())")
        return real(plan, target, **more)

    monkeypatch.setattr(apply, "run", late)
    done = place.prune("--slot", "a", "--slot", "b", "--slot", "c", *idle, "--yes", "-o", "json")
    assert done.code == 6 and place.names() == {"b"}
    assert done.error["done"] == ["drop replication slot a", "drop replication slot c"]
    (left,) = done.error["not_done"]
    assert left.startswith("drop replication slot b: ") and "used, moved or dropped" in left
    outcomes = {one["slot"]["slot_name"]: one["outcome"] for one in place.audit() if one["phase"] == "outcome"}
    assert outcomes == {"a": "dropped", "b": "not_dropped", "c": "dropped"}


def test_if_every_drop_fails_nothing_is_changed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("a", "b")
    idle = wait_until_idle(place)
    real = apply.run

    def late(plan: Plan, target: Target, **more: Any) -> Any:
        place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
        for name in ("a", "b"):
            place.run(f"SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())")
        return real(plan, target, **more)

    monkeypatch.setattr(apply, "run", late)
    done = place.prune("--slot", "a", "--slot", "b", *idle, "--yes", "-o", "json")
    assert done.code == 4 and done.error["error"] == "stale_plan" and "no step was done" in done.error["message"]
    assert place.names() == {"a", "b"}


@pytest.mark.parametrize("verb", ["drop", "advance"])
def test_a_plan_made_before_a_restart_is_stale(place: Place, verb: str) -> None:
    """After a restart every slot is inactive at its position, while its consumer reconnects."""
    place.make("old")
    place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
    with connection.open(place.target) as conn:
        slot, here = slots.get(conn, "old"), wal.get(conn)
    before = place.run("SELECT restart_lsn, confirmed_flush_lsn FROM pg_replication_slots")
    plan = slot_plans.drop(slot, server=here) if verb == "drop" else slot_plans.advance(slot, None, server=here)
    assert plan
    place.server.restart()
    assert place.run("SELECT restart_lsn, confirmed_flush_lsn FROM pg_replication_slots") == before
    with pytest.raises(errors.StalePlan, match="restarted or failed over"):
        apply.run(plan, place.target, **silent())
    assert place.names() == {"old"}


def test_no_slot_is_proven_idle_seconds_after_a_restart(place: Place) -> None:
    place.make("away")
    idle = wait_until_idle(place)
    words = ("--slot", "away", "--dry-run", "-o", "json")
    assert len(place.prune(*words, *idle).json["candidates"]) == 1
    place.server.restart()
    (kept,) = place.prune(*words, "--inactive-for", "60s").json["kept"]
    assert [one["rule"] for one in kept["obstacles"]] == ["not_idle"]
    assert is_new(place) or kept["idle_proof"] == "none", "no look from before the restart counts"


# Connection loss and Ctrl-C.


class Trail:
    """A recorder that stores its calls in a list."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def before(self, step: Step) -> None:
        self.lines.append(("intent", step.summary))

    def after(self, step: Step, failure: BaseException | None) -> None:
        self.lines.append(("done" if failure is None else type(failure).__name__, step.summary))


GATE = "pg_advisory_lock_shared(7)"


@contextmanager
def gate(place: Place) -> Iterator[psycopg.Connection[Any]]:
    """Hold back statements that wait for the gate, until the connection is closed."""
    with closing(psycopg.connect(place.dsn, autocommit=True)) as conn:
        conn.execute("SELECT pg_advisory_lock(7)")
        yield conn


def late_drop(name: str, wait: str) -> Statement:
    """A drop that calls a function that waits before it drops the slot."""
    return Statement(
        f"drop {name}",
        sql.SQL(
            "SELECT slot_name, pg_drop_replication_slot(slot_name)::text "
            f"FROM {wait}, pg_replication_slots WHERE slot_name = {{}}"
        ).format(sql.Literal(name)),
        effect="drop",
        guard="it is gone",
        done_if=sql.SQL("SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {})").format(
            sql.Literal(name)
        ),
    )


def test_a_drop_that_continues_after_a_connection_loss_is_awaited(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it were queried immediately, the server would report the slot and then drop it."""
    place.make("slow", "next")
    real = runner.execute

    def cut(step: Statement, conn: connection.Connection, *rest: Any) -> Any:
        def off() -> None:
            wait_until(lambda: place.run("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
            with socket.socket(fileno=os.dup(conn.pgconn.socket)) as line:
                line.shutdown(socket.SHUT_RDWR)
            time.sleep(0.5)  # for a query about the slot, which is still there
            held.close()

        if step.summary == "drop slow":
            # The server would cancel the statement when it detects that the client is gone.
            conn.execute("SET client_connection_check_interval = 0")
            threading.Thread(target=off).start()
        return real(step, conn, *rest)

    monkeypatch.setattr(runner, "execute", cut)
    trail = Trail()
    plan = Plan("drop 2", (late_drop("slow", GATE), late_drop("next", "pg_sleep(0)")), independent=True)
    with gate(place) as held, pytest.raises(errors.AppliedInPart) as caught:
        apply.run(plan, place.target, recorder=trail, **silent())
    assert caught.value.done == ["drop slow"] and place.names() == {"next"}
    assert "not sent" in caught.value.not_done[0]
    assert trail.lines == [("intent", "drop slow"), ("done", "drop slow")], "what was not sent has no intent"


def test_ctrl_c_after_the_drop_reports_the_drop(place: Place) -> None:
    place.make("slow", "next")

    def late(*_: object) -> None:
        held.close()
        while "slow" in place.names():
            time.sleep(0.02)
        raise KeyboardInterrupt

    trail = Trail()
    plan = Plan("drop 2", (late_drop("slow", GATE), late_drop("next", "pg_sleep(0)")), independent=True)
    with gate(place) as held, pytest.raises(errors.AppliedInPart) as caught:
        apply.run(plan, place.target, done=lambda outcome: None, waiting=late, recorder=trail)
    assert caught.value.done == ["drop slow"] and caught.value.not_done == ["drop next: not started"]
    assert trail.lines == [("intent", "drop slow"), ("done", "drop slow")] and place.names() == {"next"}


def test_ctrl_c_before_the_drop_cancels_the_statement(place: Place) -> None:
    place.make("slow", "next")

    def now(*_: object) -> None:
        raise KeyboardInterrupt

    trail = Trail()
    plan = Plan("drop 2", (late_drop("slow", "pg_sleep(300)"), late_drop("next", "pg_sleep(0)")), independent=True)
    with pytest.raises(errors.Interrupted, match="the statement was cancelled, nothing was changed"):
        apply.run(plan, place.target, done=lambda outcome: None, waiting=now, recorder=trail)
    assert trail.lines == [("intent", "drop slow"), ("Cancelled", "drop slow")]
    assert place.names() == {"slow", "next"}


# Many slots.


def test_two_hundred_slots_take_few_statements(place: Place, tmp_path: Path) -> None:
    place.run(
        "SELECT count(pg_create_logical_replication_slot('many_' || n, 'pgoutput')) FROM generate_series(1, 200) n"
    )
    idle = wait_until_idle(place)
    seen: list[str] = []
    real = psycopg.Connection.execute

    def counted(self: Any, query: Any, *rest: Any, **more: Any) -> Any:
        seen.append(str(query))
        return real(self, query, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", counted)
        done = place.prune("--slot", "many_*", "--all", *idle, "--dry-run", "-o", "json")
        assert done.code == 0 and len(done.json["candidates"]) == 200
        assert len(seen) <= (5 if is_new(place) else 30), seen
        place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
        seen.clear()
        done = place.prune("--slot", "many_*", "--all", *idle, "--dry-run", "--advance", "-o", "json")
    assert done.code == 0 and len(done.json["statements"]) == 200
    assert len(seen) <= (5 if is_new(place) else 30), seen


# Crashes, each on its own server.


def test_a_server_crash_leaves_a_correct_audit_trail(rdsrepl: Program, tmp_path: Path) -> None:
    programs = find_binaries(18)
    assert programs is not None
    settings = {"wal_level": "logical", "max_replication_slots": "20", "restart_after_crash": "on"}
    server = PostgresServer(tmp_path / "durable", programs, settings=settings, durable=True)
    server.initdb()
    server.start()
    try:
        place = Place(server, rdsrepl)
        place.make(*(f"s{number}" for number in range(10)))
        time.sleep(1.1)
        words = [word for number in range(10) for word in ("--slot", f"s{number}")]
        script = (
            "import sys, time; from rdsrepl.retention import prune_rules; prune_rules.MIN_IDLE_SECONDS = 0\n"
            # The server is killed before the last drop, also when this test gets little processor time.
            "from rdsrepl.state import audit; real = audit.append\n"
            "audit.append = lambda entry: (time.sleep(0.1), real(entry))[1]\n"
            "from rdsrepl.__main__ import run; sys.argv = sys.argv[1:]; run()"
        )
        command = [rdsrepl.command[0].replace("bin/rdsrepl", "bin/python"), "-c", script, "rdsrepl", "--dsn", place.dsn]
        process = subprocess.Popen(
            [*command, "slot", "prune", *words, "--inactive-for", "1s", "--yes", "-o", "json"],
            env=rdsrepl.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        trail = rdsrepl.home / "state/rdsrepl/audit.jsonl"
        deadline = time.monotonic() + 120
        while not trail.exists() or trail.read_text().count('"outcome":"dropped"') < 3:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        server.kill()
        time.sleep(0.5)
        server.start()
        out, err = process.communicate(timeout=100)
        left = place.names()
        said = json.loads(err.splitlines()[-1])
        assert process.returncode == 6 and said["error"] == "applied_in_part", (out, err)
        reported_done = {line.removeprefix("drop replication slot ") for line in said["done"]}
        entries = [json.loads(line) for line in trail.read_text().splitlines()]
        outcomes = {one["slot"]["slot_name"]: one["outcome"] for one in entries if one["phase"] == "outcome"}
        every = {f"s{number}" for number in range(10)}
        # After a restart the server looks the same as a snapshot of it: the outcome of the running step is unknown.
        open_ = {name for name, how in outcomes.items() if how == "unknown"}
        assert reported_done == {name for name, how in outcomes.items() if how == "dropped"}
        assert reported_done | open_ >= every - left >= reported_done
        assert len(open_) <= 1 and len(outcomes) >= 3 and left
        intents = {one["slot"]["slot_name"] for one in entries if one["phase"] == "intent"}
        assert intents == set(outcomes), "whatever was begun has an end"
    finally:
        server.stop("immediate")
        server.remove()


def test_a_failover_during_prune_is_not_reported_as_a_drop(
    rdsrepl: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new primary never had the slots: their absence does not mean that they were dropped on the former one."""
    monkeypatch.setattr(prune_rules, "MIN_IDLE_SECONDS", 0.0)
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(rdsrepl.home / "state" / "rdsrepl"))
    writer = start(tmp_path / "writer", 15)
    reader = writer.clone(tmp_path / "reader", slot="reader")
    try:
        reader.start()
        place = Place(writer, rdsrepl)
        names = [f"s{number}" for number in range(5)]
        place.make(*names)
        idle = wait_until_idle(place)
        first, second = (psycopg.conninfo.conninfo_to_dict(server.dsn()) for server in (writer, reader))
        both = {key: f"{first[key]},{second[key]}" for key in ("host", "port")}
        dsn = psycopg.conninfo.make_conninfo(place.dsn, **both, target_session_attrs="read-write")
        begun: list[str] = []
        real = audit.append

        def third(entry: Mapping[str, Any]) -> str:
            line = real(entry)
            if entry["phase"] == "intent":
                begun.append(entry["slot"]["slot_name"])
                if len(begun) == 3:
                    writer.kill()
                    reader.promote()
            return line

        monkeypatch.setattr(audit, "append", third)
        words = [word for name in names for word in ("--slot", name)]
        done = rdsrepl("slot", "prune", *words, *idle, "--yes", "-o", "json", dsn=dsn)
        assert done.code == 6, done.err
        assert done.error["done"] == [f"drop replication slot {name}" for name in begun[:2]]
        assert len(done.error["not_done"]) == 3 and "whether the step was done is unknown" in done.error["not_done"][0]
        outcomes = [(one["slot"]["slot_name"], one["outcome"]) for one in place.audit() if one["phase"] == "outcome"]
        assert outcomes == [(begun[0], "dropped"), (begun[1], "dropped"), (begun[2], "unknown")]
        assert len(begun) == 3, "nothing more was begun"
        reader.stop("immediate")
        writer.start()
        assert place.names() >= set(names) - set(begun), "the old primary has what was not begun"
    finally:
        for each in (reader, writer):
            each.stop("immediate")
            each.remove()


def test_prune_stops_if_the_server_stays_unreachable(
    rdsrepl: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "_SERVER_BACK_SECONDS", 0.5)
    server = start(tmp_path / "gone", 18)
    try:
        place = Place(server, rdsrepl)
        place.make("a", "b", "c")
        with connection.open(place.target) as conn:
            here = wal.get(conn)
            steps = [slot_plans.drop(one, server=here).steps[0] for one in slots.ls(conn)]

        class Deadly(Trail):
            def before(self, step: Step) -> None:
                super().before(step)
                if step is steps[1]:
                    server.kill()

        trail = Deadly()
        with pytest.raises(errors.AppliedInPart) as caught:
            apply.run(Plan("drop 3", tuple(steps), independent=True), place.target, recorder=trail, **silent())
        assert [line.rpartition(" ")[2] for line in caught.value.done] == ["a"] and len(caught.value.not_done) == 2
        assert [how for how, _ in trail.lines] == ["intent", "done", "intent", "OutcomeUnknown"]
    finally:
        server.stop("immediate")
        server.remove()


@pytest.mark.parametrize("version", [16, 18])
def test_a_standbys_own_slot_is_not_proven_idle_after_the_promotion(
    version: int, rdsrepl: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer reconnects seconds later; until then the slot is not proven idle, however old it is."""
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(rdsrepl.home / "state" / "rdsrepl"))
    monkeypatch.setattr(prune_rules, "MIN_IDLE_SECONDS", 0.0)
    writer = start(tmp_path / "writer", version)
    reader = writer.clone(tmp_path / "reader", slot="reader")
    try:
        reader.start()
        there, here = Place(writer, rdsrepl), Place(reader, rdsrepl)
        made = threading.Thread(target=here.make, args=("own",))
        made.start()
        while made.is_alive():  # waits for a snapshot of the primary
            there.run("SELECT pg_log_standby_snapshot()")
            made.join(0.1)
        if version >= 17:
            time.sleep(2.5)
        watch = () if version >= 17 else ("--observe", "2s")
        judge = ("--slot", "own", "--inactive-for", "2s", *watch, "--dry-run", "-o", "json")
        assert [one["slot_name"] for one in here.prune(*judge).json["candidates"]] == ["own"], "on the standby it is"
        writer.stop("immediate")
        ((asked,),) = here.run("SELECT clock_timestamp()")
        reader.promote()
        found = here.prune("--slot", "own", "--inactive-for", "60s", "--dry-run", "-o", "json").json
        (kept,) = (one for one in found["kept"] if one["slot_name"] == "own")
        assert [one["rule"] for one in kept["obstacles"]] == ["not_idle"]
        assert datetime.fromisoformat(found["at"]) - timedelta(seconds=kept["idle_seconds"]) >= asked
        assert version == 16 or "the server's promotion" in kept["obstacles"][0]["reason"]
        here.run("CREATE ROLE cdc LOGIN REPLICATION")
        with closing(psycopg.connect(reader.dsn(), autocommit=True)) as conn:
            conn.execute("SET ROLE cdc")
            assert wal.promoted_at(conn, 2) is None, "requires pg_monitor"
            conn.execute("RESET ROLE")
            promoted = wal.promoted_at(conn, 2)
            started = conn.execute("SELECT pg_postmaster_start_time()").fetchone()
            assert promoted is not None and started is not None and promoted > started[0]
    finally:
        for each in (reader, writer):
            each.stop("immediate")
            each.remove()


def test_a_synced_slot_is_never_dropped_and_a_promotion_proves_nothing(rdsrepl: Program, tmp_path: Path) -> None:
    writer = start(tmp_path / "writer", 18)
    copy = writer.clone(tmp_path / "copy", slot="copy")
    try:
        copy.start()
        there, here = Place(writer, rdsrepl), Place(copy, rdsrepl)
        there.run("SELECT pg_create_logical_replication_slot('synced', 'pgoutput', false, false, true)")

        def is_synced() -> bool:
            # A synchronized slot stays only after the slot on the primary has moved.
            there.run(
                "SELECT pg_logical_emit_message(true, 'x', 'y')",
                "SELECT pg_log_standby_snapshot()",
                "SELECT pg_replication_slot_advance('synced', pg_current_wal_lsn())",
            )
            rows = here.run("SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'synced'")
            return rows == [(True,)]

        deadline = time.monotonic() + 120
        while not is_synced():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        judge = ("--slot", "synced", "--inactive-for", "60s", "--dry-run", "-o", "json")
        (kept,) = here.prune(*judge).json["kept"]
        assert "synced" in {one["rule"] for one in kept["obstacles"]}
        assert "drop it on the primary" in rdsrepl("slot", "drop", "synced", "--yes", dsn=here.dsn).err
        assert "synced" in here.names()
        writer.stop("immediate")
        copy.promote()
        for _ in range(3):
            found = here.prune(*judge).json
            assert found["candidates"] == [] and "synced" in here.names()
            (kept,) = (one for one in found["kept"] if one["slot_name"] == "synced")
            assert [one["rule"] for one in kept["obstacles"]] == ["not_idle"] and kept["idle_seconds"] < 60
            time.sleep(0.5)
    finally:
        for each in (copy, writer):
            each.stop("immediate")
            each.remove()
