"""Declare the options that several commands share, and the classes of commands that take them.

``ReadCommand`` is the class of a command that reads, ``WriteCommand`` of one that changes something; ``Aws…``,
``Server…`` and ``Local…`` variants take fewer options, because they use no database. The global options are accepted
before the noun and after the verb; the one after the verb wins. Only the root reads the environment variables
``RDSREPL_*``, so that they never override an option of the command line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import cleandoc
from typing import Annotated, Any, ClassVar, Final, TypeVar, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from rdsrepl.cli.completion import complete_cluster, complete_instance, complete_profile, complete_target
from rdsrepl.cli.context import (
    SERVER_OPTIONS,
    LogFormat,
    add_global_options,
    applied_plan,
    apply_options,
    global_options,
    refuse_unusable,
    set_apply_options,
    set_list_options,
)
from rdsrepl.cli.option_values import UNKNOWN, converted
from rdsrepl.cli.saved_plans import keep_verb
from rdsrepl.cli.usage_errors import unknown_command, unknown_options
from rdsrepl.errors import BadValue, Interrupted, UsageError
from rdsrepl.lsn import Lsn
from rdsrepl.render import Format, line_for_person
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


def _global_options(
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


def _apply_options(
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


def _list_options(
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


def _out_option(
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


def _preview_options(
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
    return _declared(_global_options)


@cache
def _verb_options(holder: Callable[..., None]) -> tuple[TyperOption, ...]:
    options = tuple(copy.copy(option) for option in _declared(holder))
    for option in options:
        option.envvar = None
    return options


class _Option(TyperOption):
    """An option whose errors quote the value."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Convert the value, unless the shell completes the line."""
        return _process(self, ctx, value, super().process_value)

    def get_missing_message(self, ctx: Any) -> str:  # noqa: ARG002 - the signature is that of Typer
        """Return what could be given, in one line."""
        return _choices(self)


class _Argument(TyperArgument):
    """An argument whose errors quote the value."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Convert the value, unless the shell completes the line."""
        return _process(self, ctx, value, super().process_value)

    def get_missing_message(self, ctx: Any) -> str:  # noqa: ARG002 - the signature is that of Typer
        """Return what could be given, in one line."""
        return _choices(self)


def _choices(option: Any) -> str:
    choices = option.type_descriptor.choices or ()
    return f"Choose from {', '.join(str(getattr(one, 'value', one)) for one in choices)}" if choices else ""


def _process(option: Any, ctx: Any, value: Any, by_typer: Callable[[Any, Any], Any]) -> Any:
    """Convert a value, and call the callback of its option; while the shell completes a line, values stay text."""
    if ctx.resilient_parsing:
        return value
    result = UNKNOWN if getattr(option, "prompt", None) else converted(option, value)
    if result is UNKNOWN or (option.required and option.value_is_missing(result)):
        with plain_refusal():
            return by_typer(ctx, value)
    return result if option.callback is None else option.callback(ctx, option, result)


@contextmanager
def plain_refusal() -> Iterator[None]:
    """Replace pydantic's text of a refused value ("Value error, …", "Input should be …") with one that quotes it."""
    try:
        yield
    except typer.BadParameter as exc:
        errors = getattr(exc.__cause__, "errors", None)
        if errors is not None:
            exc.message = line_for_person(_refusal(errors()[0]))
        raise


def _refusal(error: Any) -> str:
    """Return why pydantic refused a value, from an item of ``ValidationError.errors()``."""
    value, limits = error["input"], error.get("ctx", {})
    if error["type"] == "value_error":
        return str(limits["error"])
    if error["type"] == "greater_than_equal":
        return f"{value} is less than {limits['ge']}"
    if error["type"] == "less_than_equal":
        return f"{value} is more than {limits['le']}"
    return f"{value!r} is not a {'whole number' if error['type'].startswith('int') else 'valid value'}"


def simplify(option: Any) -> Any:
    """Return Typer's option, faster, with shorter help, and with the values of an enumeration in any case."""
    if type(option) is TyperArgument:
        option.__class__ = _Argument
    if isinstance(option, (TyperArgument, TyperOption)):
        option.type_descriptor.parameter_info.case_sensitive = False
    if not isinstance(option, TyperOption):
        return option
    if option.is_flag or option.count:
        option.metavar = ""
    if option.metavar == "DURATION" and isinstance(option.default, float):
        option.default = f"{option.default:g}s"
    option.__class__ = _Option
    return option


class CommandGroup(TyperGroup):
    """A noun: a group of commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that ARGS begin with.

        Raises:
            UsageError: there is none; the hint is the command line that is probably meant.
        """
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise unknown_command(ctx, args, ctx.find_root().command.commands)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options in front of the command."""
        with unknown_options(ctx):
            return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, those of Typer as well, simplified."""
        return [simplify(parameter) for parameter in super().get_params(ctx)]


