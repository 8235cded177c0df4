"""Texts of others are escaped on a terminal, complete in documents, and quoted in printed commands."""

from __future__ import annotations

import json
import shlex
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.plan import Statement, readable
from rdsrepl.retention import prune_rules
from rdsrepl.tail.formats.pretty import PrettyFormat
from rdsrepl.tail.model import Transaction
from rdsrepl.text.commands import command, ddl, shell, sql
from rdsrepl.text.escapes import is_plain, json_text, shown, yaml_text
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.terminal import run_on_terminal

# Characters that move the cursor, break a line, reverse or hide text, or are markup for rich.
HOSTILE = "\x1b[2J\x1b]0;t\x07 \x9b31m\n\r\tx\u202e\u2066\u200b\u2028\ufeff\u00ad\x7f[red][link=http://x]y[/]"
BAD = [one for one in HOSTILE if not one.isprintable()] + ["\ue000"]


def clean(text: str, *, lines: bool = True) -> bool:
    return all(one.isprintable() or (lines and one == "\n") for one in text)


def test_shown() -> None:
    assert shown("plain text, Ünïcode, 日本語 — [red]") == "plain text, Ünïcode, 日本語 — [red]"
    assert shown("a\nb\r\t\x1b[0m\x9b\u202e\U000e0041\udc80") == r"a\nb\r\t\x1b[0m\u009b\u202e\U000e0041\udc80"
    assert shown("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    # Printable in Unicode, but without a glyph: two names must not look the same.
    assert all(not is_plain(f"a{one}b") for one in "\u034f\u115f\u3164\ufe0f\u2800\U000e0100")


@given(st.text())
def test_documents_keep_and_escape_every_character(text: str) -> None:
    value = {text: [text]}
    assert json.loads(json_text(value)) == value
    assert clean(json_text(value), lines=False) and clean(json_text(value, indent=2))
    text = text.encode("utf-8", "ignore").decode()
    assert yaml.safe_load(yaml_text([{"name": text}])) == [{"name": text}]
    assert clean(yaml_text([{"name": text}]))
    assert clean(shown(text), lines=False)


@given(st.lists(st.text(), min_size=2, max_size=2))
def test_a_command_keeps_each_value_or_is_not_shown(values: list[str]) -> None:
    line = shell("prog do {} --to {} -x", *values)
    assert clean(line, lines=False)
    if all(map(is_plain, values)):
        words = shlex.split(line)
        assert [words[words.index("--to") + 1], words[2 if "--" not in words else -1]] == values[::-1]
        assert "--" in words or not values[0].startswith("-")
    else:
        assert line.startswith("(no command is shown: ")


def test_commands() -> None:
    assert command("slot drop {}", "a b; rm -rf /") == "rdsrepl slot drop 'a b; rm -rf /'"
    assert command("role grant {}", "--yes") == "rdsrepl role grant -- --yes"
    assert command("param-group set {} {}", "g", "a=$(x)") == "rdsrepl param-group set g 'a=$(x)'"
    assert sql("SELECT f({})", "a'b") == "SELECT f('a''b')"
    assert r"'a\nb'" in command("slot drop {}", "a\nb") and "rdsrepl" not in command("slot drop {}", "a\nb")
    assert "no command is shown" in sql("SELECT f({})", "\x9b")
    assert ddl("DROP TABLE {}", 'a"; b') == 'DROP TABLE "a""; b"'
    assert "no command is shown" in ddl("DROP TABLE {}", "\x9b")


def test_the_command_that_recreates_a_slot_is_quoted() -> None:
    slot: Any = SimpleNamespace(
        slot_type="logical", slot_name="s", plugin="p; rm -rf ~", two_phase=False, failover=False, database="a b"
    )
    assert shlex.split(prune_rules.recreate_command(slot))[-3:] == ["p; rm -rf ~", "--dbname", "a b"]
    slot.database = "x\nrm -rf ~\n"
    assert "no command is shown" in prune_rules.recreate_command(slot)


def test_a_statement_is_escaped_when_shown_and_not_when_run() -> None:
    from psycopg import sql as composed

    statement = composed.SQL("ALTER\n  TABLE {} SET {}").format(
        composed.Identifier("a\n\x1b"), composed.Literal("\u202e")
    )
    step = Statement("x", statement, effect="change")
    assert readable(step) == "ALTER\n  TABLE \"a\\n\\x1b\" SET '\\u202e'"
    assert "\x1b" in step.text


def test_pretty_escapes_names_and_values() -> None:
    fmt = PrettyFormat(SimpleNamespace(), colour=False)  # type: ignore[arg-type]
    tx = Transaction(7, 1, "0/1", None)
    line = fmt.line("INSERT", f"public.{HOSTILE}", f"a={HOSTILE}", "0/1", tx)
    assert line.count("\n") == 1 and clean(line) and r"\x1b[2J" in line and "[red]" in line


@pytest.fixture
def hostile(db15: Any) -> Any:
    """A database, role, table, publication and slot with control characters in their names."""
    name = f"h{HOSTILE}"[:50].replace("\x00", "")
    quoted = '"' + name.replace('"', '""') + '"'
    db15.run(f"CREATE DATABASE {quoted}")
    db15.run(f"CREATE ROLE {quoted} LOGIN REPLICATION")
    made = type(db15)(db15.server, name)
    try:
        made.run(
            f"CREATE TABLE {quoted} ({quoted} text)",
            f"CREATE PUBLICATION {quoted} FOR TABLE {quoted}",
            "SELECT pg_create_logical_replication_slot('hostile_slot', 'pgoutput')",
        )
        yield made
    finally:
        made.run("SELECT pg_drop_replication_slot('hostile_slot')")
        db15.run(f"DROP DATABASE {quoted} WITH (FORCE)", f"DROP ROLE {quoted}")


def test_hostile_names_through_the_program(hostile: Any, rdsrepl: Any, tmp_path: Any) -> None:
    name, dsn = hostile.name, hostile.dsn
    commands = [
        ["slot", "list"],
        ["slot", "show", "hostile_slot"],
        ["slot", "lag"],
        ["slot", "check"],
        ["slot", "check", "--nagios"],
        ["slot", "check", "--prometheus"],
        ["slot", "watch", "--limit-looks", "1"],
        ["slot", "prune", "--slot", "hostile_slot", "--dry-run"],
        ["slot", "prune", "--slot", "hostile_slot", "--inactive-for", "0s", "--dry-run"],
        ["slot", "drop", "hostile_slot", "--dry-run"],
        ["slot", "drop", "hostile_slot"],
        ["role", "list", "--all"],
        ["role", "show", name],
        ["role", "create", name],
        ["role", "drop", name, "--dry-run"],
        ["publication", "list"],
        ["publication", "show", name],
        ["publication", "check", name],
        ["publication", "create", name, "--all-tables"],
        ["publication", "drop", name, "--dry-run"],
        ["publication", "show", f"no{name}"],
        ["doctor"],
        ["slot", "lag", f"no{name}"],
    ]
    escaped = 0
    for number, words in enumerate(commands):
        # Every command as a table, and every fourth as JSON and YAML.
        for output in ("table", *{0: ["json"], 2: ["yaml"]}.get(number % 4, [])):
            done = rdsrepl(*words, "-o", output, *(["-vv"] if number % 2 else []), dsn=dsn)
            assert "internal_error" not in done.err
            assert clean(done.out) and clean(done.err), (words, output, done.out, done.err)
            escaped += any(mark in done.out + done.err for mark in (r"\x1b[2J", r"\u001b[2J", r"\e[2J"))
    assert escaped > 20
    listed = rdsrepl("slot", "list", "-o", "json", dsn=dsn).json
    assert next(row for row in listed if row["slot_name"] == "hostile_slot")["database"] == name
    rows = yaml.safe_load(rdsrepl("slot", "list", "-o", "yaml", dsn=dsn).out)
    assert next(row for row in rows if row["slot_name"] == "hostile_slot")["database"] == name


def test_a_usage_error_escapes_the_command_line(rdsrepl: Any) -> None:
    for words in (
        ["slot", "lag", "--interval", f"x{HOSTILE}"],
        ["slot", f"x{HOSTILE}"],
        ["slot", "list", f"--x{HOSTILE}"],
    ):
        for output in ("table", "json"):
            done = rdsrepl(*words, "-o", output)
            assert done.code == 2 and clean(done.err), (words, done.err)


def test_every_bad_character_is_escaped() -> None:
    assert len(BAD) > 12 and not any(map(is_plain, BAD))
    assert subprocess.run(["printf", "%s", shown(HOSTILE)], capture_output=True, check=True).stdout.isascii()


def test_stream_lines_are_escaped_on_a_terminal(rdsrepl: Program, db15: Database) -> None:
    """A pipe gets the characters unescaped; a JSON reader gets the same value."""
    name = f"s_{db15.name}"
    db15.run(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')",
        "INSERT INTO t VALUES (1, E'a\\u009b2J\\u202eb')",
    )
    words = ("--dsn", db15.dsn, "-q", "slot", "peek", name, "--format", "json")
    code, terminal = run_on_terminal(rdsrepl, *words, rows=24)
    piped = rdsrepl(*words[2:], dsn=db15.dsn).out
    assert code == 0 and "\\u009b" in terminal and "\u009b" not in terminal and "\u202e" not in terminal
    assert "\u009b" in piped and json.loads(piped)["after"] == json.loads(terminal)["after"]
