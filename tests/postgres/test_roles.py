"""Roles: which may replicate and why, passwords that stay secret, and roles that must not be dropped."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from rdsrepl import errors
from rdsrepl.plan import Plan
from rdsrepl.postgres import role_plans, roles
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection
    from tests.fixtures.postgres import Database, Servers
    from tests.fixtures.program import Program


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A hostile name for a role, which is dropped after the test."""
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
    create = ("role", "create", role, "--no-password", "--yes", "-o", "json")
    assert rdsrepl(*create, dsn=database.dsn).json["status"] == "unchanged"
    taken = rdsrepl(*create, "--connection-limit", "3", dsn=database.dsn)
    assert (taken.code, taken.error["error"]) == (4, "already_exists")
    assert "CONNECTION LIMIT is -1, not 3" in taken.error["message"]
    dropped = rdsrepl("role", "drop", role, "--yes", dsn=database.dsn)
    assert dropped.code == 0, dropped.err
    assert rdsrepl("role", "drop", role, "--yes", dsn=database.dsn).code == 3


def test_the_clear_password_is_nowhere(database: Database, role: str, rdsrepl: Program) -> None:
    """Neither the log of the server, with every statement, nor the output of the program, with -vv, contains it."""
    secret = "cl3ar-text-Passw0rd"
    with closing(database.connect()) as conn:
        conn.execute(f"ALTER DATABASE \"{database.name}\" SET log_statement = 'all'")
    words = ("-vv", "role", "create", role, "--password-stdin", "--yes")
    result = rdsrepl(*words, dsn=database.dsn, input=secret + "\n")
    assert result.code == 0, result.err
    failed = rdsrepl(*words, "--connection-limit", "5", dsn=database.dsn, input=secret + "\n")
    assert failed.code == 4
    assert "Traceback" in failed.err
    log = database.server.log_file.read_text()
    assert f'CREATE ROLE "{role.replace(chr(34), chr(34) * 2)}"' in log
    for text in (result.out, result.err, failed.out, failed.err, log):
        assert secret not in text
    dsn = database.server.dsn(user=role, dbname=database.name)
    assert rdsrepl("slot", "list", dsn=dsn, env={"PGPASSWORD": secret}).code == 0


def test_bad_words_touch_nothing(db18: Database, rdsrepl: Program) -> None:
    def fails(code: int, *words: str, **options: Any) -> None:
        result = rdsrepl("role", *words, "--yes", "-o", "json", dsn=db18.dsn, **options)
        assert result.code == code, result.err
        assert result.error["hint"]

    fails(2, "create", "x" * 64, "--no-password")
    fails(2, "create", "pg_mine", "--no-password")
    fails(2, "create", "rds_mine", "--no-password")
    fails(2, "create", "unconfirmed")
    fails(2, "create", "two", "--no-password", "--generate-password")
    fails(2, "create", "empty", "--password-stdin", input="")
    fails(3, "create", "reader", "--no-password", "--grant-select", "missing.t")
    fails(3, "create", "reader", "--no-password", "--schema", "missing")
    fails(2, "create", "reader", "--no-password", "--grant-select", "a.b.c.d")
    fails(3, "grant", "missing")
    assert db18.run("SELECT 1 FROM pg_roles WHERE rolname IN ('unconfirmed', 'two', 'empty', 'reader')") == []


def test_a_role_in_use_is_not_dropped(database: Database, role: str, rdsrepl: Program) -> None:
    quoted = sql.Identifier(role).as_string(None)
    database.run(f"CREATE ROLE {quoted} LOGIN PASSWORD 'x'", "CREATE TABLE t (id integer)")
    database.run(f"ALTER TABLE t OWNER TO {quoted}")
    owner = rdsrepl("role", "drop", role, "--yes", dsn=database.dsn)
    assert owner.code == 4
    assert "table public.t " in owner.err
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
    wait_until(lambda: not database.run(f"SELECT 1 FROM pg_stat_activity WHERE usename = $${role}$$"), "it goes")
    assert rdsrepl("role", "drop", role, "--yes", dsn=database.dsn).code == 0


