"""``slot alter``: the failover property of an existing slot, idle or in use."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program, read_json_lines
from tests.fixtures.waiting import wait_until


@pytest.fixture
def slot(db18: Database) -> str:
    """A slot with the publication ``p`` of table ``t``; its name has characters that LIKE would treat as patterns."""
    name = f"a_{uuid.uuid4().hex[:12]}"
    db18.run("CREATE TABLE public.t (id int PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE public.t")
    db18.run(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    return name


@pytest.fixture
def consumer(db18: Database, slot: str, rdsrepl: Program, tmp_path: Path) -> Iterator[Path]:
    """A tail that writes to the file; it ends with the test."""
    file = tmp_path / "changes.jsonl"
    with file.open("wb") as out:
        words = ("-q", "slot", "tail", slot, "--publication", "p")
        process = rdsrepl.start(*words, dsn=db18.dsn, stdout=out, stderr=subprocess.DEVNULL)
        wait_until(lambda: active_pid(db18, slot), "the consumer streams")
        yield file
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def is_failover(database: Database, slot: str) -> bool:
    return bool(database.value(f"SELECT failover FROM pg_replication_slots WHERE slot_name = '{slot}'"))


def active_pid(database: Database, slot: str) -> int | None:
    pid: int | None = database.value(f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'")
    return pid


def test_an_idle_slot_is_changed_and_changed_back(db18: Database, slot: str, rdsrepl: Program) -> None:
    before = db18.run(f"SELECT restart_lsn, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'")
    planned = rdsrepl("slot", "alter", slot, "--failover", "--check", dsn=db18.dsn)
    assert planned.code == 7 and not is_failover(db18, slot)
    made = rdsrepl("-o", "json", "slot", "alter", slot, "--failover", "--yes", dsn=db18.dsn)
    assert made.code == 0 and is_failover(db18, slot)
    assert rdsrepl("slot", "alter", slot, "--failover", "--check", dsn=db18.dsn).code == 0
    undone = rdsrepl("slot", "alter", slot, "--no-failover", "--yes", dsn=db18.dsn)
    assert undone.code == 0 and "drop their copies" in undone.err and not is_failover(db18, slot)
    after = db18.run(f"SELECT restart_lsn, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'")
    assert after == before


def test_a_slot_in_use_is_changed_only_with_interrupt_and_no_change_is_lost(
    db18: Database, slot: str, consumer: Path, rdsrepl: Program
) -> None:
    pid = active_pid(db18, slot)
    refused = rdsrepl("-o", "json", "slot", "alter", slot, "--failover", "--yes", "--timeout", "1s", dsn=db18.dsn)
    assert refused.code == 1 and f"PID {pid}" in refused.error["message"]
    assert f"slot alter {slot} --failover --interrupt" in refused.error["hint"]
    assert not is_failover(db18, slot) and active_pid(db18, slot) == pid, "nothing was changed or disconnected"
    # Rows are written before, while and after the consumer is disconnected.
    with closing(db18.connect()) as writer:
        for number in range(30):
            writer.execute(f"INSERT INTO public.t SELECT generate_series({number * 100}, {number * 100 + 99})")
            if number == 10:
                done = rdsrepl("slot", "alter", slot, "--failover", "--interrupt", "--yes", dsn=db18.dsn)
                assert done.code == 0 and is_failover(db18, slot)

    def ids() -> set[int]:
        return {line["after"]["id"] for line in read_json_lines(consumer) if line.get("table") == "t"}

    wait_until(lambda: len(ids()) == 3000, "every row is delivered")
    assert active_pid(db18, slot) not in (None, pid)


def test_a_role_that_may_not_disconnect_the_consumer(
    db18: Database, slot: str, consumer: Path, rdsrepl: Program
) -> None:
    role = f"r{uuid.uuid4().hex[:8]}"
    db18.run(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'pw'")
    dsn = db18.server.dsn(user=role, dbname=db18.name)
    words = ("-o", "json", "slot", "alter", slot, "--failover", "--interrupt", "--yes")
    done = rdsrepl(*words, dsn=dsn, env={"PGPASSWORD": "pw"})
    assert (done.code, done.error["sqlstate"]) == (5, "42501") and "pg_signal_backend" in done.error["hint"]
    assert f"PID {active_pid(db18, slot)}" in done.error["message"]
    assert not is_failover(db18, slot)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param((), 2, "--failover or --no-failover is required", id="nothing"),
        pytest.param(("--failover", "--interrupt", "--subscriber", "x"), 2, "exclude each other", id="both-ways"),
        pytest.param(("--failover", "--subscriber", "service=missing"), 2, "", id="no-such-subscriber"),
    ],
)
def test_wrong_options(
    db18: Database, slot: str, rdsrepl: Program, words: tuple[str, ...], code: int, said: str
) -> None:
    result = rdsrepl("-o", "json", "slot", "alter", slot, *words, "--yes", dsn=db18.dsn)
    assert result.code in (code, 5) and said in result.error["message"]
    assert not is_failover(db18, slot)


def test_slots_that_cannot_be_failover_slots(
    db18: Database, slot: str, pg16: PostgresServer, make_database: Any, rdsrepl: Program
) -> None:
    old = make_database(pg16)
    old.run(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    on_16 = rdsrepl("-o", "json", "slot", "alter", slot, "--failover", "--yes", dsn=old.dsn)
    assert on_16.code == 4 and "needs PostgreSQL 17" in on_16.error["message"] and "slot sync" in on_16.error["hint"]
    physical = f"{slot}_p"
    db18.run(f"SELECT pg_create_physical_replication_slot('{physical}')")
    try:
        refused = rdsrepl("-o", "json", "slot", "alter", physical, "--failover", "--yes", dsn=db18.dsn)
        assert refused.code == 4 and "is physical" in refused.error["message"]
        # A failover slot would wait for this standby, which does not stream.
        db18.run(f"ALTER SYSTEM SET synchronized_standby_slots = '{physical}'", "SELECT pg_reload_conf()")
        wait_until(lambda: db18.value("SHOW synchronized_standby_slots") == physical, "the setting is in effect")
        waits = rdsrepl("-o", "json", "slot", "alter", slot, "--failover", "--yes", dsn=db18.dsn)
        assert waits.code == 4 and "has no standby" in waits.error["message"]
        assert not is_failover(db18, slot)
    finally:
        db18.run("ALTER SYSTEM RESET synchronized_standby_slots", "SELECT pg_reload_conf()")
        db18.run(f"SELECT pg_drop_replication_slot('{physical}')")
    missing = rdsrepl("-o", "json", "slot", "alter", "none", "--failover", "--yes", dsn=db18.dsn)
    assert missing.code == 3


def test_a_subscription_keeps_the_same_setting_as_its_slot(
    db18: Database, slot: str, make_database: Any, rdsrepl: Program
) -> None:
    other = make_database(db18.server)
    other.run(
        "CREATE TABLE public.t (id int PRIMARY KEY)",
        f'CREATE SUBSCRIPTION "My ""sub" CONNECTION \'{db18.dsn}\' PUBLICATION p '
        f"WITH (create_slot = false, slot_name = '{slot}', copy_data = false)",
    )
    state = f"SELECT subenabled, subfailover FROM pg_subscription WHERE subslotname = '{slot}'"
    try:
        wait_until(lambda: active_pid(db18, slot), "the subscription streams")
        elsewhere = db18.server.dsn()  # another database of the subscriber
        words = ("-o", "json", "slot", "alter", slot, "--failover", "--subscriber", elsewhere, "--yes")
        done = rdsrepl(*words, dsn=db18.dsn)
        assert done.code == 0 and 'ALTER SUBSCRIPTION "My ""sub" ENABLE' in done.err, done.err
        assert other.run(state) == [(True, True)] and is_failover(db18, slot)
        assert rdsrepl(*words[:-1], "--check", dsn=db18.dsn).code == 0
        db18.run("INSERT INTO public.t VALUES (1)")
        wait_until(lambda: other.run("SELECT id FROM public.t") == [(1,)], "the row is applied")
        other.run('ALTER SUBSCRIPTION "My ""sub" DISABLE')
        back = rdsrepl(*words[:5], "--no-failover", *words[6:], dsn=db18.dsn)
        assert back.code == 0 and "stays disabled" in back.err
        assert other.run(state) == [(False, False)] and not is_failover(db18, slot)
        # As after a kill between DISABLE and ENABLE.
        again = rdsrepl(*words[2:5], "--no-failover", *words[6:], dsn=db18.dsn)
        assert again.code == 0 and 'to enable it: ALTER SUBSCRIPTION "My ""sub" ENABLE' in " ".join(again.out.split())
    finally:
        other.run('ALTER SUBSCRIPTION "My ""sub" DISABLE', 'ALTER SUBSCRIPTION "My ""sub" SET (slot_name = NONE)')
        other.run('DROP SUBSCRIPTION "My ""sub"')
