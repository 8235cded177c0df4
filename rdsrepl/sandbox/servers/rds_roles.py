"""What makes a plain PostgreSQL look like one of RDS: its roles, and what their members may do.

On RDS membership of ``rds_replication`` is enough to replicate, and of ``rds_superuser`` to publish all tables. Plain
PostgreSQL asks for the ``REPLICATION`` attribute and for a superuser, and neither is inherited. So here

- the SQL functions on slots are made anew to run as their owner, ``rdsrepladmin``, which has the ``REPLICATION``
  attribute and nothing else, and only members of ``rds_replication`` may call them;
- ``CREATE`` and ``ALTER PUBLICATION`` of all tables or of schemas make a member of ``rds_superuser`` a superuser from
  the start to the end of that one statement, in its own transaction, so nobody ever sees it;
- ``pg_settings`` lists RDS's own parameters as well, as it does there;
- a replication connection gets the attribute on loan from the endpoint (``endpoint.py``).

A superuser runs programs as whoever started the server. So the master user must never be one while code of its own
runs. The statement that is raised is the whole query that the client sent, no function's, no DO block's and no
parameter's; and by its grammar it has names and options in it, but no expression (a row filter's constants are
evaluated while the statement is read, and the CHECK of a domain in them is a function of anybody's).
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.sandbox.servers.postgres_server import PostgresServer

MASTER_USER: Final = "dbadmin"
DATABASE: Final = "app"

_ROLES: Final = ("rds_superuser", "rds_replication", "rds_password", "rds_iam")

# What rds_superuser holds, and may pass on, by the version that brought it.
_SUPERUSER_HOLDS: Final[tuple[tuple[str, int], ...]] = (
    ("rds_replication", 0),
    ("rds_password", 0),
    ("pg_monitor", 0),
    ("pg_signal_backend", 0),
    ("pg_checkpoint", 15),
    ("pg_create_subscription", 16),
    ("pg_use_reserved_connections", 16),
)

# Owns the functions on slots; RDS has a role of that name and with that attribute.
_REPLICATOR: Final = "rdsrepladmin"
# Before 16 whoever may create roles may grant any but a superuser's. These run programs and read files as the server.
_PROGRAM_ROLES: Final = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")

# Every function that checks has_rolreplication(); the signatures differ by version, so they are taken from pg_proc.
# The longest name, with _BUILTIN before it, still has fewer than 64 bytes.
_BUILTIN: Final = "rdsadmin_builtin_"
_SLOT_FUNCTIONS: Final = """
    SELECT oid::regprocedure::text, proname::text, pg_get_functiondef(oid)
    FROM pg_catalog.pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN (
        'pg_create_logical_replication_slot', 'pg_create_physical_replication_slot',
        'pg_copy_logical_replication_slot', 'pg_copy_physical_replication_slot',
        'pg_drop_replication_slot', 'pg_replication_slot_advance', 'pg_sync_replication_slots',
        'pg_logical_slot_get_changes', 'pg_logical_slot_get_binary_changes',
        'pg_logical_slot_peek_changes', 'pg_logical_slot_peek_binary_changes')
"""

# The statements that are raised. Nothing in them is evaluated: the one pair of parentheses holds WITH's options.
_SPACE: Final = r"[ \t\n\r\f\v]"
_NAME: Final = r'(?:[a-z_][a-z0-9_$]*|"(?:[^"]|"")+")'
_TABLE: Final = rf"TABLE{_SPACE}+(?:ONLY{_SPACE}+)?{_NAME}(?:\.{_NAME})?"
_SCHEMA: Final = rf"TABLES{_SPACE}+IN{_SPACE}+SCHEMA{_SPACE}+{_NAME}"
_RELATION: Final = rf"{_NAME}(?:\.{_NAME})?"
_ALL: Final = rf"ALL{_SPACE}+(?:TABLES|SEQUENCES)"
_OBJECT: Final = rf"(?:{_ALL}|{_SCHEMA}|{_TABLE}|{_RELATION})"
_OBJECTS: Final = rf"{_OBJECT}(?:{_SPACE}*,{_SPACE}*{_OBJECT})*"
_ELEVATED_STATEMENTS: Final = (
    rf"^{_SPACE}*(?:CREATE{_SPACE}+PUBLICATION{_SPACE}+{_NAME}{_SPACE}+FOR"
    rf"|ALTER{_SPACE}+PUBLICATION{_SPACE}+{_NAME}{_SPACE}+(?:ADD|SET)){_SPACE}+{_OBJECTS}"
    rf"(?:{_SPACE}+WITH{_SPACE}*\([^()]*\))?{_SPACE}*;?{_SPACE}*$"
)
# Outside a function PG_CONTEXT has one line, the trigger's own.
_ELEVATE: Final = """
    CREATE FUNCTION rdsadmin.before_publication() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
        context text;
    BEGIN
        GET DIAGNOSTICS context = PG_CONTEXT;
        PERFORM set_config('rdsadmin.raised', '', true);
        IF strpos(context, chr(10)) = 0
           AND current_query() ~* $grammar$@$grammar$
           AND pg_has_role(caller, 'rds_superuser', 'USAGE')
           AND NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = caller)
        THEN
            EXECUTE format('ALTER ROLE %I SUPERUSER', caller);
            PERFORM set_config('rdsadmin.raised', caller, true);
        END IF;
    END $body$