@pytest.fixture(params=[15, 16, 18], ids=["pg15", "pg16", "pg18"], scope="module")
def like_rds(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresServer]:
    """A server with rds_replication and a master user that is not a superuser."""
    made = PostgresServer(tmp_path_factory.mktemp("rds") / "rds", servers.get(request.param).binaries)
    made.initdb()
    made.start()
    with closing(made.connect()) as conn:
        conn.execute("CREATE ROLE rds_replication")
        conn.execute("CREATE ROLE rds_superuser")
        conn.execute("GRANT rds_replication TO rds_superuser WITH ADMIN OPTION")
        conn.execute("CREATE ROLE master LOGIN CREATEROLE CREATEDB PASSWORD 'm' IN ROLE rds_superuser")
        conn.execute("CREATE ROLE plain LOGIN PASSWORD 'p'")
        conn.execute("GRANT CREATE ON DATABASE postgres TO master")
        conn.execute("CREATE ROLE team")
        conn.execute("GRANT rds_replication TO team")
        conn.execute("CREATE ROLE member LOGIN IN ROLE team")
    yield made
    made.stop("immediate")
    made.remove()


def test_on_rds_it_is_membership(like_rds: PostgresServer, rdsrepl: Program) -> None:
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


def carry_out(conn: Connection, plan: Plan) -> list[str]:
    """Run the statements of a plan; the server must not warn."""
    notices: list[str] = []
    conn.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary or ""))
    for step in plan.steps:
        conn.execute(step.sql)
    assert notices == []
    return [step.text for step in plan.steps]


