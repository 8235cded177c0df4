"""Roles: who may replicate and why, secrets that stay secret, and nobody else's role dropped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from rdsrepl.sandbox.servers import Server
from tests.test_tail_delivery import until

if TYPE_CHECKING:
    from tests.conftest import Database, Program, Servers


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role's name, hostile on purpose; the role goes with the test."""
    name = f'r "q" é🐘 {database.name}'
    yield name
    with closing(database.connect()) as conn:
        if conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone():
            conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_create_use_grant_drop(database: Database, role: str, rdsrepl: Program) -> None:
    database.run(
        "CREATE SCHEMA s",
        "CREATE TABLE s.a (id integer PRIMARY KEY)",
        "CREATE TABLE t (id integer PRIMARY KEY)",
        "CREATE PUBLICATION p FOR ALL TABLES",
    )
    words = ("role", "create", role, "--generate-password", "--grant-select", "t", "--yes", "-o", "json")
    created = rdsrepl(*words, dsn=database.dsn)
    assert created.code == 0, created.err
    password = created.json["password"]
    assert len(password) == 32
    assert password not in created.err
    assert "********" in created.json["steps"][0]["statement"]
    stored = database.value(f"SELECT rolpassword FROM pg_authid WHERE rolname = $${role}$$")
    assert stored.startswith("SCRAM-SHA-256$")
    dsn = database.server.dsn(user=role, dbname=database.name)
    env = {"PGPASSWORD": password}
    slot = f"s_{database.name}"
    assert rdsrepl("slot", "create", slot, "--yes", dsn=dsn, env=env).code == 0
    database.run("INSERT INTO t VALUES (1)")
    tail = rdsrepl("slot", "tail", slot, "--until-now", dsn=dsn, env=env)
    assert tail.lines[0]["after"] == {"id": 1}
    granted = rdsrepl("role", "grant", role, "--schema", "s", "--yes", "-o", "json", dsn=database.dsn)
    assert len(granted.json["steps"]) == 3
    again = rdsrepl("role", "grant", role, "--schema", "s", "--grant-select", "t", "-o", "json", dsn=database.dsn)
    assert (again.code, again.json["status"]) == (0, "unchanged")
    database.run("CREATE TABLE s.later (id integer)")
    assert database.value(f"SELECT has_table_privilege($${role}$$, 's.later', 'SELECT')")
    listed = {entry["rolname"]: entry for entry in rdsrepl("role", "list", "-o", "json", dsn=database.dsn).json}
    assert (listed[role]["may_replicate"], listed[role]["reasons"]) == (True, ["REPLICATION attribute"])
    taken = rdsrepl("role", "create", role, "--no-password", "--yes", "-o", "json", dsn=database.dsn)
    assert (taken.code, taken.error["error"]) == (4, "already_exists")
    dropped = rdsrepl("role", "drop", role, "--yes", dsn=database.dsn)
    assert dropped.code == 0, dropped.err
    assert rdsrepl("role", "drop", role, "--yes", dsn=database.dsn).code == 3


def test_the_clear_password_is_nowhere(database: Database, role: str, rdsrepl: Program) -> None:
    """Neither in the server's log, which logs every statement, nor in what the program prints, with -vv as well."""
    secret = "cl3ar-text-Passw0rd"
    with closing(database.connect()) as conn:
        conn.execute(f"ALTER DATABASE \"{database.name}\" SET log_statement = 'all'")
    words = ("-vv", "role", "create", role, "--password-stdin", "--yes")
    result = rdsrepl(*words, dsn=database.dsn, input=secret + "\n")
    assert result.code == 0, result.err
    failed = rdsrepl(*words, dsn=database.dsn, input=secret + "\n")
    assert failed.code == 4
    assert "Traceback" in failed.err
    log = database.server.log_file.read_text()
    assert f'CREATE ROLE "{role.replace(chr(34), chr(34) * 2)}"' in log
    for text in (result.out, result.err, failed.out, failed.err, log):
        assert secret not in text
    dsn = database.server.dsn(user=role, dbname=database.name)
    assert rdsrepl("slot", "list", dsn=dsn, env={"PGPASSWORD": secret}).code == 0


