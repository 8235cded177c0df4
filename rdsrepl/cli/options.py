"""Declare the options that several commands share, and kinds of options.

``command_classes`` adds the shared ones to the commands. Only the root reads the environment variables ``RDSREPL_*``,
so that they never override an option of the command line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Annotated, Any, Final, TypeVar, cast

import typer
from typer.core import TyperOption

from rdsrepl.cli.completion import complete_cluster, complete_instance, complete_profile, complete_target
from rdsrepl.cli.context import (
    LogFormat,
)
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.render import Format
from rdsrepl.units import parse_duration, parse_size

_T = TypeVar("_T")
_PANEL = "Connection and output"
_CHANGE_PANEL = "Changes"
_LIST_PANEL = "List"
_global_option = partial(typer.Option, rich_help_panel=_PANEL)


def option_parser(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return a parser for an option; a value that PARSE refuses is reported under the option's name."""

    def parser(text: str) -> _T:
        if not isinstance(text, str):  # a default value, already parsed
            return cast(_T, text)
        try:
            return parse(text)
        except BadValue as exc:
            raise typer.BadParameter(exc.message + (f"; {exc.hint}" if exc.hint else "")) from exc

    return parser


def duration_option(name: str, *, help: str, panel: str | None = None) -> Any:
    """Declare an option that takes a duration; the command receives seconds."""
    return typer.Option(
        name, parser=option_parser(parse_duration), metavar="DURATION", help=help, rich_help_panel=panel
    )


def size_option(name: str, *, help: str, panel: str | None = None) -> Any:
    """Declare an option that takes a size; the command receives bytes."""
    return typer.Option(name, parser=option_parser(parse_size), metavar="SIZE", help=help, rich_help_panel=panel)


