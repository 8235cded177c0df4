"""Changes that a publication omits are never confirmed without a message: older than it (18), or of another set."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures.postgres import confirmed_lsn
from tests.fixtures.program import read_json_lines
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

SLOT = "SELECT pg_create_logical_replication_slot('g', 'pgoutput')"
WORDS = ("slot", "tail", "g", "--until-now", "-f", "json")


def values(lines: list[dict[str, Any]]) -> list[Any]:
    return [event["after"]["v"] for event in lines]


@pytest.mark.parametrize("version", [15, 18])
def test_a_publication_newer_than_the_slot_ends_the_run(
    request: pytest.FixtureRequest, rdsrepl: Program, version: int
) -> None:
    """On 18 the server only warns: changes before the warning are delivered, and none after it is confirmed."""
    database: Database = request.getfixturevalue(f"db{version}")
    database.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE TABLE other (id int)",
        SLOT,
    )
    with closing(database.connect()) as conn:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO t (v) SELECT 'too early' FROM generate_series(1, 3)")
        row = conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()  # where the commit's record starts
        assert row is not None
        conn.execute("COMMIT")
        conn.execute("CREATE PUBLICATION p FOR TABLE t")
        conn.execute("INSERT INTO t (v) VALUES ('in time')")
    for format in ("raw", "json") if version >= 18 else ("json",):
        result = rdsrepl("slot", "tail", "g", "--until-now", "-f", format, "-o", "json", dsn=database.dsn)
        assert (result.code, result.out) == (3, ""), result.err
        assert "p" in result.error["message"]
        assert "advance" in result.error["hint"]
        assert confirmed_lsn(database, "g") <= row[0]
    allowed = rdsrepl(*WORDS, "--allow-missing-publication", dsn=database.dsn)
    if version < 18:
        assert (allowed.code, allowed.out) == (4, "")
        assert "--allow-missing-publication" in allowed.err
        return
    assert (allowed.code, values(allowed.lines)) == (0, ["in time"])
    assert allowed.err.count("skipped loading publication") == 1
    assert "warning" in allowed.err


def test_a_publication_that_was_dropped_and_recreated(db18: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """Changes made while it existed are delivered; the first change without it ends the run."""
    db18.run("CREATE TABLE t (id bigserial PRIMARY KEY, v text)", "CREATE PUBLICATION p FOR TABLE t", SLOT)
    out = tmp_path / "out.jsonl"
    with out.open("wb") as file:
        tail = rdsrepl.start("slot", "tail", "g", "-f", "json", dsn=db18.dsn, stdout=file, stderr=subprocess.PIPE)
        db18.run("INSERT INTO t (v) VALUES ('one')")
        wait_until(lambda: len(read_json_lines(out)) == 1, "the change")
        with closing(db18.connect()) as conn:
            conn.execute("INSERT INTO t (v) VALUES ('two')")
            conn.execute("DROP PUBLICATION p")
            row = conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
            assert row is not None
            conn.execute("INSERT INTO t (v) VALUES ('lost')")
            conn.execute("CREATE PUBLICATION p FOR TABLE t")
            conn.execute("INSERT INTO t (v) VALUES ('three')")
        _, err = tail.communicate(timeout=120)
    assert (tail.returncode, values(read_json_lines(out))) == (3, ["one", "two"]), err
    assert confirmed_lsn(db18, "g") <= row[0]


def test_warnings_of_the_server_are_escaped(db18: Database, rdsrepl: Program) -> None:
    """With any client_min_messages of the role, and any characters in names."""
    hostile = 'p\x1b[31m"\x07'
    name = '"' + hostile.replace('"', '""') + '"'
    db18.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        SLOT,
        "INSERT INTO t (v) VALUES ('x')",
        f"CREATE PUBLICATION {name} FOR TABLE t",
        f"ALTER DATABASE {db18.name} SET client_min_messages = 'error'",
    )
    for accept, code in (((), 3), (("--allow-missing-publication",), 0)):
        result = rdsrepl(*WORDS, *accept, dsn=db18.dsn)
        assert result.code == code
        assert r'publication "p\x1b[31m"\x07"' in result.err
        assert "\x1b" not in result.err
        assert "\x07" not in result.err


def test_another_set_of_publications_is_reported_before_a_confirmation(db15: Database, rdsrepl: Program) -> None:
    db15.run(
        "CREATE TABLE a (id bigserial PRIMARY KEY, v text)",
        "CREATE TABLE b (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION pa FOR TABLE a",
        "CREATE PUBLICATION pb FOR TABLE b",
        SLOT,
        "INSERT INTO a (v) VALUES ('a1')",
    )
    both = ("--publication", "pa", "--publication", "pb")
    assert values(rdsrepl(*WORDS, *both, dsn=db15.dsn).lines) == ["a1"]
    again = rdsrepl(*WORDS, *reversed_pairs(both), dsn=db15.dsn)
    assert "streamed with" not in again.err
    db15.run("INSERT INTO a (v) VALUES ('a2')", "INSERT INTO b (v) VALUES ('b2')")
    before = confirmed_lsn(db15, "g")
    fewer = rdsrepl(*WORDS, "--publication", "pb", "--no-confirm", dsn=db15.dsn)
    assert "streamed with" not in fewer.err  # it confirms nothing, so no change is lost
    fewer = rdsrepl(*WORDS, "--publication", "pb", dsn=db15.dsn)
    assert values(fewer.lines) == ["b2"]
    told, _, rest = fewer.err.partition("are not streamed")
    assert "slot g was streamed with publications pa, pb" in told
    assert "public.a" in told
    assert "public.b" not in told
    assert "caught up" in rest
    assert confirmed_lsn(db15, "g") > before
    # Reported once: from now on this is the set.
    assert "streamed with" not in rdsrepl(*WORDS, "--publication", "pb", dsn=db15.dsn).err


def reversed_pairs(words: tuple[str, ...]) -> tuple[str, ...]:
    return (*words[2:], *words[:2])
