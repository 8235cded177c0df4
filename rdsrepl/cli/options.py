"""Each shared option, declared once, and the two classes that give them to every command.

``Reader`` is the class of a command that only looks, ``Writer`` of one that changes something. Connection and output
options stand before the noun and after the verb alike; the one nearer to the verb wins. The environment twins
(``RDSREPL_*``) belong to the root, so that they never override a word of the command line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from inspect import cleandoc
from types import ModuleType
from typing import Annotated, Any, Final, TypeVar, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from rdsrepl import config
from rdsrepl.config import Target
from rdsrepl.errors import BadValue, Interrupted, UsageError
from rdsrepl.lsn import Lsn
from rdsrepl.render import Format
from rdsrepl.text.masking import mask
from rdsrepl.units import parse_duration, parse_size

_T = TypeVar("_T")
_PANEL = "Connection and output"
_CHANGE_PANEL = "Changes"


def parsed(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Make a parser of ours fit for an option: what it refuses is reported under the option's name."""

    def parser(text: str) -> _T:
        if not isinstance(text, str):  # a default, already parsed
            return cast(_T, text)
        try:
            return parse(text)
        except BadValue as exc:
            raise typer.BadParameter(exc.message + (f"; {exc.hint}" if exc.hint else "")) from exc

    return parser


def duration_option(name: str, *, help: str, panel: str | None = None) -> Any:
    """Declare an option that takes a duration; the command receives seconds."""
    return typer.Option(name, parser=parsed(parse_duration), metavar="DURATION", help=help, rich_help_panel=panel)


def size_option(name: str, *, help: str, panel: str | None = None) -> Any:
    """Declare an option that takes a size; the command receives bytes."""
    return typer.Option(name, parser=parsed(parse_size), metavar="SIZE", help=help, rich_help_panel=panel)


def lsn_option(name: str, *, help: str, panel: str | None = None) -> Any:
    """Declare an option that takes an LSN."""
    return typer.Option(name, parser=parsed(Lsn.parse), metavar="LSN", help=help, rich_help_panel=panel)


class LogFormat(StrEnum):
    """What ``--log-format`` takes."""

    text = "text"
    json = "json"


@dataclass(frozen=True, slots=True)
class Globals:
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
class Consent:
    """What a writing command may do without asking."""

    yes: bool = False
    dry_run: bool = False
    check: bool = False


def _shared(
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="NAME",
            envvar="RDSREPL_TARGET",
            help="A target of the config file.",
            rich_help_panel=_PANEL,
            autocompletion=lambda: target_names(),
        ),
    ] = None,
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            metavar="CONNINFO",
            envvar="RDSREPL_DSN",
            help="A libpq connection string or URI; leave the password to .pgpass or PGPASSWORD.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ID",
            envvar="RDSREPL_CLUSTER",
            help="A DB cluster, Multi-AZ or Aurora: its writer endpoint and secret are found through the RDS API.",
            rich_help_panel=_PANEL,
            autocompletion=lambda ctx: _completion().complete_cluster(ctx),
        ),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(
            "--instance",
            metavar="ID",
            envvar="RDSREPL_INSTANCE",
            help="A DB instance, found in the same way.",
            rich_help_panel=_PANEL,
            autocompletion=lambda ctx: _completion().complete_instance(ctx),
        ),
    ] = None,
    dbname: Annotated[
        str | None,
        typer.Option(
            "--dbname",
            "-d",
            metavar="NAME",
            envvar="RDSREPL_DBNAME",
            help="The database on that server; default: the target's, or PGDATABASE.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            "-U",
            metavar="ROLE",
            envvar="RDSREPL_USER",
            help="The role to log in as; default: the target's, or PGUSER.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            envvar="RDSREPL_PROFILE",
            help="An AWS profile; default: as boto3 finds it.",
            rich_help_panel=_PANEL,
            autocompletion=lambda: _completion().complete_profile(),
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region",
            metavar="NAME",
            envvar="RDSREPL_REGION",
            help="An AWS region; default: as boto3 finds it.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    output: Annotated[
        Format | None,
        typer.Option(
            "--output",
            "-o",
            envvar="RDSREPL_OUTPUT",
            help="How to print; by default a table.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            help="Say what is connected to and run; -vv shows tracebacks.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=_PANEL, show_default=False)
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colours.", rich_help_panel=_PANEL, show_default=False)
    ] = False,
) -> None:
    """Hold the declarations; never called."""


def _consent(
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=_CHANGE_PANEL, show_default=False)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the plan, change nothing.", rich_help_panel=_CHANGE_PANEL, show_default=False
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Show the plan, change nothing, exit 7 when it is not empty.",
            rich_help_panel=_CHANGE_PANEL,
            show_default=False,
        ),
    ] = False,
) -> None:
    """Hold the declarations; never called."""


