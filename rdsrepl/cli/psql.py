"""``rdsrepl psql``: psql on the database that every other command works on."""

from __future__ import annotations

import os
import shutil
from typing import Annotated, Final

import typer

from rdsrepl.cli.targets import database_target
from rdsrepl.errors import NotFound

# libpq's keywords and the variables that carry them (manual, section 34.15); what has none goes into the conninfo.
_VARIABLES: Final = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "channel_binding": "PGCHANNELBINDING",
}


def psql(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[-- PSQL'S OWN]...", help="psql's options.", show_default=False)
    ] = None,
) -> None:
    """Run psql on the database that --target, --cluster, --instance or --dsn leads to.

    The password travels in the environment of psql, never among its words.

    Example: rdsrepl psql --cluster orders -- -c 'SHOW wal_level'
    """
    from rdsrepl.postgres import conninfo

    program = shutil.which("psql")
    if program is None:
        raise NotFound("psql is not installed here", hint="Debian and Ubuntu: apt-get install postgresql-client")
    keywords = conninfo.keywords(database_target(ctx))
    rest = {key: value for key, value in keywords.items() if key not in _VARIABLES and key not in _LEFT_OUT}
    env = dict(os.environ)
    for key, value in keywords.items():
        if key in _VARIABLES:
            # An empty keyword says: not what the environment has.
            env.pop(_VARIABLES[key], None)
            env |= {_VARIABLES[key]: value} if value else {}
    dsn = " ".join(f"{key}='{_quoted(value)}'" for key, value in rest.items())
    os.execve(program, [program, *([dsn] if dsn else []), *(words or [])], env)


# psql says itself who it is, and takes its encoding from the terminal; a key's password is no word for a command line.
# Keepalives have no variable: as a connection string they would take the place of the database's name, so that psql
# reads a `-d NAME` of the user's as well as this one, and this one as the user.
_LEFT_OUT: Final = frozenset(
    {"fallback_application_name", "client_encoding", "sslpassword"}
    | {"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"}
)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
