"""Sessions have the same parameters whatever the role and database set, and leave nothing behind in a pooler."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest

from rdsrepl import errors
from rdsrepl.config import Target
from rdsrepl.postgres import connection, relations, settings, verification
from tests.fixtures.missing import missing
from tests.fixtures.postgres import Database, Servers, drop_database, new_database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until

_ROLE_SETTINGS = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "<-01>+01",
    "statement_timeout": "5min",
    "lock_timeout": "1s",
    "standard_conforming_strings": "off",
    "row_security": "on",
    "bytea_output": "escape",
    "extra_float_digits": "-3",
    "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable",
    "idle_in_transaction_session_timeout": "1s",
    "search_path": "mine",
}
_PINNED = {
    "search_path": "",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "standard_conforming_strings": "on",
    "row_security": "off",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "0",
}


@pytest.fixture(scope="module", params=[15, 18], ids=["pg15", "pg18"])
def place(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Database]:
    """A database with the role ``boss``, a superuser with a password and other settings for every parameter."""
    made = new_database(servers.get(request.param))
    made.run(
        "CREATE ROLE boss SUPERUSER LOGIN PASSWORD 'x'",
        "CREATE SCHEMA mine",
        "CREATE TABLE mine.orders (id integer PRIMARY KEY, at timestamptz DEFAULT now())",
        *(f"ALTER ROLE boss IN DATABASE {made.name} SET {name} = '{value}'" for name, value in _ROLE_SETTINGS.items()),
    )
    yield made
    drop_database(made)
    with closing(made.server.connect()) as conn:
        conn.execute("DROP ROLE boss")


def as_boss(place: Database, **more: str) -> Target:
    keywords = {"host": "127.0.0.1", "port": str(place.server.port), "user": "boss", "password": "x"}
    return Target("the role's", keywords={**keywords, "dbname": place.name, **more})


def shown(conn: connection.Connection, name: str) -> str:
    value = connection.setting(conn, name)
    return "" if value == '""' else value


def test_a_session_has_what_the_program_depends_on(place: Database) -> None:
    """The settings of the role have no effect in an ordinary session and in a replication session."""
    with closing(psycopg.connect(**as_boss(place).keywords)) as conn:  # type: ignore[arg-type]
        row = conn.execute("SHOW datestyle").fetchone()
        assert row == ("German, DMY",)
    for replication in (False, True):
        with connection.open(as_boss(place), replication=replication) as conn:
            assert {name: shown(conn, name) for name in _PINNED} == _PINNED
            if place.server.version >= 17 and not replication:
                assert shown(conn, "transaction_timeout") == "0"
        with connection.open(as_boss(place), replication=replication, settings={"lock_timeout": "2s"}) as conn:
            assert shown(conn, "lock_timeout") == "2s"
            assert shown(conn, "search_path") == ""
        # The options of the user have an effect, except on the path and the formats of values.
        options = "-c statement_timeout=7s -csearch_path=mine --lock-timeout=9s -c geqo=off"
        with connection.open(as_boss(place, options=options), replication=replication) as conn:
            found = [shown(conn, name) for name in ("statement_timeout", "lock_timeout", "geqo", "search_path")]
            assert found == ["7s", "9s", "off", ""]


def test_a_timeout_that_no_statement_meets(place: Database, rdsrepl: Program) -> None:
    here = f"ALTER ROLE boss IN DATABASE {place.name} SET"
    place.run(f"{here} statement_timeout = 1", f"{here} idle_in_transaction_session_timeout = 1")
    try:
        for _ in range(5):
            with connection.open(as_boss(place)) as conn:
                assert shown(conn, "statement_timeout") == "0"
                assert conn.execute("SELECT pg_sleep(0.01)").fetchone() is not None
                assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    finally:
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            place.run(f"{here} {name} = '{_ROLE_SETTINGS[name]}'")


def test_what_the_server_has_is_read_not_what_the_session_has(place: Database) -> None:
    """A parameter group is compared with the values of the server, and verified by them."""
    wanted = {"statement_timeout": "300000", "lock_timeout": "1000", "bytea_output": "escape"}
    with connection.open(as_boss(place)) as conn:
        assert {name: found.setting for name, found in settings.ls(conn, wanted).items()} == wanted
    assert verification.settings(wanted).probe(as_boss(place)).met


def test_a_name_without_a_schema_is_looked_up_in_the_roles_own_path(place: Database) -> None:
    with connection.open(as_boss(place)) as conn:
        oid = conn.execute("SELECT oid FROM pg_catalog.pg_class WHERE relname = 'orders'").fetchone()
        assert oid is not None
        assert relations.find_oid(conn, "orders") == oid[0]
        assert relations.find_oid(conn, "mine.orders") == oid[0]
        assert relations.find_oid(conn, '"ORDERS"') is None
        assert shown(conn, "search_path") == ""
    with connection.open(as_boss(place, options="-c search_path=public")) as conn:
        assert relations.find_oid(conn, "orders") is None


class Pooler:
    """PgBouncer in front of a server, with one server connection for each database and role."""

    def __init__(self, place: Database, mode: str, directory: Path) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            missing("pgbouncer", "apt-get install pgbouncer")
        self.directory = directory
        (directory / "users").write_text('"boss" "x"\n')
        # Without a query that resets sessions, so that the test sees what remains set.
        (directory / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={place.server.port}\n[pgbouncer]\nlisten_addr =\n"
            f"unix_socket_dir = {directory}\nlisten_port = 6432\nauth_type = trust\nauth_file = {directory}/users\n"
            f"pool_mode = {mode}\ndefault_pool_size = 1\nserver_reset_query =\n"
        )
        root = os.getuid() == 0
        self.process = subprocess.Popen(
            [program, "-q", str(directory / "pgbouncer.ini")],
            stderr=subprocess.DEVNULL,
            **({"user": 65534, "group": 65534, "extra_groups": []} if root else {}),  # type: ignore[call-overload]
        )
        wait_until(lambda: (directory / ".s.PGSQL.6432").exists(), "pgbouncer listens")
        self.dsn = f"host={directory} port=6432 user=boss dbname={place.name}"

    def session(self) -> tuple[int, dict[str, str]]:
        """Return the PID of the server process, and all parameters of its session."""
        with closing(psycopg.connect(self.dsn, autocommit=True)) as conn:
            rows = conn.execute("SELECT name, setting FROM pg_settings WHERE name <> 'application_name'").fetchall()
            pid = conn.execute("SELECT pg_backend_pid()").fetchone()
        assert pid is not None
        return pid[0], dict(rows)


@pytest.fixture
def pooler(place: Database) -> Iterator[Pooler]:
    """Session pooling for one version, transaction pooling for the other."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pooler-")))
        directory.chmod(0o777)
        made = Pooler(place, "session" if place.server.version == 15 else "transaction", directory)
        stack.callback(made.process.wait, 10)
        stack.callback(made.process.terminate)
        yield made


