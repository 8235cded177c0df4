"""The options and formats that every list takes, on a real server."""

from __future__ import annotations

import csv
import io
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures.terminal import run_on_terminal, screen
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

#: Nothing listens there: what is refused before anything is touched does not fail to connect.
NOWHERE = "host=127.0.0.1 port=1 connect_timeout=1"


@pytest.fixture
def roles(db18: Database) -> Iterator[str]:
    """Three roles that may replicate, whose names begin with the returned text."""
    prefix = f"list_{db18.name}"
    names = (f"{prefix}_a", f'"{prefix}_ü, ""q"""', f'"{prefix}_=z"')
    db18.run(*(f"CREATE ROLE {name} REPLICATION CONNECTION LIMIT {n}" for n, name in enumerate(names, 1)))
    yield prefix
    db18.run(*(f"DROP ROLE {name}" for name in names))


def test_formats_filters_and_orders(db18: Database, roles: str, rdsrepl: Program) -> None:
    only = ("--filter", f"rolname~^{roles}")

    def names(*words: str) -> list[str]:
        listed = rdsrepl("role", "list", *only, "-o", "name", *words, dsn=db18.dsn)
        assert listed.code == 0, listed.err
        return [line.removeprefix(f"{roles}_") for line in listed.out.splitlines()]

    assert names("--sort-by", "limit") == ["a", 'ü, "q"', "=z"]
    assert names("--sort-by", "-rolconnlimit") == ["=z", 'ü, "q"', "a"]
    assert names("--filter", "limit>=2", "--sort-by", "role") == ["=z", 'ü, "q"']
    text = rdsrepl("role", "list", *only, "-o", "csv", "--sort-by", "limit", dsn=db18.dsn).out
    rows = list(csv.DictReader(io.StringIO(text)))
    shown = rdsrepl("role", "list", *only, "-o", "json", "--sort-by", "limit", dsn=db18.dsn).json
    assert [row["rolname"] for row in rows] == [row["rolname"] for row in shown]
    assert list(rows[0]) == list(shown[0])
    assert rows[0]["reasons"] == '["REPLICATION attribute"]' and rows[0]["rolsuper"] == "false"
    plain = rdsrepl("role", "list", *only, "--no-headers", dsn=db18.dsn).out.splitlines()
    assert len(plain) == 3 and not any("ROLE" in line for line in plain)
    wide = screen(rdsrepl, "--dsn", db18.dsn, "role", "list", *only, "-o", "wide", columns=200)
    assert "VALID UNTIL" in wide and "hidden" not in wide


def test_a_csv_cell_that_a_spreadsheet_would_run_is_a_text(db18: Database, rdsrepl: Program) -> None:
    db18.run('CREATE PUBLICATION "=cmd()"', 'CREATE PUBLICATION "x\ny"')
    listed = rdsrepl("publication", "list", "-o", "csv", dsn=db18.dsn).out
    assert [row["pubname"] for row in csv.DictReader(io.StringIO(listed))] == ["'=cmd()", "x\ny"]
    assert rdsrepl("publication", "list", "-o", "name", dsn=db18.dsn).out == "=cmd()\nx\\ny\n"


def test_a_remedy_is_below_its_finding_on_a_narrow_terminal(db18: Database, rdsrepl: Program) -> None:
    db18.run("CREATE TABLE without_a_key (id integer)", "CREATE PUBLICATION p FOR TABLE without_a_key")
    words = ("publication", "check", "p")
    narrow = screen(rdsrepl, "--dsn", db18.dsn, *words, columns=60).splitlines()
    assert narrow[0] == "critical  replica_identity"
    assert narrow[1].startswith("  public.without_a_key: ") and any(line.startswith("  → ") for line in narrow)
    piped = rdsrepl(*words, dsn=db18.dsn)
    assert piped.code == 9 and [line.split()[0] for line in piped.out.splitlines()] == ["LEVEL", "critical"]
    assert len(rdsrepl(*words, "--no-headers", dsn=db18.dsn).out.splitlines()) == 1
    assert rdsrepl(*words, "--filter", "level=warning", dsn=db18.dsn).code == 9  # a filter hides no finding from it


