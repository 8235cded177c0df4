"""Turn what the parser of the command line refuses into an error with a hint that runs when pasted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import typer

from rdsrepl.cli import other_tools
from rdsrepl.cli.context import typed_words
from rdsrepl.errors import UsageError
from rdsrepl.text.escapes import is_plain
from rdsrepl.text.suggestions import closest

_EXTRA: Final = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)


def unknown_command(ctx: Any, words: Sequence[str], nouns: Mapping[str, Any]) -> UsageError:
    """Return the error for words that no command of a group begins with.

    Args:
        ctx: the context of the group.
        words: the words after the group.
        nouns: the commands of the root.
    """
    group = "" if ctx.parent is None else str(ctx.info_name)
    commands = list(ctx.command.commands)
    line = other_tools.command_line(group, commands, words, nouns)
    near = closest(words[0], commands)
    if advice := other_tools.command_advice(words[0]):
        hint = advice
    elif not all(map(is_plain, words)):
        hint = f"{ctx.command_path} --help lists the commands"
    elif line is not None:
        hint = _pasted(ctx, words, line)
    elif near is not None:
        hint = _pasted(ctx, words, shlex.join([*([group] if group else []), near, *words[1:]]))
    else:
        hint = f"its commands are: {', '.join(commands)}" if group else "rdsrepl --help lists the commands"
    return UsageError(f"{ctx.command_path} has no command {words[0]!r}", hint=hint)


@contextmanager
def unknown_options(ctx: Any) -> Iterator[None]:
    """Replace the parser's error for an option that the command of a context does not have.

    Raises:
        UsageError: there is such an option.
    """
    try:
        yield
    except typer.TyperException as exc:
        if getattr(exc, "ctx", ctx) is None:
            vars(exc)["ctx"] = ctx
        if not hasattr(exc, "possibilities"):
            raise
        raise _unknown_option(ctx, str(vars(exc)["option_name"])) from exc


def _unknown_option(ctx: Any, option: str) -> UsageError:
    known = [flag for parameter in ctx.command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
    words = typed_words(ctx)
    line = other_tools.option_line(words, known)
    near = closest(option, [flag for flag in known if flag.startswith("--")], cutoff=0.7)
    if advice := other_tools.option_advice(option):
        hint = advice
    elif line is not None and all(map(is_plain, words)):
        hint = " ".join(["rdsrepl", line])
    else:
        hint = f"did you mean {near}?" if near else f"{ctx.command_path} --help lists its options"
    return UsageError(f"{ctx.command_path} has no option {option}", hint=hint)


def show_help(exc: Any) -> bool:
    """Print the help of a group without a command, if that is what the parser raised; return whether it was."""
    if type(exc).__name__ != "NoArgsIsHelpError":
        return False
    exc.show()
    return True


def refused(exc: typer.TyperException) -> UsageError:
    """Return the error for anything else that the parser refuses: a missing operand, a value of the wrong kind."""
    ctx = getattr(exc, "ctx", None)
    parameter = getattr(exc, "param", None)
    path = ctx.command_path if ctx is not None else "rdsrepl"
    hint = f"{path} --help"
    if ctx is not None and parameter is not None and parameter.name == "output":
        words = typed_words(ctx)
        hint = next(filter(None, map(other_tools.output_advice, _values(words, parameter.opts))), hint)
    message = (exc.format_message() or "Missing command.").rstrip(".")
    if extra := _EXTRA.fullmatch(message):
        message = f"unexpected argument: {extra[1]}"
    return UsageError(message, hint=hint)


def _values(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return the values of an option on a command line."""
    values: list[str] = []
    for number, word in enumerate(words):
        for flag in flags:
            if word == flag:
                values += words[number + 1 : number + 2]
            elif word.startswith(flag):
                values.append(word.removeprefix(flag).removeprefix("="))
    return values


def _pasted(ctx: Any, words: Sequence[str], line: str) -> str:
    """Return the whole command line with LINE in place of a group and the words after it."""
    before = typed_words(ctx)
    before = before[: len(before) - len(words)]
    if ctx.parent is not None and before:
        before = before[:-1]
    return " ".join(["rdsrepl", *([shlex.join(before)] if before else []), line])
