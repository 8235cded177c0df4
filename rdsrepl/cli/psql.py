"""``rdsrepl psql``: run psql on the command's database."""

from __future__ import annotations

import os
import shutil
from typing import Annotated, Any, Final

import typer

from rdsrepl.cli.command_classes import ReadCommand
from rdsrepl.cli.psql_options import split
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


class PsqlCommand(ReadCommand):
    """A command whose unknown options go to psql; it has no output format."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._added = [option for option in self._added if option.name != "output"]
        self.params = [option for option in self.params if option.name != "output"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse our options; the words for psql become the argument."""
        words = split(args)
        return super().parse_args(ctx, [*words.own, "--", *words.psql])


def psql(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="PSQL_OPTION", help="Options and arguments of psql.", show_default=False),
    ] = None,
) -> None:
    """Run psql on the database of --target, --cluster, --instance or --dsn.

    psql gets the password in its environment, never on its command line.

    Options that rdsrepl does not have go to psql, and everything after --. -d, -U and -q mean the same in both. -t NAME
    is a target, and -t alone is psql's. -v is verbose, and -v NAME=VALUE is psql's. -o FILE is psql's.

    Example: rdsrepl psql --cluster orders -Atc 'SHOW wal_level'
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