""".replace("@", _ELEVATED_STATEMENTS)
# The setting is anybody's to change where nothing was raised: so no other role than the caller is lowered.
_REVOKE: Final = r"""
    CREATE FUNCTION rdsadmin.after_publication() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
    BEGIN
        IF current_setting('rdsadmin.raised', true) = caller::text THEN
            EXECUTE format('ALTER ROLE %I NOSUPERUSER', caller);
            PERFORM set_config('rdsadmin.raised', '', true);
        END IF;
    END $$
"""
_TRIGGERS: Final = (
    "CREATE EVENT TRIGGER rdsadmin_before_publication ON ddl_command_start"
    " WHEN TAG IN ('CREATE PUBLICATION', 'ALTER PUBLICATION') EXECUTE FUNCTION rdsadmin.before_publication()",
    "CREATE EVENT TRIGGER rdsadmin_after_publication ON ddl_command_end"
    " WHEN TAG IN ('CREATE PUBLICATION', 'ALTER PUBLICATION') EXECUTE FUNCTION rdsadmin.after_publication()",
)


# PostgreSQL lists no parameter that it does not know itself, not even one that its file of settings has.
_PG_SETTINGS: Final = """
    CREATE OR REPLACE VIEW pg_catalog.pg_settings AS
    SELECT * FROM pg_show_all_settings() AS a
    UNION ALL
    SELECT name, current_setting(name, true), NULL, 'Customized Options', 'Set by the parameter group.', NULL, context,
           'bool', 'configuration file', NULL, NULL, NULL, 'off', current_setting(name, true), NULL, NULL, false
    FROM (VALUES ('rds.force_ssl', 'sighup'), ('rds.iam_auth_for_replication', 'sighup'),
                 ('rds.logical_replication', 'postmaster')) AS rds (name, context)
    WHERE current_setting(name, true) IS NOT NULL
"""


def apply(server: PostgresServer, password: str, *, user: str = MASTER_USER, dbname: str | None = DATABASE) -> None:
    """Make a fresh, running server look like RDS, with the master user and its database.

    Args:
        server: has nothing but what ``initdb`` made.
        password: the master user's.
        user: the master user.
        dbname: a database for it; None is ``postgres`` alone.

    Raises:
        Error: the server refused.
    """
    from psycopg import sql

    with closing(server.administer()) as conn:
        for name in _ROLES:
            conn.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
        conn.execute(sql.SQL("CREATE ROLE {} NOLOGIN NOINHERIT REPLICATION").format(sql.Identifier(_REPLICATOR)))
        if server.version < 16:
            conn.execute(
                "UPDATE pg_catalog.pg_authid SET rolsuper = true WHERE rolname = ANY(%s)", [list(_PROGRAM_ROLES)]
            )
        for held, since in _SUPERUSER_HOLDS:
            if server.version >= since:
                conn.execute(sql.SQL("GRANT {} TO rds_superuser WITH ADMIN OPTION").format(sql.Identifier(held)))
        if server.version >= 16:
            # To pass it on without holding it: a holder would have to log in with an IAM token.
            conn.execute("GRANT rds_iam TO rds_superuser WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
            conn.execute("GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO rds_superuser")
        master = sql.Identifier(user)
        verifier = _verifier(conn, user, password)
        conn.execute(
            sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER CREATEDB CREATEROLE PASSWORD {}").format(
                master, sql.Literal(verifier)
            )
        )
        conn.execute(sql.SQL("GRANT rds_superuser TO {} WITH ADMIN OPTION").format(master))
        conn.execute("ALTER DATABASE template0 WITH ALLOW_CONNECTIONS true")
    # Databases made later are copies of a template.
    for template in ("template0", "template1", "postgres"):
        with closing(server.connect(dbname=template)) as conn:
            _prepare_database(conn)
    with closing(server.administer()) as conn:
        conn.execute("ALTER DATABASE template0 WITH ALLOW_CONNECTIONS false")
        conn.execute(sql.SQL("ALTER DATABASE postgres OWNER TO {}").format(master))
        if dbname not in (None, "postgres"):
            conn.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(dbname or ""), master))


def set_password(server: PostgresServer, user: str, password: str) -> None:
    """Give the master user of a running primary another password.

    Raises:
        Error: the server refused.
    """
    from psycopg import sql

    with closing(server.administer()) as conn:
        verifier = sql.Literal(_verifier(conn, user, password))
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), verifier))


def _verifier(conn: Connection, user: str, password: str) -> str:
    # Made here, so that the password itself is not in the server's log.
    return conn.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()


def _prepare_database(conn: Connection) -> None:
    from psycopg import sql

    for signature, name, definition in conn.execute(_SLOT_FUNCTIONS).fetchall():
        # regprocedure prints it quoted where it must be.
        function = sql.SQL(signature)
        # The server calls a function by a number it was built with directly, and never looks whether that one is
        # SECURITY DEFINER (fmgr_isbuiltin in fmgr.c). So the old one steps aside and a new one gets its name.
        conn.execute(sql.SQL("ALTER FUNCTION {} RENAME TO {}").format(function, sql.Identifier(_BUILTIN + name)))
        conn.execute(definition)
        conn.execute(sql.SQL("ALTER FUNCTION {} SECURITY DEFINER").format(function))
        conn.execute(sql.SQL("ALTER FUNCTION {} OWNER TO {}").format(function, sql.Identifier(_REPLICATOR)))
        conn.execute(sql.SQL("REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC").format(function))
        conn.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO rds_replication").format(function))
    conn.execute("SET allow_system_table_mods = on")
    conn.execute(_PG_SETTINGS)
    conn.execute("RESET allow_system_table_mods")
    conn.execute("CREATE SCHEMA rdsadmin")
    for statement in (_ELEVATE, _REVOKE, *_TRIGGERS):
        conn.execute(statement)