def test_through_a_pooler(pooler: Pooler, place: Database, rdsrepl: Program) -> None:
    """Commands work as without a pooler, or say why not; the next client has its own settings."""
    before = pooler.session()
    place.run("SELECT pg_create_logical_replication_slot('pooled', 'pgoutput')")
    try:
        for words in (
            ("slot", "list"),
            ("slot", "show", "pooled"),
            ("slot", "check"),
            ("doctor", "--only", "replication_slots"),
            ("role", "list"),
            ("publication", "create", "shop", "--table", "orders", "--yes"),
            ("publication", "list"),
            ("publication", "drop", "shop", "--yes"),
        ):
            result = rdsrepl(*words, dsn=pooler.dsn)
            assert result.code in (0, 8, 9), (words, result.err)
            assert pooler.session() == before, words
        for words in (("slot", "create", "another", "--yes"), ("slot", "drop", "pooled", "--yes")):
            result = rdsrepl(*words, "-o", "json", dsn=pooler.dsn)
            assert (result.code, result.error["error"]) == (4, "refused"), result.err
            assert "pooler" in result.error["message"]
        assert place.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name IN ('pooled', 'another')") == 1
        with pytest.raises(errors.Unsupported, match="unsupported startup parameter"):
            connection.connect(Target("pooled", pooler.dsn), replication=True)
        listed = rdsrepl("slot", "list", "-o", "json", dsn=pooler.dsn, env={"PGOPTIONS": "-c statement_timeout=5s"})
        assert (listed.code, listed.error["error"]) == (4, "unsupported")
        assert "PGOPTIONS" in listed.error["hint"]
        assert pooler.session() == before
    finally:
        place.run("SELECT pg_drop_replication_slot('pooled')")


def test_values_through_a_pooler(pooler: Pooler, place: Database) -> None:
    """The parameters are set in each transaction, begun by a statement or by the program."""
    with connection.open(Target("pooled", pooler.dsn), settings={"lock_timeout": "3s"}) as conn:
        assert connection.is_pooled(conn)
        expected = {**_PINNED, "lock_timeout": "3s"}
        assert {name: shown(conn, name) for name in _PINNED} == expected
        row = conn.execute("SELECT '2026-02-01 00:00:00+00'::timestamptz, now() AT TIME ZONE 'UTC'").fetchone()
        assert row is not None and row[0].isoformat() == "2026-02-01T00:00:00+00:00"
        with conn.transaction():
            assert {name: shown(conn, name) for name in _PINNED} == expected
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        connection.configure(conn, {"client_connection_check_interval": "1s"})
        assert shown(conn, "client_connection_check_interval") == "1s"
        assert shown(conn, "search_path") == ""
    with closing(psycopg.connect(pooler.dsn, autocommit=True)) as plain:
        assert plain.execute("SHOW client_connection_check_interval").fetchone() == ("0",)
