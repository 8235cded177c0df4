"""Creates the roles of RDS on a PostgreSQL server, and gives their members the rights that they have on RDS.

On RDS members of ``rds_replication`` can replicate, and members of ``rds_superuser`` can publish all tables. PostgreSQL
requires the ``REPLICATION`` attribute and a superuser for these, and neither is inherited. So on the sandbox

- the SQL functions on slots run as their owner, ``rdsrepladmin``, which has only the ``REPLICATION`` attribute, and
  only members of ``rds_replication`` may call them;
- a member of ``rds_superuser`` is a superuser during a ``CREATE`` or ``ALTER PUBLICATION`` for all tables or schemas.
  No other session sees this, because the statement's transaction also ends it;
- ``pg_settings`` contains parameters of RDS, too;
- the relay grants the ``REPLICATION`` attribute for the start of a replication connection (``replication_grants.py``).

A superuser can run programs as the user that started the server. So the master user must not be a superuser while its
own code runs. A statement is elevated only when it is the whole query that the client sent, not one in a function, a DO
block or the text of a parameter. Its grammar allows names and options and no expressions: the constants of a row filter
are evaluated when the statement is parsed, and the CHECK of a domain calls functions of any user.
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

# Roles that rds_superuser has and may grant, with the version that introduced them.
_SUPERUSER_HOLDS: Final[tuple[tuple[str, int], ...]] = (
    ("rds_replication", 0),
    ("rds_password", 0),
    ("pg_monitor", 0),
    ("pg_signal_backend", 0),
    ("pg_checkpoint", 15),
    ("pg_create_subscription", 16),
    ("pg_use_reserved_connections", 16),
)

# Owns the functions on slots. RDS has a role of that name and with that attribute, too.
_REPLICATOR: Final = "rdsrepladmin"
# Before 16 a role that may create roles may grant every role that is not a superuser. These roles run programs and
# read files as the server, so they become superusers.
_PROGRAM_ROLES: Final = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")

# Every function that checks has_rolreplication(); the signatures differ by version, so they are taken from pg_proc.
# The longest name with the prefix _BUILTIN has fewer than 64 bytes.
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

# The statements that are elevated. The server evaluates nothing in them: the parentheses contain the options of WITH.
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
# Outside a function PG_CONTEXT has one line, that of the trigger.
_ELEVATE: Final = """
    CREATE FUNCTION rdsadmin.before_publication() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
        context text;
    BEGIN
        GET DIAGNOSTICS context = PG_CONTEXT;
        PERFORM set_config('rdsadmin.elevated', '', true);
        IF strpos(context, chr(10)) = 0
           AND current_query() ~* $grammar$@$grammar$
           AND pg_has_role(caller, 'rds_superuser', 'USAGE')
           AND NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = caller)
        THEN
            EXECUTE format('ALTER ROLE %I SUPERUSER', caller);
            PERFORM set_config('rdsadmin.elevated', caller, true);
        END IF;
    END $body$
""".replace("@", _ELEVATED_STATEMENTS)
# Any user can change the setting in other statements. So only the caller loses its superuser attribute.
_REVOKE: Final = r"""
    CREATE FUNCTION rdsadmin.after_publication() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
    BEGIN
        IF current_setting('rdsadmin.elevated', true) = caller::text THEN
            EXECUTE format('ALTER ROLE %I NOSUPERUSER', caller);
            PERFORM set_config('rdsadmin.elevated', '', true);
        END IF;
    END $$
"""
_TRIGGERS: Final = (
    "CREATE EVENT TRIGGER rdsadmin_before_publication ON ddl_command_start"
    " WHEN TAG IN ('CREATE PUBLICATION', 'ALTER PUBLICATION') EXECUTE FUNCTION rdsadmin.before_publication()",
    "CREATE EVENT TRIGGER rdsadmin_after_publication ON ddl_command_end"
    " WHEN TAG IN ('CREATE PUBLICATION', 'ALTER PUBLICATION') EXECUTE FUNCTION rdsadmin.after_publication()",
)


# PostgreSQL lists only the parameters that it knows, not those that are just in its configuration file.
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
    """Create the roles of RDS, the master user and its database on a new, running server.

    Args:
        server: a server on which only ``initdb`` ran.
        password: the password of the master user.
        user: the name of the master user.
        dbname: a database to create; None creates none.

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
            # With the right to grant it, and without being a member: members have to log in with an IAM token.
            conn.execute("GRANT rds_iam TO rds_superuser WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
        master = sql.Identifier(user)
        verifier = _verifier(conn, user, password)
        conn.execute(
            sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER CREATEDB CREATEROLE PASSWORD {}").format(
                master, sql.Literal(verifier)
            )
        )
        conn.execute(sql.SQL("GRANT rds_superuser TO {} WITH ADMIN OPTION").format(master))
        conn.execute("ALTER DATABASE template0 WITH ALLOW_CONNECTIONS true")
    # Databases that are created later are copies of a template.
    for template in ("template0", "template1", "postgres"):
        with closing(server.connect(dbname=template)) as conn:
            _prepare_database(conn)
    with closing(server.administer()) as conn:
        conn.execute("ALTER DATABASE template0 WITH ALLOW_CONNECTIONS false")
        conn.execute(sql.SQL("ALTER DATABASE postgres OWNER TO {}").format(master))
        if dbname not in (None, "postgres"):
            conn.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(dbname or ""), master))


def set_password(server: PostgresServer, user: str, password: str) -> None:
    """Set the password of the master user on a running primary.

    Raises:
        Error: the server refused.
    """
    from psycopg import sql

    with closing(server.administer()) as conn:
        verifier = sql.Literal(_verifier(conn, user, password))
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), verifier))


def _verifier(conn: Connection, user: str, password: str) -> str:
    # Computed here, so that the password is not in the log of the server.
    return conn.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()


def _prepare_database(conn: Connection) -> None:
    from psycopg import sql

    for signature, name, definition in conn.execute(_SLOT_FUNCTIONS).fetchall():
        # regprocedure quotes names that need it.
        function = sql.SQL(signature)
        # The server calls built-in functions by number and ignores SECURITY DEFINER for them (fmgr_isbuiltin in
        # fmgr.c). So the built-in function is renamed, and a new function gets its name.
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