def flag_option(*names: str, help: str, panel: str | None = None) -> Any:
    """Declare an option without a value."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


def lsn_option(name: str, *, help: str, panel: str | None = None) -> Any:
    """Declare an option that takes an LSN."""
    return typer.Option(name, parser=option_parser(Lsn.parse), metavar="LSN", help=help, rich_help_panel=panel)


def declare_global_options(
    target: Annotated[
        str | None,
        _global_option(
            "--target",
            "-t",
            metavar="NAME",
            envvar="RDSREPL_TARGET",
            help="Use this target of the config file.",
            autocompletion=complete_target,
        ),
    ] = None,
    dsn: Annotated[
        str | None,
        _global_option(
            "--dsn",
            metavar="CONNINFO",
            envvar="RDSREPL_DSN",
            help="Connect with this libpq connection string or URI; keep the password in .pgpass or PGPASSWORD.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        _global_option(
            "--cluster",
            metavar="ID",
            envvar="RDSREPL_CLUSTER",
            help="Use this DB cluster, Multi-AZ or Aurora; the RDS API gives its writer endpoint and secret.",
            autocompletion=complete_cluster,
        ),
    ] = None,
    instance: Annotated[
        str | None,
        _global_option(
            "--instance",
            metavar="ID",
            envvar="RDSREPL_INSTANCE",
            help="Use this DB instance; the RDS API gives its endpoint and secret.",
            autocompletion=complete_instance,
        ),
    ] = None,
    dbname: Annotated[
        str | None,
        _global_option(
            "--dbname",
            "-d",
            metavar="NAME",
            envvar="RDSREPL_DBNAME",
            help="Connect to this database; default: the target's, or PGDATABASE.",
        ),
    ] = None,
    user: Annotated[
        str | None,
        _global_option(
            "--user",
            "-U",
            metavar="ROLE",
            envvar="RDSREPL_USER",
            help="Log in as this role; default: the target's, or PGUSER.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        _global_option(
            "--profile",
            metavar="NAME",
            envvar="RDSREPL_PROFILE",
            help="Use this AWS profile; default: boto3's.",
            autocompletion=complete_profile,
        ),
    ] = None,
    region: Annotated[
        str | None,
        _global_option(
            "--region", metavar="NAME", envvar="RDSREPL_REGION", help="Use this AWS region; default: boto3's."
        ),
    ] = None,
    output: Annotated[
        Format | None,
        _global_option(
            "--output",
            "-o",
            envvar="RDSREPL_OUTPUT",
            help="Print a table (wide: with all columns), JSON or YAML; a list also as names or CSV; default: table.",
        ),
    ] = None,
    verbose: Annotated[
        int,
        _global_option(
            "--verbose",
            "-v",
            count=True,
            help="Print the database and each statement; with -vv, tracebacks as well.",
            show_default=False,
        ),
    ] = 0,
    quiet: Annotated[bool, flag_option("--quiet", "-q", help="Print no progress and no notes.", panel=_PANEL)] = False,
    no_color: Annotated[bool, flag_option("--no-color", help="Print no colours.", panel=_PANEL)] = False,
) -> None:
    """Declare the options; never called."""


def declare_apply_options(
    yes: Annotated[
        bool, flag_option("--yes", "-y", help="Apply the plan without asking.", panel=_CHANGE_PANEL)
    ] = False,
    dry_run: Annotated[
        bool, flag_option("--dry-run", help="Show the plan and change nothing.", panel=_CHANGE_PANEL)
    ] = False,
    check: Annotated[
        bool,
        flag_option(
            "--check", help="Show the plan, change nothing, and exit 7 when the plan is not empty.", panel=_CHANGE_PANEL
        ),
    ] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            help="Choose how notes and progress are written to stderr; default: text.",
            rich_help_panel=_CHANGE_PANEL,
        ),
    ] = None,
    show_sql: Annotated[
        bool,
        flag_option(
            "--show-sql",
            help="Show the SQL statements and AWS API calls of the plan before the question; --dry-run always does.",
            panel=_CHANGE_PANEL,
        ),
    ] = False,
) -> None:
    """Declare the options; never called."""


#: How often ``--watch`` without a value reads again, in seconds.
WATCH_SECONDS: Final = 5.0


def declare_list_options(
    sort_by: Annotated[
        str | None,
        typer.Option(
            "--sort-by",
            metavar="FIELD",
            help="Sort by this field of the JSON output, or by a heading; -FIELD sorts in descending order.",
            rich_help_panel=_LIST_PANEL,
        ),
    ] = None,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="FIELD=VALUE",
            help="List only the rows that meet this condition; also !=, >, <, >=, <=, ~ (regular expression).",
            rich_help_panel=_LIST_PANEL,
            show_default=False,
        ),
    ] = None,
    no_headers: Annotated[bool, flag_option("--no-headers", help="Print no headings.", panel=_LIST_PANEL)] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            "-w",
            parser=option_parser(parse_duration),
            metavar="[DURATION]",
            help="Print the list again every DURATION until Ctrl-C; default: 5s.",
            rich_help_panel=_LIST_PANEL,
            show_default=False,
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query",
            metavar="JMESPATH",
            help="Print what this expression selects from the JSON output, as JSON or with -o yaml as YAML.",
            rich_help_panel=_LIST_PANEL,
        ),
    ] = None,
) -> None:
    """Declare the options; never called."""


def declare_out_option(
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Save the plan to a file and change nothing; apply exactly this plan with: rdsrepl apply FILE",
            rich_help_panel=_CHANGE_PANEL,
        ),
    ] = None,
) -> None:
    """Declare the option; never called."""


def declare_preview_options(
    dry_run: Annotated[
        bool, flag_option("--dry-run", help="Show the changes and write nothing.", panel=_CHANGE_PANEL)
    ] = False,
    check: Annotated[
        bool,
        flag_option(
            "--check", help="Show the changes, write nothing, and exit 7 if there are any.", panel=_CHANGE_PANEL
        ),
    ] = False,
) -> None:
    """Declare the options; never called."""


@cache
def _declared(holder: Callable[..., None]) -> tuple[TyperOption, ...]:
    """Return the options a function declares, as Typer builds them."""
    app = typer.Typer(add_completion=False)
    app.command()(holder)
    return tuple(p for p in typer.main.get_command(app).params if isinstance(p, TyperOption) and p.name != "help")


def root_options() -> Iterable[TyperOption]:
    """Return the global options with their environment variables, for the root command."""
    return _declared(declare_global_options)


@cache
def verb_options(holder: Callable[..., None]) -> tuple[TyperOption, ...]:
    """Return the options that a function declares, without their environment variables, for a verb."""
    options = tuple(copy.copy(option) for option in _declared(holder))
    for option in options:
        option.envvar = None
    return options
