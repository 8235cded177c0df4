"""The classes of commands: which of the shared options a command takes.

``ReadCommand`` is the class of a command that reads, ``WriteCommand`` of one that changes something; ``Aws…``,
``Server…`` and ``Local…`` variants take fewer options, because they use no database. The global options are accepted
before the noun and after the verb; the one after the verb wins.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Any, ClassVar, Final

import typer
from typer.core import CompletionItem, TyperCommand, TyperGroup  # type: ignore[attr-defined]

from rdsrepl.cli.context import (
    SERVER_OPTIONS,
    add_global_options,
    applied_plan,
    apply_options,
    global_options,
    refuse_unusable,
    set_apply_options,
    set_list_options,
)
from rdsrepl.cli.help_tables import fold_long_words
from rdsrepl.cli.lazy_commands import summaries
from rdsrepl.cli.options import (
    WATCH_SECONDS,
    declare_apply_options,
    declare_global_options,
    declare_list_options,
    declare_out_option,
    declare_preview_options,
    verb_options,
)
from rdsrepl.cli.parser_parameters import simplify
from rdsrepl.cli.usage_errors import unknown_command, unknown_options
from rdsrepl.errors import BadValue, Interrupted, UsageError
from rdsrepl.render import Format
from rdsrepl.units import parse_duration


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

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the name of a command; a command in the index is neither imported nor built."""
        known = summaries(self.name)
        commands: Any = self.commands
        items = [
            CompletionItem(name, help=known.get(name) or commands[name].get_short_help_str())
            for name in commands
            if name.startswith(incomplete) and (name in known or not commands[name].hidden)
        ]
        return [*items, *super(TyperGroup, self).shell_complete(ctx, incomplete)]


class ReadCommand(TyperCommand):
    """A command that changes nothing; takes the global options."""

    _holders: tuple[Callable[..., None], ...] = (declare_global_options,)
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
            for option in verb_options(holder)
            if not own & set(option.opts) and option.name not in self._unusable
        ]
        self.params = [*self.params, *self._added]

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, those of Typer as well, simplified."""
        return [simplify(parameter) for parameter in super().get_params(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page."""
        fold_long_words()
        super().format_help(ctx, formatter)

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

    _holders = (declare_global_options, declare_list_options)

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

    _holders: tuple[Callable[..., None], ...] = (declare_global_options, declare_apply_options, declare_out_option)

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
        from rdsrepl.cli.saved_plans import keep_verb

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

    _holders = (declare_global_options, declare_apply_options)
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

    _holders = (declare_global_options, declare_preview_options)