def _completion() -> ModuleType:
    # It needs what stands here.
    from rdsrepl.cli import completion

    return completion


def target_names() -> list[str]:
    """Return the config file's targets for the shell."""
    try:
        return sorted(config.load().targets)
    except Exception:  # noqa: BLE001 - completion never complains
        return []


@cache
def _declared(holder: Callable[..., None]) -> tuple[TyperOption, ...]:
    """Return the options a function declares, as Typer builds them."""
    app = typer.Typer(add_completion=False)
    app.command()(holder)
    return tuple(p for p in typer.main.get_command(app).params if isinstance(p, TyperOption) and p.name != "help")


def root_options() -> Iterable[TyperOption]:
    """Return the shared options with their environment twins, for the root."""
    return _declared(_shared)


@cache
def _verb_options(holder: Callable[..., None]) -> tuple[TyperOption, ...]:
    options = tuple(copy.copy(option) for option in _declared(holder))
    for option in options:
        option.envvar = None
    return options


class _Quick(TyperOption):
    """An option that leaves alone what nobody gave; Typer would import pydantic (0.06 s) to look at it."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Convert a value that was given."""
        if ctx.resilient_parsing:  # the shell completes the line: words are enough
            return value
        if value is None or (self.count and value == 0):
            return value if self.callback is None else self.callback(ctx, self, value)
        return super().process_value(ctx, value)


class _QuickArgument(TyperArgument):
    """An argument that is left alone while the shell completes the line."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Convert the value of a line that is complete."""
        return value if ctx.resilient_parsing else super().process_value(ctx, value)


def tidy(option: Any) -> Any:
    """Make an option of Typer's quick, and its help plain: no type beside a flag, a default duration with its unit."""
    if type(option) is TyperArgument:
        option.__class__ = _QuickArgument
    if not isinstance(option, TyperOption):
        return option
    if option.is_flag or option.count:
        option.metavar = ""
    if option.metavar == "DURATION" and isinstance(option.default, float):
        option.default = f"{option.default:g}s"
    if not option.required and not option.multiple and not option.prompt:
        option.__class__ = _Quick
    return option


_APPLIED: Final = "rdsrepl.applied"


class Noun(TyperGroup):
    """A group of verbs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, Typer's own among them, as ours look."""
        return [tidy(parameter) for parameter in super().get_params(ctx)]