class ReadCommand(TyperCommand):
    """A command that changes nothing; takes the global options."""

    _holders: tuple[Callable[..., None], ...] = (_global_options,)
    #: The server options that the command can use; it refuses the others, and ignores their environment variables.
    server_options: ClassVar[frozenset[str]] = frozenset(SERVER_OPTIONS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _paragraphs(self.help)
        own = {flag for option in self.params for flag in option.opts}
        # An option of the command replaces the global one: --dbname of `cluster create` names the new database.
        self._unusable = frozenset(SERVER_OPTIONS) - self.server_options
        self._added = [
            option
            for holder in self._holders
            for option in _verb_options(holder)
            if not own & set(option.opts) and option.name not in self._unusable
        ]
        self.params = [*self.params, *self._added]

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, those of Typer as well, simplified."""
        return [simplify(parameter) for parameter in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remove the global options from what the command's function receives, and keep them in the context."""
        with unknown_options(ctx):
            rest = super().parse_args(ctx, args)
        own = {option.name: ctx.params.pop(option.name) for option in self._added}
        refuse_unusable(ctx, self._unusable)
        add_global_options(ctx, own)
        set_apply_options(ctx, own)
        set_list_options(ctx, own)
        if not ctx.resilient_parsing:
            self._check_output(ctx)
        return rest

    def _check_output(self, ctx: Any) -> None:
        output = global_options(ctx).output
        if output in (Format.name, Format.csv):
            raise UsageError(
                f"-o {output} is for lists: {ctx.command_path} prints no list", hint="use -o json or -o yaml"
            )


def _paragraphs(text: str | None) -> str | None:
    """Return a docstring with one line a paragraph, so that the help is as wide as the terminal."""
    return None if text is None else "\n\n".join(" ".join(part.split()) for part in cleandoc(text).split("\n\n"))


class ListCommand(ReadCommand):
    """A command that prints a list; takes ``--sort-by``, ``--filter``, ``--no-headers``, ``--watch``, ``--query``."""

    _holders = (_global_options, _list_options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--watch`` its default value where none follows it."""
        if not ctx.resilient_parsing:
            args = _with_interval(args)
        return super().parse_args(ctx, args)

    def _check_output(self, ctx: Any) -> None:
        """Accept every format."""


def _with_interval(args: list[str]) -> list[str]:
    """Return the arguments with a value attached to ``--watch``: the next word if it is a duration, or the default."""
    end = args.index("--") if "--" in args else len(args)
    rest, words = args[:end], list[str]()
    while rest:
        word = rest.pop(0)
        if word in ("--watch", "-w"):
            word = f"--watch={rest.pop(0) if rest and _is_duration(rest[0]) else f'{WATCH_SECONDS:g}s'}"
        words.append(word)
    return words + args[end:]


def _is_duration(word: str) -> bool:
    try:
        parse_duration(word)
    except BadValue:
        return False
    return True


class WriteCommand(ReadCommand):
    """A command that applies a plan; takes ``--yes``, ``--dry-run``, ``--check`` and ``--out`` as well."""

    _holders: tuple[Callable[..., None], ...] = (_global_options, _apply_options, _out_option)

    @property
    def own_flags(self) -> frozenset[str]:
        """The options of this command alone, without its confirmation."""
        own = [one for one in self.params if one not in self._added and one.name != "confirm"]
        return frozenset(flag for one in own for flag in (*one.opts, *one.secondary_opts))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed for the file of ``--out``.

        Raises:
            typer.BadParameter: ``--out`` has no file, or is used with ``--yes``.
        """
        words = list(args)
        rest = super().parse_args(ctx, args)
        given = apply_options(ctx)
        if given.out is None or ctx.resilient_parsing:
            return rest
        if given.yes or given.out in ("", "-"):
            why = (
                "cannot be used together with --yes: it applies nothing" if given.yes else "requires the name of a file"
            )
            raise typer.BadParameter(why, ctx=ctx, param_hint="'--out'")
        typed, _, _ = self.make_parser(ctx).parse_args(words)
        keep_verb(ctx, typed, frozenset(str(option.name) for option in self._added))
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; on Ctrl-C outside of a plan's steps, report whether the plan was applied.

        Raises:
            Interrupted: Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            title = applied_plan(ctx)
            what = "nothing was changed" if title is None else f"all steps of the plan were applied: {title}"
            raise Interrupted(f"interrupted; {what}") from None


class ApplyCommand(WriteCommand):
    """``rdsrepl apply``: its server is in the file."""

    _holders = (_global_options, _apply_options)
    server_options = frozenset()


_AWS_OPTIONS: Final = frozenset({"target", "profile", "region"})


class AwsReadCommand(ReadCommand):
    """A command that reads from AWS, and uses no database."""

    server_options = _AWS_OPTIONS


class AwsWriteCommand(WriteCommand):
    """A command that changes something in AWS, and uses no database."""

    server_options = _AWS_OPTIONS


class ServerReadCommand(ReadCommand):
    """A command that takes a cluster or an instance, and does not connect to it."""

    server_options = _AWS_OPTIONS | {"cluster", "instance"}


class ServerWriteCommand(WriteCommand):
    """A command that changes something for a cluster or an instance, and does not connect to it."""

    server_options = _AWS_OPTIONS | {"cluster", "instance"}


class AwsListCommand(ListCommand):
    """A command that prints a list from AWS, and uses no database."""

    server_options = _AWS_OPTIONS


class LocalCommand(ReadCommand):
    """A command that uses neither a database nor AWS."""

    server_options = frozenset()


class LocalListCommand(ListCommand):
    """A command that prints a list of its own."""

    server_options = frozenset()


class LocalWriteCommand(LocalCommand):
    """A command that changes a local file without asking; takes ``--dry-run`` and ``--check``."""

    _holders = (_global_options, _preview_options)
