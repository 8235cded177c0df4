"""``rdsrepl help``: print the pages of the documentation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from rdsrepl import help_topics
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.errors import Error
from rdsrepl.render import Column, emit, listing, paged

_COLUMNS: Final = (
    Column("TOPIC", lambda row: row.topic),
    Column("PAGE", lambda row: row.title, kind="prose"),
)


def complete_topic(ctx: typer.Context) -> list[str]:
    """Complete a topic or a command, and after a noun its verbs."""
    given = ctx.params.get("words") or ()
    command = _command(ctx, given)
    verbs = list(getattr(command, "commands", ()))
    if given:
        return verbs
    try:
        return sorted({*help_topics.names(), *verbs})
    except (Error, OSError):
        return verbs


def help_(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TOPIC",
            help="The topic, or a command such as: slot tail.",
            autocompletion=complete_topic,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a page of the documentation, or list the pages.

    On a terminal the page is formatted, and shown in $PAGER when it is longer than the screen; elsewhere it is
    printed as Markdown. For a command, the output of --help is printed.

    Example: rdsrepl help exit-codes
    """
    output = global_options(ctx).output
    if not words:
        rows = help_topics.ls()
        emit(
            rows,
            output,
            lambda: listing(rows, _COLUMNS, empty="none"),
        )
        if output.is_table:
            note(ctx, "to print one: rdsrepl help TOPIC; for the options of a command: rdsrepl help slot tail")
        return
    name = help_topics.find(words)
    if name is not None:
        _page(ctx, name)
        return
    command = _command(ctx, words)
    if command is None:
        raise help_topics.unknown(words, _all_commands(ctx.find_root().command, ""))
    if output.is_table:
        # The same as --help: usage, arguments, options.
        ctx.find_root().command.main([*words, "--help"], prog_name=ctx.find_root().info_name, standalone_mode=False)
        return
    emit({"command": " ".join(words), "help": command.help}, output, lambda: "")


def _page(ctx: typer.Context, name: str) -> None:
    text = help_topics.read(name)
    output = global_options(ctx).output
    if not output.is_table:
        (topic,) = (row for row in help_topics.ls() if row.topic == name)
        emit({"topic": topic.topic, "title": topic.title, "text": text}, output, lambda: "")
        return
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.markdown import Markdown

    shown = help_topics.for_terminal(text)
    if _command(ctx, [name]) is not None:
        shown += f"\n\nIts options: `rdsrepl {name} --help`\n"
    # The colours of the terminal, so that the page is readable on a light background as well.
    paged(Markdown(shown, hyperlinks=False, code_theme="ansi_dark"))


def _command(ctx: typer.Context, words: Any) -> Any:
    """Return the command or group that WORDS name; None where they name none."""
    command: Any = ctx.find_root().command
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            return None
    return command


def _all_commands(command: Any, before: str) -> Iterator[str]:
    for name, child in getattr(command, "commands", {}).items():
        yield before + name
        yield from _all_commands(child, f"{before}{name} ")