@pytest.fixture
def master(like_rds: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection of the master user."""
    monkeypatch.setenv("PGPASSWORD", "m")
    with closing(psycopg.connect(like_rds.dsn(user="master"), autocommit=True)) as conn:
        yield conn


def test_admin_option_alone_is_no_membership(master: Connection) -> None:
    """Since 16 the creator of a role has the ADMIN OPTION on it, but does not inherit its privileges."""
    carry_out(master, role_plans.create(master, "a_reader", password=None))
    try:
        assert roles.get(master, "master").reasons == ("member of rds_replication through rds_superuser",)
        assert roles.get(master, "a_reader").reasons == ("member of rds_replication",)
    finally:
        carry_out(master, role_plans.drop(master, "a_reader"))


def test_privileges_are_checked_before_a_plan_is_made(like_rds: PostgresServer, master: Connection) -> None:
    """PostgreSQL only warns of a GRANT that grants nothing, if the role has another privilege on the object."""
    with closing(like_rds.connect()) as admin:
        admin.execute("CREATE TABLE public.theirs (id integer)")
        admin.execute("GRANT INSERT ON public.theirs TO master")
        admin.execute("CREATE ROLE their_reader LOGIN")
        admin.execute("GRANT SELECT ON public.theirs TO their_reader")
        admin.execute("CREATE ROLE maker LOGIN CREATEROLE")
    master.execute("CREATE SCHEMA mine CREATE TABLE t (id integer)")
    try:
        with pytest.raises(errors.Denied, match=r"SELECT on public\.theirs: it belongs to"):
            role_plans.create(master, "reader", password=None, tables=["theirs"])
        with pytest.raises(errors.Denied, match=r"SELECT on public\.theirs: it belongs to"):
            role_plans.create(master, "reader", password=None, schemas=["public"])
        carry_out(master, role_plans.create(master, "reader", password=None, tables=["mine.t"]))
        if like_rds.version >= 16:
            with pytest.raises(errors.Denied, match="may not drop role their_reader") as caught:
                role_plans.drop(master, "their_reader")
            assert "ADMIN OPTION" in (caught.value.hint or "")
            with closing(like_rds.connect()) as admin:
                admin.execute("GRANT their_reader TO master WITH ADMIN OPTION")
        with pytest.raises(errors.Refused, match="granted by"):
            role_plans.drop(master, "their_reader")
        with closing(like_rds.connect()) as admin:
            admin.execute("DROP TABLE public.theirs")
        carry_out(master, role_plans.drop(master, "their_reader"))
        with closing(like_rds.connect()) as admin:
            admin.execute("SET SESSION AUTHORIZATION maker")
            if like_rds.version >= 16:
                with pytest.raises(errors.Denied, match="not have the ADMIN OPTION"):
                    role_plans.create(admin, "x", password=None)
            else:
                assert role_plans.create(admin, "x", password=None)
        assert carry_out(master, role_plans.drop(master, "reader"))[-1] == 'DROP ROLE "reader"'
    finally:
        with closing(like_rds.connect()) as admin:
            admin.execute("DROP TABLE IF EXISTS theirs")
            admin.execute("DROP SCHEMA mine CASCADE")
            admin.execute("DROP ROLE IF EXISTS reader, their_reader, maker")


def test_which_role_may_set_the_attribute(database: Database, role: str) -> None:
    maker = f"maker_{database.name}"
    with closing(database.connect()) as conn:
        conn.execute(f"CREATE ROLE {maker} CREATEROLE")
        try:
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            conn.execute(f"SET SESSION AUTHORIZATION {maker}")
            for plan in (lambda: role_plans.create(conn, "x", password=None), lambda: role_plans.grant(conn, role)):
                with pytest.raises(errors.Denied, match="may not set the REPLICATION attribute"):
                    plan()
            conn.execute("RESET SESSION AUTHORIZATION")
            conn.execute(f"ALTER ROLE {maker} REPLICATION")
            conn.execute(f"SET SESSION AUTHORIZATION {maker}")
            if database.server.version < 16:
                with pytest.raises(errors.Denied, match="may not set the REPLICATION attribute"):
                    role_plans.create(conn, "x", password=None)
            else:
                with pytest.raises(errors.Denied, match="may not change role"):
                    role_plans.grant(conn, role)
                own = f"own_{database.name}"
                carry_out(conn, role_plans.create(conn, own, password=None))
                carry_out(conn, role_plans.drop(conn, own))
        finally:
            conn.execute("RESET SESSION AUTHORIZATION")
            conn.execute(f"DROP ROLE {maker}")


def test_drop_revokes_all_privileges_in_this_database(database: Database, role: str) -> None:
    owner = f'own "er" {{}} {database.name}'
    name, other = sql.Identifier(role), sql.Identifier(owner)
    with closing(database.connect()) as conn:
        conn.execute(sql.SQL("CREATE ROLE {}").format(other))
        carry_out(conn, role_plans.create(conn, role, password=None))
        for statement in (
            'CREATE SCHEMA "S {{}}" CREATE TABLE "T %" (id integer, x integer) CREATE SEQUENCE q',
            "CREATE FUNCTION \"S {{}}\".f(a integer, VARIADIC b text[]) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            'GRANT USAGE ON SCHEMA "S {{}}" TO {name}',
            'GRANT SELECT (id) ON "S {{}}"."T %" TO {name}',
            'GRANT USAGE ON SEQUENCE "S {{}}".q TO {name}',
            'GRANT EXECUTE ON FUNCTION "S {{}}".f TO {name}',
            "GRANT CONNECT ON DATABASE {database} TO {name}",
            "ALTER DEFAULT PRIVILEGES FOR ROLE {other} GRANT SELECT ON TABLES TO {name}",
            'ALTER DEFAULT PRIVILEGES IN SCHEMA "S {{}}" GRANT USAGE ON SEQUENCES TO {name}',
        ):
            conn.execute(sql.SQL(statement).format(name=name, other=other, database=sql.Identifier(database.name)))
        assert len(carry_out(conn, role_plans.drop(conn, role))) == 8
        with pytest.raises(errors.NotFound):
            roles.get(conn, role)
        conn.execute(sql.SQL("DROP ROLE {}").format(other))


def test_drop_refuses_what_it_cannot_revoke(database: Database, role: str, make_database: Any) -> None:
    elsewhere = make_database(database.server)
    quoted = sql.Identifier(role).as_string(None)

    def refused() -> errors.Refused:
        with closing(database.connect()) as conn, pytest.raises(errors.Refused) as caught:
            role_plans.drop(conn, role)
        assert caught.value.hint
        return caught.value

    database.run(f"CREATE ROLE {quoted} LOGIN", "CREATE TABLE t (id integer)")
    elsewhere.run("CREATE TABLE t (id integer)", f"ALTER TABLE t OWNER TO {quoted}")
    assert f"owns 1 object in {elsewhere.name}" in refused().message
    elsewhere.run(f"ALTER TABLE t OWNER TO {database.server.superuser}", f"GRANT SELECT ON t TO {quoted}")
    error = refused()
    assert f"other databases: {elsewhere.name}" in error.message
    assert f"DROP OWNED BY {quoted}" in str(error.hint)
    elsewhere.run(f"DROP OWNED BY {quoted}")
    database.run(f"CREATE POLICY p ON t TO {quoted}")
    assert "policy p on table t" in refused().message
    database.run("DROP POLICY p ON t", f"ALTER DATABASE {elsewhere.name} OWNER TO {quoted}")
    assert f"owns database {elsewhere.name}" in refused().message
    database.run(f"ALTER DATABASE {elsewhere.name} OWNER TO {database.server.superuser}")
    for name in (database.server.superuser, "pg_monitor"):
        with closing(database.connect()) as conn, pytest.raises(errors.Refused, match="cannot be dropped"):
            role_plans.drop(conn, name)


def test_names_of_schemas_and_tables(database: Database, role: str) -> None:
    with closing(database.connect()) as conn:
        conn.execute('CREATE SCHEMA "Odd Name" CREATE TABLE "T" (id integer)')
        for given in ("Odd Name", '"Odd Name"'):
            plan = role_plans.create(conn, role, password=None, schemas=[given], tables=['"Odd Name"."T"'])
            assert [step.text for step in plan.steps][1:] == [
                f'GRANT USAGE ON SCHEMA "Odd Name" TO {sql.Identifier(role).as_string(None)}',
                f'GRANT SELECT ON ALL TABLES IN SCHEMA "Odd Name" TO {sql.Identifier(role).as_string(None)}',
                'ALTER DEFAULT PRIVILEGES IN SCHEMA "Odd Name" GRANT SELECT ON TABLES TO '
                + sql.Identifier(role).as_string(None),
            ]
            assert f"those that {database.server.superuser} creates" in plan.warnings[0]
        # PUBLIC already has USAGE on it, and it has no tables yet.
        assert len(role_plans.create(conn, role, password=None, schemas=["PUBLIC"]).steps) == 2
        for missing in ("nope", "a b", "a.b", '"'):
            with pytest.raises(errors.NotFound):
                role_plans.create(conn, role, password=None, schemas=[missing])
        with pytest.raises(errors.BadValue, match="system schema"):
            role_plans.create(conn, role, password=None, schemas=["pg_catalog"])
        with pytest.raises(errors.NotFound):
            role_plans.create(conn, role, password=None, tables=["Odd.T"])


def test_odd_passwords_names_and_times(database: Database, role: str) -> None:
    with closing(database.connect()) as conn:
        for bad in ("", "a\0b", "\udcff"):
            with pytest.raises(errors.BadValue, match="password is not valid") as caught:
                role_plans.create(conn, role, password=bad)
            assert caught.value.__context__ is None or bad not in repr(caught.value.__cause__)
        for bad in ("", "é" * 32, "\udcff", "pg_x", "rds_x", "rdsadmin", "rdsrepladmin", "public", "none"):
            with pytest.raises(errors.BadValue):
                role_plans.create(conn, bad, password=None)
        plan = role_plans.create(conn, role, password="pässwörd '", connection_limit=3)
        assert "pässwörd" not in repr(plan)
        assert plan.steps[0].text.endswith("LOGIN REPLICATION CONNECTION LIMIT 3 PASSWORD '********'")
        carry_out(conn, plan)
        alter = sql.SQL("ALTER ROLE {} VALID UNTIL {}")
        for until_, year in (("infinity", None), ("-infinity", 1), ("20000-01-01", None), ("2031-02-03", 2031)):
            conn.execute(alter.format(sql.Identifier(role), sql.Literal(until_)))
            found = roles.get(conn, role).rolvaliduntil
            assert (found.year if found else None) == year


def test_a_generated_password_survives_a_plan_that_stops(database: Database, role: str, rdsrepl: Program) -> None:
    database.run(
        "CREATE TABLE t (id integer)",
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$",
        "CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('GRANT') EXECUTE FUNCTION no()",
    )
    words = ("role", "create", role, "--generate-password", "--grant-select", "t", "--yes", "-o", "json")
    result = rdsrepl(*words, dsn=database.dsn)
    assert (result.code, result.error["error"], result.json["status"]) == (6, "applied_in_part", "partial")
    env = {"PGPASSWORD": result.json["password"]}
    assert rdsrepl("slot", "list", dsn=database.server.dsn(user=role, dbname=database.name), env=env).code == 0


@pytest.mark.parametrize("second", ["from the keyboard", "another"])
def test_the_password_is_asked_for_on_a_terminal(db18: Database, rdsrepl: Program, second: str) -> None:
    name, secret = f"asked_{db18.name}", "from the keyboard"
    ours, theirs = pty.openpty()
    process = rdsrepl.start(
        "role", "create", name, dsn=db18.dsn,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env={"TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    try:
        for prompt, answer in ((b"Password for role", secret), (b"Again: ", second), (b"[y/N] ", "y")):
            while prompt not in seen and process.poll() is None:
                seen += os.read(ours, 4096)
            if process.poll() is None:
                os.write(ours, answer.encode() + b"\n")
            if answer != secret and answer == second:
                break
        code = process.wait(120)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert secret.encode() not in seen
    if second != secret:
        assert code == 2
        assert db18.run(f"SELECT 1 FROM pg_roles WHERE rolname = '{name}'") == []
        return
    assert code == 0
    try:
        assert db18.value(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{name}'").startswith("SCRAM-SHA-256$")
    finally:
        db18.run(f"DROP ROLE {name}")


def test_a_standby_is_said_to_be_one(pg16: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    standby = pg16.clone(tmp_path_factory.mktemp("roles") / "standby", slot="roles_standby")
    try:
        standby.start()
        with closing(standby.connect()) as conn:
            assert roles.ls(conn)
            with pytest.raises(errors.NotPrimary):
                role_plans.create(conn, "x", password=None)
    finally:
        standby.stop("immediate")
        standby.remove()
        with closing(pg16.connect()) as conn:
            wait_until(
                lambda: (
                    not conn.execute(
                        "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'roles_standby' AND active"
                    ).fetchone()
                ),
                "the standby's walsender ends",
            )
            conn.execute("SELECT pg_drop_replication_slot('roles_standby')")


def test_names_are_completed_from_the_named_database(db18: Database, rdsrepl: Program) -> None:
    name = f"tabbed_{db18.name}"
    db18.run(f"CREATE ROLE {name}")
    try:
        words = f"rdsrepl --dsn '{db18.dsn}' role drop tabbed_"
        env = {"_RDSREPL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "5"}
        result = rdsrepl(env=env)
        assert (result.out.split(), result.err) == ([name], "")
    finally:
        db18.run(f"DROP ROLE {name}")


def test_a_password_is_changed_and_never_shown(database: Database, role: str, rdsrepl: Program) -> None:
    assert rdsrepl("role", "create", role, "--no-password", "--yes", dsn=database.dsn).code == 0
    words = ("role", "password", role, "--yes")
    given = rdsrepl(*words, "--password-stdin", "-vv", dsn=database.dsn, input="s3 cret\n")
    assert given.code == 0, given.err
    assert "s3 cret" not in given.out + given.err
    as_role = database.server.dsn(user=role, dbname=database.name)
    with psycopg.connect(as_role, password="s3 cret"):
        pass
    made = rdsrepl(*words, "--generate-password", "-o", "json", dsn=database.dsn)
    assert "********" in made.json["steps"][0]["statement"]
    with psycopg.connect(as_role, password=made.json["password"]) as conn:
        assert conn.execute("SELECT current_user").fetchone() == (role,)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(as_role, password="s3 cret").close()
    for refused, code in (("rds_superuser", 3), ("pg_monitor", 4)):
        assert rdsrepl("role", "password", refused, "--generate-password", "--yes", dsn=database.dsn).code == code
    assert rdsrepl("role", "password", role, dsn=database.dsn).code == 2
    own = rdsrepl(*words, "--generate-password", dsn=as_role, env={"PGPASSWORD": made.json["password"]})
    # Before 16 a role with the REPLICATION attribute may not change its own password; on RDS no role has the attribute.
    assert own.code == (5 if database.server.version < 16 else 0), own.err
    assert own.code == 0 or "as a superuser" in own.err


def test_show_names_memberships_settings_and_slots_in_use(database: Database, role: str, rdsrepl: Program) -> None:
    quoted = '"' + role.replace('"', '""') + '"'
    group, slot = f"g_{database.name}", f"used_{database.name}"
    database.run(
        f"CREATE ROLE {group}",
        f"CREATE ROLE {group}_outer",
        f"CREATE ROLE {quoted} LOGIN REPLICATION PASSWORD 'secret' CONNECTION LIMIT 3 VALID UNTIL '2030-01-31'",
        f"GRANT {group}_outer TO {group}",
        f"GRANT {group} TO {quoted}",
        f"ALTER ROLE {quoted} SET work_mem = '8MB'",
        "CREATE PUBLICATION owned",
        f"GRANT CREATE ON DATABASE {database.name} TO {quoted}",
        f"ALTER PUBLICATION owned OWNER TO {quoted}",
        f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')",
    )
    try:
        tail = rdsrepl.start(
            *("slot", "tail", slot, "--publication", "owned"),
            dsn=database.server.dsn(user=role, dbname=database.name),
            env={"PGPASSWORD": "secret"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            in_use = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"
            wait_until(lambda: database.value(in_use) or tail.poll() is not None, "the slot is in use")
            assert tail.poll() is None, tail.stderr and tail.stderr.read()
            shown = rdsrepl("role", "show", role, "-o", "json", dsn=database.dsn).json
            table = rdsrepl("role", "show", role, dsn=database.dsn).out
        finally:
            tail.terminate()
            tail.wait(timeout=30)
        assert shown["role"]["rolname"] == role and shown["role"]["rolconnlimit"] == 3
        ways = [(one["role"], one["through"]) for one in shown["memberships"]]
        assert ways == [(group, None), (f"{group}_outer", group)]
        assert {"name": "work_mem", "value": "8MB", "database": None} in shown["settings"]
        assert [one["slot_name"] for one in shown["slots"]] == [slot]
        assert shown["connections"] >= 1 and shown["publications"] == ["owned"]
        assert f"{group}_outer (through {group})" in table and "work_mem = 8MB" in table and "limit 3" in table
        assert rdsrepl("role", "show", group, "-o", "json", dsn=database.dsn).json["members"] == [role]
        assert rdsrepl("role", "show", "nobody_here", dsn=database.dsn).code == 3
    finally:
        database.run(f"DROP OWNED BY {quoted}", f"DROP ROLE {quoted}", f"DROP ROLE {group}, {group}_outer")
