"""The options that every command takes, as they were given: on the command line, in ``RDSREPL_*``, or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import typer

from rdsrepl.render import Format
from rdsrepl.text.masking import mask


class LogFormat(StrEnum):
    """What ``--log-format`` takes."""

    text = "text"
    json = "json"


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """What the shared options say.

    Attributes:
        target: a target's name in the config file.
        dsn: a libpq connection string.
        profile: an AWS profile.
        region: an AWS region.
        cluster: a DB cluster's identifier.
        instance: a DB instance's identifier.
        dbname: the database on that server; replaces the one that the target, dsn or RDS API names.
        user: the role to log in as; replaces the one that the target, dsn or RDS API names.
        typed: which of these stand on the command line; the others come from ``RDSREPL_*``.
        ignored: what the environment says of the server and does not count because a selector was typed.
        output: how documents are printed.
        verbose: 1 names what is connected to and each statement; 2 also shows tracebacks.
        quiet: no progress and no notes.
        no_color: plain text on a terminal, too.
        log_format: how notes, warnings, progress and errors are written to stderr.
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
    """What a writing command may do without asking."""

    yes: bool = False
    dry_run: bool = False
    check: bool = False


_APPLY_OPTIONS: Final = "rdsrepl.apply_options"
_APPLIED: Final = "rdsrepl.applied"

#: the options that say which server a command works on.
_SELECTORS: Final = ("target", "dsn", "cluster", "instance")
_SERVER_OPTIONS: Final = (*_SELECTORS, "dbname", "user", "profile", "region")


def add_global_options(ctx: typer.Context, given: dict[str, Any]) -> None:
    """Add the shared options found at one level to those of the levels before it.

    What is typed wins over the environment: the selectors of the environment count only where none is typed.

    Raises:
        typer.BadParameter: an option is empty, or two typed ones name different servers.
    """
    root = ctx.find_root()
    before = root.obj if isinstance(root.obj, GlobalOptions) else GlobalOptions()
    names = GlobalOptions.__dataclass_fields__
    now = replace(before, **{name: value for name, value in given.items() if name in names and value})
    strict = not ctx.resilient_parsing  # while the shell completes a line nothing is refused
    for name in _SERVER_OPTIONS:
        if strict and given.get(name) == "":
            # An unset variable in a script must not end at another database.
            raise typer.BadParameter("it is empty", ctx=ctx, param_hint=f"'--{name}'")
    here = frozenset(name for name in _SERVER_OPTIONS if given.get(name) and not _from_environment(ctx, name))
    for name in _SELECTORS:
        if strict and name in here & before.typed and given[name] != getattr(before, name):
            raise typer.BadParameter(
                f"it is given twice: {_masked(before, name)} and {_masked(now, name)}",
                ctx=ctx,
                param_hint=f"'--{name}'",
            )
    now = replace(now, typed=before.typed | here)
    if now.typed.intersection(_SELECTORS):
        # A target is an AWS identity as well, and keeps being one where a cluster or an instance of it was typed.
        kept = now.typed if "dsn" in now.typed else now.typed | {"target"}
        stray = tuple(name for name in (*_SELECTORS, "dbname", "user") if getattr(now, name) and name not in kept)
        dropped: dict[str, Any] = dict.fromkeys(stray)
        now = replace(now, ignored=tuple(dict.fromkeys((*before.ignored, *stray))), **dropped)
    if strict and now.cluster and now.instance:
        raise typer.BadParameter("it excludes --instance", ctx=ctx, param_hint="'--cluster'")
    root.obj = ctx.obj = now


def _masked(options: GlobalOptions, name: str) -> str:
    value = getattr(options, name)
    return mask(value) if name == "dsn" else str(value)


def _from_environment(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def global_options(ctx: typer.Context) -> GlobalOptions:
    """Return what the shared options say for this command."""
    found = ctx.find_root().obj
    return found if isinstance(found, GlobalOptions) else GlobalOptions()


def set_log_format(ctx: typer.Context, log_format: LogFormat) -> None:
    """Have everything that is said from now on written in this format."""
    root = ctx.find_root()
    root.obj = ctx.obj = replace(global_options(ctx), log_format=log_format)


def set_apply_options(ctx: typer.Context, given: dict[str, Any]) -> None:
    """Keep ``--yes``, ``--dry-run`` and ``--check`` of this command."""
    names = ApplyOptions.__dataclass_fields__
    ctx.meta[_APPLY_OPTIONS] = ApplyOptions(**{name: value for name, value in given.items() if name in names})


def apply_options(ctx: typer.Context) -> ApplyOptions:
    """Return what this writing command may do without asking."""
    found = ctx.meta.get(_APPLY_OPTIONS)
    return found if isinstance(found, ApplyOptions) else ApplyOptions()


def record_applied(ctx: typer.Context, title: str) -> None:
    """Take note that all steps of a plan were done, so that Ctrl-C after them does not say otherwise."""
    ctx.meta[_APPLIED] = title


def applied_plan(ctx: typer.Context) -> str | None:
    """Return the title of the plan whose steps were all done; None before that."""
    title = ctx.meta.get(_APPLIED)
    return title if isinstance(title, str) else None
