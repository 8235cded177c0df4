"""Keep the global options of a command: those given on the command line and those from ``RDSREPL_*``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import typer

from rdsrepl.errors import UsageError
from rdsrepl.render import Format
from rdsrepl.text import commands
from rdsrepl.text.masking import mask


class LogFormat(StrEnum):
    """The values of ``--log-format``."""

    text = "text"
    json = "json"


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The values of the global options.

    Attributes:
        target: a target's name in the config file.
        dsn: a libpq connection string.
        profile: an AWS profile.
        region: an AWS region.
        cluster: a DB cluster's identifier.
        instance: a DB instance's identifier.
        dbname: the database on that server; overrides the one of the target, the dsn or the RDS API.
        user: the role to log in as; overrides the one of the target, the dsn or the RDS API.
        typed: which of these, and ``output``, were given on the command line; the others come from ``RDSREPL_*``.
        ignored: the environment's server options, ignored because the command line names a server.
        output: the format of the output.
        verbose: 1 prints the database and each statement; 2 also prints tracebacks.
        quiet: print no progress and no notes.
        no_color: print plain text on a terminal as well.
        log_format: the format of notes, warnings, progress and errors on stderr.
    """

    target: str | None = None
    dsn: str | None = None
    profile: str | None = None
    region: str | None = None
    cluster: str | None = None
    instance: str | None = None
    dbname: str | None = None
    user: str | None = None
    typed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    output: Format = Format.table
    verbose: int = 0
    quiet: bool = False
    no_color: bool = False
    log_format: LogFormat = LogFormat.text


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """The options of a command that applies a plan.

    Attributes:
        yes: apply it without asking.
        dry_run: show it only.
        check: show it only, and exit with 7 if it is not empty.
        show_sql: show its statements and API calls before the question.
        out: show it and save it to this file.
    """

    yes: bool = False
    dry_run: bool = False
    check: bool = False
    show_sql: bool = False
    out: str | None = None

    @property
    def plans_only(self) -> bool:
        """Whether the plan is not applied."""
        return self.dry_run or self.check or self.out is not None


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The options of a command that prints a list.

    Attributes:
        sort_by: the fields to sort by, as typed.
        filter: the conditions that a row must meet, as typed.
        no_headers: print no headings and no note about hidden columns.
        watch: print the list again after this many seconds, until Ctrl-C; None prints it once.
        query: a JMESPath expression for JSON and YAML.
    """

    sort_by: str | None = None
    filter: tuple[str, ...] = ()
    no_headers: bool = False
    watch: float | None = None
    query: str | None = None


_LIST_OPTIONS: Final = "rdsrepl.list_options"
_APPLY_OPTIONS: Final = "rdsrepl.apply_options"
_APPLIED: Final = "rdsrepl.applied"
_WORDS: Final = "rdsrepl.words"

#: The options that select the server a command works on.
SELECTORS: Final = ("target", "dsn", "cluster", "instance")
#: The options that say which database and which AWS account a command works on.
SERVER_OPTIONS: Final = (*SELECTORS, "dbname", "user", "profile", "region")


def add_global_options(ctx: typer.Context, given: dict[str, Any]) -> None:
    """Add the global options given before the noun, or after the verb.

    The command line overrides the environment: the environment selects the server only where the command line does not.

    Raises:
        typer.BadParameter: an option is empty, or two options on the command line name different servers.
    """
    root = ctx.find_root()
    earlier = root.obj if isinstance(root.obj, GlobalOptions) else GlobalOptions()
    names = GlobalOptions.__dataclass_fields__
    options = replace(earlier, **{name: value for name, value in given.items() if name in names and value})
    strict = not ctx.resilient_parsing  # while the shell completes a line, no option is refused
    for name in SERVER_OPTIONS:
        if strict and given.get(name) == "":
            # An unset variable in a script must not lead to another database.
            raise typer.BadParameter("the value is empty", ctx=ctx, param_hint=f"'--{name}'")
    on_command_line = frozenset(
        name for name in (*SERVER_OPTIONS, "output") if given.get(name) and not _from_environment(ctx, name)
    )
    for name in SELECTORS:
        if strict and name in on_command_line & earlier.typed and given[name] != getattr(earlier, name):
            raise typer.BadParameter(
                f"given twice, with different values: {_masked(earlier, name)} and {_masked(options, name)}",
                ctx=ctx,
                param_hint=f"'--{name}'",
            )
    options = replace(options, typed=earlier.typed | on_command_line)
    if options.typed.intersection(SELECTORS):
        # A target also holds the AWS account, which still applies when --cluster or --instance selects the server.
        kept = options.typed if "dsn" in options.typed else options.typed | {"target"}
        of_server = (*SELECTORS, "dbname", "user")
        ignored = tuple(name for name in of_server if getattr(options, name) and name not in kept)
        cleared: dict[str, Any] = dict.fromkeys(ignored)
        options = replace(options, ignored=tuple(dict.fromkeys((*earlier.ignored, *ignored))), **cleared)
    # The command may use neither of two environment variables, so both are refused only when it is known.
    if strict and options.cluster and options.instance and (ctx is not root or options.typed.intersection(SELECTORS)):
        raise typer.BadParameter("cannot be used together with --instance", ctx=ctx, param_hint="'--cluster'")
    root.obj = ctx.obj = options


def refuse_unusable(ctx: typer.Context, unusable: Collection[str]) -> None:
    """Refuse the server options before the noun that the command cannot use, and ignore their environment variables.

    Raises:
        UsageError: such an option is on the command line.
    """
    options = global_options(ctx)
    if not ctx.resilient_parsing:
        for name in SERVER_OPTIONS:
            if name in unusable and name in options.typed:
                has_own = any(f"--{name}" in option.opts for option in ctx.command.params)
                raise UsageError(
                    f"{ctx.command_path} does not use --{name}" + (" in front of it" if has_own else ""),
                    hint=f"write --{name} after {ctx.info_name}" if has_own else f"omit --{name}",
                )
    # Without a target, RDSREPL_DSN still decides the account: the config file's current target is then not used.
    keeps_account = "target" not in unusable and options.target is None
    cleared: dict[str, Any] = {name: None for name in unusable if name != "dsn" or not keeps_account}
    ctx.find_root().obj = ctx.obj = replace(options, **cleared)


def _masked(options: GlobalOptions, name: str) -> str:
    value = getattr(options, name)
    return mask(value) if name == "dsn" else str(value)


def _from_environment(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def global_options(ctx: typer.Context) -> GlobalOptions:
    """Return the global options of this command."""
    options = ctx.find_root().obj
    return options if isinstance(options, GlobalOptions) else GlobalOptions()


def set_log_format(ctx: typer.Context, log_format: LogFormat) -> None:
    """Set the format of everything that is written to stderr from now on."""
    root = ctx.find_root()
    root.obj = ctx.obj = replace(global_options(ctx), log_format=log_format)


def set_apply_options(ctx: typer.Context, given: dict[str, Any]) -> None:
    """Keep the options of a command that applies a plan."""
    names = ApplyOptions.__dataclass_fields__
    ctx.meta[_APPLY_OPTIONS] = ApplyOptions(**{name: value for name, value in given.items() if name in names})


def apply_options(ctx: typer.Context) -> ApplyOptions:
    """Return the options of a command that applies a plan."""
    options = ctx.meta.get(_APPLY_OPTIONS)
    return options if isinstance(options, ApplyOptions) else ApplyOptions()


def keep_words(ctx: typer.Context, words: Sequence[str]) -> None:
    """Keep the whole command line, for hints that repeat it."""
    ctx.find_root().meta[_WORDS] = list(words)


def typed_words(ctx: typer.Context) -> list[str]:
    """Return the words of the command line."""
    words: list[str] = ctx.find_root().meta.get(_WORDS, [])
    return words


def same_command(ctx: typer.Context) -> str | None:
    """Return the command that is running, for a hint to run it again; None if it cannot be pasted."""
    return commands.typed(typed_words(ctx))


def set_list_options(ctx: typer.Context, given: dict[str, Any]) -> None:
    """Keep the options of a command that prints a list."""
    names = ListOptions.__dataclass_fields__
    values = {name: value for name, value in given.items() if name in names}
    ctx.meta[_LIST_OPTIONS] = ListOptions(**{**values, "filter": tuple(values.get("filter") or ())})


def list_options(ctx: typer.Context) -> ListOptions:
    """Return the options of a command that prints a list."""
    options = ctx.meta.get(_LIST_OPTIONS)
    return options if isinstance(options, ListOptions) else ListOptions()


def set_watch_interval(ctx: typer.Context, seconds: float) -> None:
    """Set how often ``--watch`` reads again, if that option is given."""
    options = list_options(ctx)
    if options.watch is not None:
        ctx.meta[_LIST_OPTIONS] = replace(options, watch=seconds)


def set_output(ctx: typer.Context, output: Format) -> None:
    """Set the format of the output and of errors from now on."""
    root = ctx.find_root()
    root.obj = ctx.obj = replace(global_options(ctx), output=output)


def record_applied(ctx: typer.Context, title: str) -> None:
    """Record that all steps of a plan were applied, so that Ctrl-C afterwards reports it."""
    ctx.meta[_APPLIED] = title


def applied_plan(ctx: typer.Context) -> str | None:
    """Return the title of the plan that was applied; None before that."""
    title = ctx.meta.get(_APPLIED)
    return title if isinstance(title, str) else None
