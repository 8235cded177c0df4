"""Edge cases of the tail: a shutdown while output is blocked, unusual names and options, descriptors, signals."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.postgres import confirmed_lsn
from tests.fixtures.program import read_json_lines
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database, Servers
    from tests.fixtures.program import Program


@pytest.fixture(scope="module")
def own_server(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that tests may restart, with the default list of allowed output plugins."""
    programs = servers.get(15).binaries
    made = PostgresServer(tmp_path_factory.mktemp("edges") / "pg", programs, settings={"max_wal_senders": "20"})
    made.initdb()
    made.start()
    yield made
    made.stop("immediate")
    made.remove()


@pytest.fixture
def restarted(own_server: PostgresServer, make_database: Any) -> Database:
    database: Database = make_database(own_server)
    database.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    )
    return database


@pytest.mark.parametrize("rows", [1_000, 25_000], ids=["caught up", "sending"])
def test_a_stalled_reader_does_not_hold_a_fast_shutdown(restarted: Database, rdsrepl: Program, rows: int) -> None:
    """Also when the server has sent everything and waits for its confirmation, or waits to send more."""
    insert = "INSERT INTO t (v) SELECT repeat('x', 1000) FROM generate_series(1, {})"
    tail = rdsrepl.start(
        "slot", "tail", "g", "-f", "json", dsn=restarted.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert tail.stdout is not None
        restarted.run(insert.format(rows))
        lines = [tail.stdout.readline()]
        restarted.server.stop("fast")
        restarted.server.start()
        restarted.run(insert.format(1))
        while json.loads(lines[-1])["after"]["id"] <= rows:
            lines.append(tail.stdout.readline())
        tail.send_signal(signal.SIGINT)
        out, err = tail.communicate(timeout=120)
    finally:
        tail.kill()
        tail.communicate()
    assert (tail.returncode, out) == (0, b""), err
    # The interrupted transaction comes again, complete.
    assert list(dict.fromkeys(json.loads(line)["after"]["id"] for line in lines)) == list(range(1, rows + 2))
    assert b"the server is shutting down" in err


def test_backslashes(restarted: Database, rdsrepl: Program) -> None:
    """The replication grammar has no E'': a backslash has no special meaning."""
    name = r"""p\q's "x", y"""
    quoted = '"' + name.replace('"', '""') + '"'
    words = ("slot", "tail", "g", "--until-now", "-f", "json")
    restarted.run(
        f"CREATE PUBLICATION {quoted} FOR TABLE t",
        "SELECT pg_drop_replication_slot('g')",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "INSERT INTO t (v) VALUES ('a')",
    )
    result = rdsrepl(*words, "--no-confirm", "--publication", name, dsn=restarted.dsn)
    assert (result.code, len(result.lines)) == (0, 1), result.err
    # The value reaches the plugin, which refuses it.
    refused = rdsrepl(*words, "--publication", name, "--plugin-option", r"origin=a\b'c", dsn=restarted.dsn)
    assert refused.code != 0
    assert "syntax error" not in refused.err
    assert "origin" in refused.err


def test_the_slot_is_created_last(restarted: Database, rdsrepl: Program) -> None:
    """Any other failure leaves no slot behind, which would keep WAL without a consumer."""
    create = ("slot", "tail", "new", "--until-now", "--create")
    count = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'new'"
    cases: tuple[tuple[int, tuple[str, ...]], ...] = (
        (2, ("test_decoding", "-f", "json")),
        (3, ("pgoutput", "-f", "json", "--publication", "nope")),
        (3, ("pgoutput", "-f", "json", "--heartbeat", "1m", "--heartbeat-table", "nope")),
        (4, ("wal2json", "-f", "json")),
    )
    for code, words in cases:
        result = rdsrepl(*create, *words, dsn=restarted.dsn)
        assert (result.code, restarted.value(count)) == (code, 0), (words, result.err)
    with Path("/dev/null").open("rb") as unwritable:
        words = (*create, "pgoutput", "-f", "json")
        tail = rdsrepl.start(*words, dsn=restarted.dsn, stdout=unwritable, stderr=subprocess.PIPE)
        _, err = tail.communicate(timeout=120)
    assert (tail.returncode, restarted.value(count)) == (1, 0)
    assert b"open for reading only" in err
    assert b"Traceback" not in err
    made = rdsrepl(*create, "pgoutput", "-f", "json", dsn=restarted.dsn)
    assert (made.code, restarted.value(count)) == (0, 1), made.err
    assert "created slot new" in made.err


def test_a_plugin_that_the_server_does_not_allow(restarted: Database, rdsrepl: Program) -> None:
    """A slot of wal2json from before an upgrade to 15.20, whose default allows only pgoutput and test_decoding."""
    reload = "SELECT pg_reload_conf()"
    allowed = "SELECT current_setting('output_plugin_libraries')"
    assert restarted.value(allowed) == "pgoutput, test_decoding"
    remedy = (
        "ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_catalog.pg_reload_"
    )
    refused = rdsrepl("slot", "create", "w", "--plugin", "wal2json", "--yes", "-o", "json", dsn=restarted.dsn)
    assert (refused.code, refused.error["error"]) == (4, "plugin_not_allowed")
    assert remedy in refused.error["hint"]
    # Like on 15.19: the slot can be created.
    restarted.run("ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json", reload)
    wait_until(lambda: "wal2json" in restarted.value(allowed), "the setting is in force")
    restarted.run("SELECT pg_create_logical_replication_slot('w', 'wal2json')")
    restarted.run("ALTER SYSTEM RESET output_plugin_libraries", reload)
    wait_until(lambda: "wal2json" not in restarted.value(allowed), "the default is in force")
    restarted.run("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'x'")
    try:
        plain = restarted.server.dsn(user="plain", dbname=restarted.name)
        for dsn, env in (
            (restarted.dsn, {}),
            (plain, {"PGPASSWORD": "x"}),
        ):  # also a role that may not read the setting
            for verb in ("tail", "peek"):
                refused = rdsrepl("slot", verb, "w", "-f", "json", "-o", "json", dsn=dsn, env=env)
                assert (refused.code, refused.error["error"]) == (4, "plugin_not_allowed"), refused.err
                assert remedy in refused.error["hint"]
    finally:
        restarted.run("DROP ROLE plain")
    found = rdsrepl("doctor", "-o", "json", dsn=restarted.dsn)
    assert found.code == 9
    assert "the server refuses to decode w" in found.out


def test_an_incomplete_last_line_of_raw_output(db15: Database, rdsrepl: Program, tmp_path: Path) -> None:
    db15.run(
        "CREATE TABLE t (id integer PRIMARY KEY)",
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
        "SELECT pg_create_logical_replication_slot('d', 'test_decoding')",
        "INSERT INTO t VALUES (1)",
    )
    # wal2json's own lines are JSON; text that is not the start of an object is ended, not removed.
    before = {"w": ('{"action":"B"}\n', '{"action":"I","schema":"pub'), "d": ("BEGIN 1\ntable public.t: INS", "")}
    for slot, (whole, torn) in before.items():
        out = tmp_path / slot
        out.write_text(whole + torn)
        with out.open("ab") as file:
            words = ("slot", "tail", slot, "--until-now", "-f", "raw")
            assert rdsrepl.start(*words, dsn=db15.dsn, stdout=file).wait(timeout=120) == 0
        if slot == "w":
            assert [line["action"] for line in read_json_lines(out)] == ["B", "B", "I", "C"]
        else:
            assert out.read_text().startswith(whole + "\nBEGIN ")


def test_closed_descriptors(restarted: Database, rdsrepl: Program) -> None:
    """The next socket would get the number of a closed descriptor, and the output would go to the server."""
    command = " ".join([*rdsrepl.command, "--dsn", f"'{restarted.dsn}'"])
    for words in ("slot tail g --until-now", "slot peek g"):
        run = subprocess.run(
            f"{command} {words} >&-", shell=True, env=rdsrepl.env, capture_output=True, text=True, check=False
        )
        assert run.returncode == 1
        assert "error: standard output is closed\n" in run.stderr
    run = subprocess.run(
        f"{command} slot tail g --until-now -f json <&- 2>&-",
        shell=True, env=rdsrepl.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")


def test_sighup_delivers_and_stops(restarted: Database, rdsrepl: Program) -> None:
    tail = rdsrepl.start(
        "slot", "tail", "g", "-f", "json", dsn=restarted.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert tail.stdout is not None
    restarted.run("INSERT INTO t (v) VALUES ('a')")
    assert tail.stdout.readline()
    end = restarted.value("SELECT pg_current_wal_lsn() - '0/0'")
    tail.send_signal(signal.SIGHUP)
    _, err = tail.communicate(timeout=120)
    assert tail.returncode == 0, err
    assert b"stopped by SIGHUP" in err
    assert confirmed_lsn(restarted, "g") >= end
