"""``rdsrepl psql``: run psql on the command's database."""

from __future__ import annotations

import os
import shutil
from typing import Annotated, Final

import typer

from rdsrepl.cli.targets import database_target
from rdsrepl.errors import NotFound

# libpq's keywords and their environment variables (manual, section 34.15); the others go into the conninfo string.
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
        list[str] | None,
        typer.Argument(metavar="[-- PSQL'S OWN]...", help="Options and arguments of psql.", show_default=False),
    ] = None,
) -> None:
    """Run psql on the database of --target, --cluster, --instance or --dsn.

    psql gets the password in its environment, never on its command line.

    Example: rdsrepl psql --cluster orders -- -c 'SHOW wal_level'
    """
    from rdsrepl.postgres import conninfo

    program = shutil.which("psql")
    if program is None:
        raise NotFound("psql is not installed", hint="Debian and Ubuntu: apt-get install postgresql-client")
    keywords = conninfo.keywords(database_target(ctx))
    rest = {key: value for key, value in keywords.items() if key not in _VARIABLES and key not in _LEFT_OUT}
    env = dict(os.environ)
    for key, value in keywords.items():
        if key in _VARIABLES:
            # An empty keyword removes the value of the environment.
            env.pop(_VARIABLES[key], None)
            env |= {_VARIABLES[key]: value} if value else {}
    dsn = " ".join(f"{key}='{_quoted(value)}'" for key, value in rest.items())
    os.execve(program, [program, *([dsn] if dsn else []), *(words or [])], env)


# psql sets its own application name and encoding; the password of a key must not be on a command line. Keepalives have
# no variable: in a connection string they would be psql's first argument, and with `-d NAME` psql takes the first
# argument for the user.
_LEFT_OUT: Final = frozenset(
    {"fallback_application_name", "client_encoding", "sslpassword"}
    | {"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"}
)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