def test_bad_words_touch_nothing(database: Database, rdsrepl: Program) -> None:
    def fails(code: int, *words: str, **options: Any) -> None:
        result = rdsrepl("role", *words, "--yes", "-o", "json", dsn=database.dsn, **options)
        assert result.code == code, result.err
        assert result.error["hint"]

    fails(2, "create", "x" * 64, "--no-password")
    fails(2, "create", "pg_mine", "--no-password")
    fails(2, "create", "rds_mine", "--no-password")
    fails(2, "create", "nobody_asks")
    fails(2, "create", "two", "--no-password", "--generate-password")
    fails(2, "create", "empty", "--password-stdin", input="")
    fails(3, "create", "reader", "--no-password", "--grant-select", "missing.t")
    fails(3, "create", "reader", "--no-password", "--schema", "missing")
    fails(2, "create", "reader", "--no-password", "--grant-select", "a.b.c.d")
    fails(3, "grant", "missing")
    assert database.run("SELECT 1 FROM pg_roles WHERE rolname IN ('nobody_asks', 'two', 'empty', 'reader')") == []


def test_a_role_in_use_is_not_dropped(database: Database, role: str, rdsrepl: Program) -> None:
    quoted = sql.Identifier(role).as_string(None)
    database.run(f"CREATE ROLE {quoted} LOGIN PASSWORD 'x'", "CREATE TABLE t (id integer)")
    with closing(database.server.connect()) as conn:
        conn.execute(f"ALTER TABLE IF EXISTS t OWNER TO {quoted}")
    database.run(f"ALTER TABLE t OWNER TO {quoted}")
    owner = rdsrepl("role", "drop", role, "--yes", dsn=database.dsn)
    assert owner.code == 4
    assert "table t" in owner.err
    database.run("DROP TABLE t")
    script = "import psycopg, sys; c = psycopg.connect(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    psql = subprocess.Popen(
        [sys.executable, "-c", script, database.server.dsn(user=role, dbname=database.name)],
        env={**rdsrepl.env, "PGPASSWORD": "x"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert psql.stdout is not None
    psql.stdout.readline()
    busy = rdsrepl("role", "drop", role, "--yes", dsn=database.dsn)
    psql.communicate()
    assert busy.code == 4
    assert "PID" in busy.err
    until(lambda: not database.run(f"SELECT 1 FROM pg_stat_activity WHERE usename = $${role}$$"), "it goes")
    for other in (database.server.superuser, "pg_monitor"):
        assert rdsrepl("role", "drop", other, "--yes", dsn=database.dsn).code in (3, 4)
    assert rdsrepl("role", "drop", role, "--yes", dsn=database.dsn).code == 0


@pytest.fixture(params=[15, 16, 18])
def like_rds(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Server]:
    """A server with rds_replication and a master user that is no superuser."""
    made = Server(tmp_path / "rds", servers.get(request.param).binaries)
    made.initdb()
    made.start()
    with closing(made.connect()) as conn:
        conn.execute("CREATE ROLE rds_replication")
        conn.execute("CREATE ROLE rds_superuser")
        conn.execute("GRANT rds_replication TO rds_superuser WITH ADMIN OPTION")
        conn.execute("CREATE ROLE master LOGIN CREATEROLE CREATEDB PASSWORD 'm' IN ROLE rds_superuser")
        conn.execute("CREATE ROLE plain LOGIN PASSWORD 'p'")
        conn.execute("CREATE ROLE team")
        conn.execute("GRANT rds_replication TO team")
        conn.execute("CREATE ROLE member LOGIN IN ROLE team")
    yield made
    made.stop("immediate")
    made.remove()


def test_on_rds_it_is_membership(like_rds: Server, rdsrepl: Program) -> None:
    dsn, env = like_rds.dsn(user="master"), {"PGPASSWORD": "m"}
    created = rdsrepl("role", "create", "cdc", "--generate-password", "--yes", "-o", "json", dsn=dsn, env=env)
    assert created.code == 0, created.err
    assert [step["statement"] for step in created.json["steps"]][1] == 'GRANT "rds_replication" TO "cdc"'
    listed = {e["rolname"]: e for e in rdsrepl("role", "list", "--all", "-o", "json", dsn=dsn, env=env).json}
    assert (listed["cdc"]["rolreplication"], listed["cdc"]["may_replicate"]) == (False, True)
    assert listed["cdc"]["reasons"] == ["member of rds_replication"]
    assert listed["member"]["reasons"] == ["member of rds_replication through team"]
    assert (listed["plain"]["may_replicate"], listed["plain"]["reasons"]) == (False, [])
    granted = rdsrepl("role", "grant", "plain", "--yes", dsn=dsn, env=env)
    assert granted.code == 0, granted.err
    refused = rdsrepl(
        "role", "create", "x", "--no-password", "--yes", "-o", "json",
        dsn=like_rds.dsn(user="plain"), env={"PGPASSWORD": "p"},
    )  # fmt: skip
    assert (refused.code, refused.error["error"]) == (5, "denied")
    assert rdsrepl("role", "drop", "cdc", "--yes", dsn=dsn, env=env).code == 0