class Reader(TyperCommand):
    """A command that only looks: takes the connection and output options."""

    _holders: tuple[Callable[..., None], ...] = (_shared,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _paragraphs(self.help)
        own = {flag for option in self.params for flag in option.opts}
        # An option of the command's own takes the place of the shared one: --dbname of `cluster create` is a new one.
        self._added = [
            option for holder in self._holders for option in _verb_options(holder) if not own & set(option.opts)
        ]
        self.params = [*self.params, *self._added]

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, Typer's own among them, as ours look."""
        return [tidy(parameter) for parameter in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the shared options out of what the command's function receives."""
        rest = super().parse_args(ctx, args)
        own = {option.name: ctx.params.pop(option.name) for option in self._added}
        remember(ctx, own)
        consent = {name: own[name] for name in ("yes", "dry_run", "check") if name in own}
        ctx.meta["rdsrepl.consent"] = Consent(**consent)
        return rest


def _paragraphs(text: str | None) -> str | None:
    """Return a docstring with one line a paragraph: help is as wide as the terminal, not as the source."""
    return None if text is None else "\n\n".join(" ".join(part.split()) for part in cleandoc(text).split("\n\n"))


class Writer(Reader):
    """A command that changes something: takes ``--yes``, ``--dry-run`` and ``--check`` as well."""

    _holders = (_shared, _consent)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C outside of a plan's steps says whether the plan had been applied.

        Raises:
            Interrupted: Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            title = ctx.meta.get(_APPLIED)
            what = "nothing was changed" if title is None else f"all steps of the plan were done: {title}"
            raise Interrupted(f"interrupted; {what}") from None


#: the options that say which server a command works on.
_SELECTORS: Final = ("target", "dsn", "cluster", "instance")
_PLACE: Final = (*_SELECTORS, "dbname", "user", "profile", "region")


def remember(ctx: typer.Context, given: dict[str, Any]) -> None:
    """Add the shared options found at one level to those of the levels before it.

    What is typed wins over the environment: the selectors of the environment count only where none is typed.

    Raises:
        typer.BadParameter: an option is empty, or two typed ones name different servers.
    """
    root = ctx.find_root()
    before = root.obj if isinstance(root.obj, Globals) else Globals()
    names = Globals.__dataclass_fields__
    now = replace(before, **{name: value for name, value in given.items() if name in names and value})
    strict = not ctx.resilient_parsing  # while the shell completes a line nothing is refused
    for name in _PLACE:
        if strict and given.get(name) == "":
            # An unset variable in a script must not end at another database.
            raise typer.BadParameter("it is empty", ctx=ctx, param_hint=f"'--{name}'")
    here = frozenset(name for name in _PLACE if given.get(name) and not _from_environment(ctx, name))
    for name in _SELECTORS:
        if strict and name in here & before.typed and given[name] != getattr(before, name):
            raise typer.BadParameter(
                f"it is given twice: {_shown(before, name)} and {_shown(now, name)}",
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


def _shown(options: Globals, name: str) -> str:
    value = getattr(options, name)
    return mask(value) if name == "dsn" else str(value)


def _from_environment(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def shared(ctx: typer.Context) -> Globals:
    """Return what the shared options say for this command."""
    found = ctx.find_root().obj
    return found if isinstance(found, Globals) else Globals()


def log_as(ctx: typer.Context, log_format: LogFormat) -> None:
    """Have everything that is said from now on written in this format."""
    root = ctx.find_root()
    root.obj = ctx.obj = replace(shared(ctx), log_format=log_format)


def consent(ctx: typer.Context) -> Consent:
    """Return what this writing command may do without asking."""
    found = ctx.meta.get("rdsrepl.consent")
    return found if isinstance(found, Consent) else Consent()


def applied(ctx: typer.Context, title: str) -> None:
    """Take note that all steps of a plan were done, so that Ctrl-C after them does not say otherwise."""
    ctx.meta[_APPLIED] = title


def where(ctx: typer.Context) -> Target:
    """Return the database this command works on; a cluster's or an instance's is found when it is connected to.

    It is the same object for the whole command, so that a cluster is looked up once.

    Raises:
        ConfigError, NotFound: the config file is wrong or lacks the target.
        UsageError: the options name two different servers.
    """
    from rdsrepl.cli.console import note

    meta = ctx.find_root().meta
    known = meta.get("rdsrepl.where")
    if isinstance(known, Target):
        return known
    options, target = shared(ctx), identity(ctx)
    if options.verbose:
        for name in options.ignored:
            note(ctx, f"RDSREPL_{name.upper()} is ignored: the command line names the server")
        settings = " ".join(f"{key}={value}" for key, value in target.masked().items())
        note(ctx, f"database: {target.label}{': ' + settings if settings else ''}")
    if options.dsn and target.aws.identifier:
        from rdsrepl.aws import locations

        locations.require_same_server(target)
    meta["rdsrepl.where"] = found = located(target)
    return found


def located(target: Target) -> Target:
    """Return a target that finds place and login by itself when it is connected to, where AWS knows them."""
    if (target.aws.identifier and not target.located) or target.aws.secret or target.aws.auth == "iam":
        from rdsrepl.aws import locations

        return locations.connected(target)
    return target


def identity(ctx: typer.Context) -> Target:
    """Return what options and config say of the database and of the AWS identity, nothing looked up.

    Raises:
        ConfigError, NotFound: the config file is wrong or lacks the target.
        UsageError: --dsn and --target name different servers.
    """
    return _resolved(shared(ctx))


def database_of(ctx: typer.Context, *, cluster: str | None = None, instance: str | None = None) -> Target:
    """Return the database of the cluster or instance that a command has as its argument.

    The argument names the server: selectors of the environment do not count, and typed ones must agree with it.

    Raises:
        ConfigError, NotFound: the config file is wrong or lacks the target.
        UsageError: an option names another server.
    """
    options = shared(ctx)
    for name, value, wanted in (("cluster", options.cluster, cluster), ("instance", options.instance, instance)):
        if name in options.typed and value != wanted:
            raise UsageError(
                f"--{name} {value} and {cluster or instance} name different servers", hint="omit the option"
            )
    dsn = options.dsn if "dsn" in options.typed else None
    target = _resolved(replace(options, cluster=cluster, instance=instance, dsn=dsn))
    if target.dsn and dsn:
        from rdsrepl.aws import locations

        locations.require_same_server(target)
    return located(target)


def _resolved(options: Globals) -> Target:
    aws = config.Aws(cluster=options.cluster, instance=options.instance)
    chosen = {"profile": options.profile, "region": options.region}
    # A typed target's own identity wins over RDSREPL_PROFILE and RDSREPL_REGION, which then fill what it leaves open.
    typed = {key: value for key, value in chosen.items() if key in options.typed or "target" not in options.typed}
    return config.resolve(
        dsn=options.dsn,
        target=options.target,
        aws=replace(aws, **typed),
        defaults=config.Aws(**chosen),
        dbname=options.dbname,
        user=options.user,
    )
