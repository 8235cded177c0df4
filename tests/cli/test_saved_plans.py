"""``--out`` saves a plan, and ``rdsrepl apply`` applies exactly this plan, once, on the server it was made for."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from rdsrepl.state import plan_files
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.sandbox import Cloud
from tests.fixtures.terminal import Terminal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plan.json"


@pytest.fixture
def slot(db18: Database) -> Iterator[str]:
    """The name of a slot, which the test may create and drop."""
    yield "saved"
    db18.run(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'saved' AND NOT active"
    )


def saved(path: Path) -> Any:
    return json.loads(path.read_text())


def exists(database: Database, name: str) -> bool:
    return bool(database.value(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'"))


def rewrite(path: Path, **changes: Any) -> None:
    """Write the plan of a file again with other values, as a program that knows the format could."""
    with plan_files.opened(path) as file:
        plan = replace(file.plan, **changes)
    plan_files.write(path, plan)


def test_a_plan_is_saved_and_applied_once(rdsrepl: Program, db18: Database, path: Path, slot: str) -> None:
    made = rdsrepl("slot", "create", slot, "--out", str(path), dsn=db18.dsn)
    assert made.code == 0 and not exists(db18, slot), made.err
    assert made.out.endswith("Plan: 1 to create, 0 to change, 0 to drop\n")
    assert made.err.endswith(f"the plan is saved; next: rdsrepl apply {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert saved(path)["command"] == ["slot", "create", "--", slot] and saved(path)["applied"] is None
    unasked = rdsrepl("apply", str(path), input="")
    assert unasked.code == 4 and "not a terminal" in unasked.err and saved(path)["applied"] is None
    seen = rdsrepl("apply", str(path), "--check", "-o", "json")
    assert seen.code == 7 and seen.json["steps"] == saved(path)["plan"]["steps"]
    done = rdsrepl("apply", str(path), "--yes", "-o", "json")
    assert done.code == 0 and done.json["status"] == "applied" and exists(db18, slot), done.err
    assert saved(path)["applied"]["by"] == saved(path)["created_by"]
    again = rdsrepl("apply", str(path), "--yes")
    assert again.code == 4 and "was applied at" in again.err
    # Over an older plan a new one may be written.
    assert rdsrepl("slot", "drop", slot, "--out", str(path), dsn=db18.dsn).code == 0
    assert saved(path)["applied"] is None


def test_the_plan_is_refused_where_the_slot_moved(rdsrepl: Program, db18: Database, path: Path, slot: str) -> None:
    db18.run(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    assert rdsrepl("slot", "drop", slot, "--out", str(path), dsn=db18.dsn).code == 0
    db18.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
    db18.run(f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")
    refused = rdsrepl("apply", str(path), "--yes", "-o", "json")
    assert refused.code == 4 and exists(db18, slot)
    assert refused.error["error"] == "plan_changed" and "the server changed since" in refused.error["message"]
    (differs,) = refused.error["differs"]
    assert differs.startswith(f"drop replication slot {slot}: statement: ")
    assert '"confirmed_flush_lsn" = ' in differs and " -> " in differs and "wal_status" not in differs
    assert f"--out={path} -- {slot}" in refused.error["hint"]
    # Without the object, planning itself fails.
    db18.run(f"SELECT pg_drop_replication_slot('{slot}')")
    assert rdsrepl("apply", str(path), "--yes").code == 3


def test_an_advance_goes_to_the_saved_position(rdsrepl: Program, db18: Database, path: Path, slot: str) -> None:
    db18.run(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    db18.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
    assert rdsrepl("slot", "advance", slot, "--to-current", "--out", str(path), dsn=db18.dsn).code == 0
    db18.run("SELECT pg_logical_emit_message(true, 'x', 'a later change')")
    done = rdsrepl("apply", str(path), "--yes")
    assert done.code == 0, done.err
    position = db18.value(f"SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'")
    assert str(position) == saved(path)["pins"]["lsn"] and db18.value("SELECT pg_current_wal_lsn()") != position


def test_the_saved_server_is_used_and_no_other(
    rdsrepl: Program, db18: Database, db15: Database, path: Path, slot: str
) -> None:
    info = psycopg.conninfo.conninfo_to_dict(db18.dsn)
    here = {f"PG{name}": str(info[key]) for name, key in (("HOST", "host"), ("PORT", "port"), ("USER", "user"))}
    here["PGDATABASE"] = db18.name
    assert rdsrepl("slot", "create", slot, "--out", str(path), env=here).code == 0
    elsewhere = rdsrepl("apply", str(path), "--yes", env={**here, "PGDATABASE": "postgres"})
    assert elsewhere.code == 4 and f"dbname {db18.name}, now postgres" in elsewhere.err, elsewhere.err
    # The variables of rdsrepl itself do not select the server of a saved plan.
    rdsrepl("slot", "create", slot, "--out", str(path), dsn=db18.dsn)
    redirected = rdsrepl("apply", str(path), "--check", env={"RDSREPL_DSN": db15.dsn, "RDSREPL_DBNAME": "postgres"})
    assert redirected.code == 7 and f"/{db18.name}" in redirected.out, redirected.err
    typed = rdsrepl("apply", str(path), "--yes", dsn=db15.dsn)
    assert typed.code == 2 and "rdsrepl apply does not use --" in typed.err
    # The same address, but another server answers.
    rewrite(path, identity={"system_identifier": "7"})
    other = rdsrepl("apply", str(path), "--yes")
    assert other.code == 4 and "for another server: system identifier 7, now " in other.err
    assert not exists(db18, slot)


def damage(path: Path, how: str) -> None:
    text = path.read_text()
    if how == "truncated":
        path.write_text(text[: len(text) // 2])
    elif how == "edited":
        path.write_text(text.replace('"saved"', '"prod"'))
    elif how == "newer":
        path.write_text(text.replace('"rdsrepl_plan": 1', '"rdsrepl_plan": 2'))
    elif how == "writable":
        path.chmod(0o622)
    elif how == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file to another user")
        os.chown(path, 12345, -1)
    elif how == "confirmed":
        rewrite(path, command=("slot", "create", "--yes", "--", "saved"))
    elif how == "executed":
        rewrite(path, command=("psql", "-c", "DROP TABLE t"))
    elif how == "untyped":
        rewrite(path, command=("slot", {"create": 1}))
    elif how == "binary":
        path.write_bytes(b"\xff\x00" * 1000)
    elif how == "directory":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("truncated", "is damaged"),
        ("edited", "was changed after it was saved"),
        ("newer", "has format 2 of plans; this version reads format 1"),
        ("writable", "another user owns it or can write to it"),
        ("foreign", "another user owns it or can write to it"),
        ("confirmed", "a command that --out does not save: slot create --yes -- saved"),
        ("executed", "a command that --out does not save"),
        ("untyped", "is damaged"),
        ("binary", "is damaged"),
        ("directory", "could not use plan file"),
    ],
)
def test_a_file_that_out_did_not_write_is_refused(
    rdsrepl: Program, db18: Database, path: Path, slot: str, how: str, why: str
) -> None:
    assert rdsrepl("slot", "create", slot, "--out", str(path), dsn=db18.dsn).code == 0
    damage(path, how)
    refused = rdsrepl("apply", str(path), "--yes", "-o", "json")
    assert refused.code == 2 and why in refused.error["message"] and refused.error["hint"], refused.err
    assert not exists(db18, slot)


def test_only_a_plan_is_overwritten(rdsrepl: Program, db18: Database, tmp_path: Path, slot: str) -> None:
    mine = tmp_path / "orders.sql"
    mine.write_text("SELECT 1")
    for words, why in (
        (("--out", str(mine)), "exists and is not a plan"),
        (("--out", str(tmp_path / "no" / "plan")), "does not exist"),
        (("--out", "-"), "requires the name of a file"),
        (("--out", str(mine), "--yes"), "cannot be used together with --yes"),
    ):
        refused = rdsrepl("slot", "create", slot, *words, dsn=db18.dsn)
        assert refused.code == 2 and why in refused.err, refused.err
    assert mine.read_text() == "SELECT 1"
    assert rdsrepl("apply", str(tmp_path / "none"), "--yes").code == 3


def test_no_secret_is_in_the_file(rdsrepl: Program, db18: Database, path: Path) -> None:
    info = psycopg.conninfo.conninfo_to_dict(db18.dsn)
    uri = f"postgresql://{info['user']}:geheim@/{db18.name}?host={quote(str(info['host']))}&port={info['port']}"
    words = ("role", "create", "with_secret", "--password-stdin", "--out", str(path))
    made = rdsrepl(*words, env={"RDSREPL_DSN": uri}, input="sesam\n")
    assert made.code == 0, made.err
    text = path.read_text()
    assert "geheim" not in text and "sesam" not in text and "SCRAM" not in text and "********" in text
    # The variable may contain the password when the plan is applied.
    done = rdsrepl("apply", str(path), "--yes", env={"RDSREPL_DSN": uri}, input="sesam\n")
    assert done.code == 0, done.err
    stored = db18.value("SELECT rolpassword FROM pg_authid WHERE rolname = 'with_secret'")
    db18.run("DROP ROLE with_secret")
    assert stored.startswith("SCRAM-SHA-256")


def test_ctrl_c_at_the_question_leaves_the_plan_to_apply(
    rdsrepl: Program, db18: Database, path: Path, slot: str
) -> None:
    assert rdsrepl("slot", "create", slot, "--out", str(path), dsn=db18.dsn).code == 0
    person = Terminal(rdsrepl, "apply", str(path))
    shown = person.wait_for("Apply this plan on")
    assert "Plan: 1 to create, 0 to change, 0 to drop" in shown and "SELECT" not in shown
    person.interrupt()
    assert person.wait() == 130 and saved(path)["applied"] is None and not exists(db18, slot)
    agreeing = Terminal(rdsrepl, "apply", str(path), "--show-sql")
    assert "SELECT" in agreeing.wait_for("[y/N]")
    agreeing.type("y")
    assert agreeing.wait() == 0 and exists(db18, slot)


def test_two_processes_do_not_apply_a_plan_at_once(rdsrepl: Program, db18: Database, path: Path, slot: str) -> None:
    assert rdsrepl("slot", "create", slot, "--out", str(path), dsn=db18.dsn).code == 0
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = rdsrepl("apply", str(path), "--yes")
    assert refused.code == 4 and "another process applies the plan" in refused.err and not exists(db18, slot)


def test_a_plan_that_changed_nothing_can_be_applied_again(
    rdsrepl: Program, db18: Database, path: Path, slot: str
) -> None:
    with psycopg.connect(db18.dsn) as running:
        running.execute("SELECT pg_current_xact_id()")  # the creation of a slot waits for it
        assert rdsrepl("slot", "create", slot, "--timeout", "1s", "--out", str(path), dsn=db18.dsn).code == 0
        failed = rdsrepl("apply", str(path), "--yes")
        assert failed.code == 1 and "timed out" in failed.err and saved(path)["applied"] is None
    assert rdsrepl("apply", str(path), "--yes").code == 0 and exists(db18, slot)


def test_a_typed_confirmation_is_asked_for_when_the_plan_is_applied(cloud: Cloud, path: Path) -> None:
    assert cloud("stream", "create", "planned", "--shards", "1", "--yes").code == 0
    made = cloud("stream", "delete", "planned", "--confirm", "planned", "--out", str(path))
    assert made.code == 0 and saved(path)["identity"]["account"], made.err
    unconfirmed = cloud("apply", str(path), "--yes")
    assert unconfirmed.code == 4 and "--confirm planned" in unconfirmed.err, unconfirmed.err
    rewrite(path, identity={"account": "999999999999"})
    other = cloud("apply", str(path), "--confirm", "planned")
    assert other.code == 4 and "account 999999999999, now " in other.err
    assert cloud("stream", "delete", "planned", "--out", str(path)).code == 0
    assert cloud("apply", str(path), "--confirm", "planned").code == 0
    assert cloud("-t", "sandbox", "cluster", "reboot", "sandbox", "--out", str(path)).code == 0
    identity = saved(path)["identity"]
    assert identity["resource_id"].startswith("cluster-") and cloud("apply", str(path), "--check").code == 7
    rewrite(path, identity={**identity, "writer": "another"})
    failed_over = cloud("apply", str(path), "--yes")
    assert failed_over.code == 4 and f"writer another, now {identity['writer']}" in failed_over.err
    words = ("param-group", "create", "g", "--family", "postgres15", "--kind", "cluster")
    secret = cloud(*words, "--description", "postgresql://u:geheim@h/d", "--out", str(path))
    assert secret.code == 2 and "contains a secret" in secret.err and "geheim" not in path.read_text()


def test_an_empty_plan_is_saved_and_applied_as_nothing(rdsrepl: Program, db18: Database, path: Path, slot: str) -> None:
    db18.run(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    made = rdsrepl("slot", "create", slot, "--out", str(path), "--check", dsn=db18.dsn)
    assert made.code == 0 and saved(path)["plan"]["status"] == "unchanged", made.err
    assert rdsrepl("apply", str(path), "--yes").code == 0
    db18.run(f"SELECT pg_drop_replication_slot('{slot}')")
    grown = rdsrepl("apply", str(path), "--yes")
    assert grown.code == 4 and "not in the saved plan: create logical replication slot" in grown.err
    assert not exists(db18, slot)