def test_query_selects_from_the_document_as_the_aws_cli_does(db18: Database, roles: str, rdsrepl: Program) -> None:
    words = (
        "role",
        "list",
        "--filter",
        f"rolname~^{roles}",
        "--query",
        "sort_by([?rolconnlimit > `1`], &rolconnlimit)[0]",
    )
    as_json = rdsrepl(*words, dsn=db18.dsn)
    assert as_json.json["rolconnlimit"] == 2
    assert "rolconnlimit: 2" in rdsrepl(*words, "-o", "yaml", dsn=db18.dsn).out
    wrong_type = rdsrepl("role", "list", "--query", "length(`3`)", dsn=db18.dsn)
    assert wrong_type.code == 2 and wrong_type.error["error"] == "bad_value"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("slot", "list", "--filter", "nope=1"), "no field nope"),
        (("slot", "list", "--sort-by", "nope"), "no field nope"),
        (("slot", "list", "--watch", "10ms"), "too short"),
        (("slot", "list", "--query", "[?a"), "at position 4"),
        (("slot", "list", "--query", "''x"), "at position"),
        (("slot", "list", "--query", "a", "-o", "wide"), "--query and -o wide"),
        (("slot", "lag", "--filter", "nope=1"), "no field nope"),
        (("slot", "show", "x", "-o", "csv"), "-o csv is for lists"),
        (("-o", "name", "slot", "drop", "x", "--yes"), "-o name is for lists"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_touched(
    rdsrepl: Program, words: tuple[str, ...], said: str
) -> None:
    refused = rdsrepl(*words, dsn=NOWHERE)
    assert refused.code == 2
    assert said in refused.err and "hint" in refused.err


def test_no_rows_and_no_row_that_meets_the_filter_are_different(db18: Database, rdsrepl: Program) -> None:
    empty = rdsrepl("publication", "list", dsn=db18.dsn)
    assert empty.out == "no publications in this database\n"
    assert rdsrepl("publication", "list", "-o", "csv", dsn=db18.dsn).out.startswith("pubname,owner,")
    assert rdsrepl("publication", "list", "-o", "name", dsn=db18.dsn).out == ""
    quiet = rdsrepl("publication", "list", "--no-headers", dsn=db18.dsn)
    assert quiet.out == "" and "no publications" in quiet.err
    db18.run("CREATE PUBLICATION p")
    none = rdsrepl("publication", "list", "--filter", "pubname=q", dsn=db18.dsn)
    assert none.out == "no row meets --filter pubname=q (of 1)\n"


def test_watch_in_a_pipe_survives_a_lost_connection(db18: Database, rdsrepl: Program) -> None:
    db18.run("CREATE PUBLICATION p")
    process = rdsrepl.start(
        *("publication", "list", "-w", "500ms", "-o", "json"),
        dsn=db18.dsn,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    assert b'"pubname": "p"' in process.stdout.readline()
    with closing(db18.connect()) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert b"could not read the list, trying again" in process.stderr.readline()
    db18.run("CREATE PUBLICATION q")
    while b'"q"' not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in rest[1]


def test_watch_on_a_terminal_draws_over_the_last_list(db18: Database, rdsrepl: Program) -> None:
    import pyte

    db18.run("CREATE PUBLICATION first")
    ours, theirs = pty.openpty()
    shown = pyte.Screen(80, 24)
    stream = pyte.ByteStream(shown)
    process = subprocess.Popen(
        [*rdsrepl.command, "--dsn", db18.dsn, "publication", "list", "--watch", "500ms"],
        env={**rdsrepl.env, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def sees(text: str) -> Any:
        with suppress(BlockingIOError, OSError):
            stream.feed(os.read(ours, 65536))
        return any(text in line for line in shown.display)

    wait_until(lambda: sees("first"), "the first list")
    db18.run("CREATE PUBLICATION second")
    wait_until(lambda: sees("second"), "the second list")
    text = [line.rstrip() for line in shown.display if line.strip()]
    assert "every 0.5s; Ctrl-C ends" in text[0] and sum("PUBLICATION" in line for line in text) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    os.close(ours)


def test_a_dumb_terminal_gets_plain_lines_of_its_width(db18: Database, rdsrepl: Program) -> None:
    db18.run("CREATE PUBLICATION a_publication_with_a_very_long_name_that_does_not_fit_here")
    words = ("--dsn", db18.dsn, "publication", "list")
    dumb = screen(rdsrepl, *words, columns=60, TERM="dumb")
    assert dumb == screen(rdsrepl, *words, columns=60)
    assert dumb == screen(rdsrepl, *words, columns=60, rows=0, TERM="dumb", COLUMNS="60")  # of unknown size
    in_ascii = screen(rdsrepl, *words, columns=60, LC_ALL="C")
    assert in_ascii.isascii() and "..." in in_ascii
    assert len(in_ascii.splitlines()[0]) <= 60
    code, help_page = run_on_terminal(rdsrepl, "slot", "list", "--help", rows=60, LC_ALL="C")
    assert code == 0 and help_page.isascii() and "+-" in help_page


def test_watch_takes_the_next_word_only_if_it_is_a_duration(rdsrepl: Program) -> None:
    refused = rdsrepl("slot", "lag", "-w", "orders", "--filter", "nope=1", dsn=NOWHERE)
    assert "no field nope" in refused.err
    short = rdsrepl("slot", "lag", "-w", "10ms", "orders", dsn=NOWHERE)
    assert "--watch 0.01s is too short" in short.err
