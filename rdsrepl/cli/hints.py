"""Add the selectors of the command line to the commands in hints, so that they reach the same server when pasted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import typer

from rdsrepl.cli.context import SERVER_OPTIONS, GlobalOptions, global_options, typed_words
from rdsrepl.errors import Error, Instead
from rdsrepl.text.commands import STEP_OPTIONS, find, typed
from rdsrepl.text.escapes import is_plain
from rdsrepl.text.masking import mask

# The options that name a server. A command with one of them needs no other, nor does one that names it as its argument.
_SERVER: Final = frozenset({"dsn", "cluster", "instance"})
_NAMES_SERVER: Final = ("cluster", "instance", "param-group")


def hint_of(ctx: typer.Context, error: Error) -> str | None:
    """Return the hint of an error, as it is printed: its commands run when they are pasted."""
    instead = None if error.instead is None else error.instead()
    commands = [] if instead is None else [_again(ctx, instead, choice) for choice in instead.choices]
    if instead is not None and all(commands):
        return f"{instead.reason}: {', or '.join(map(str, commands))}"
    return None if error.hint is None else with_selectors(ctx, error.hint)


def _again(ctx: typer.Context, instead: Instead, choice: Mapping[str, str]) -> str | None:
    """Return the command line that was typed, with other selectors; None if it cannot be pasted."""
    root: Any = ctx.find_root().command
    options = _as_typed(global_options(ctx))
    noun, words = _without_selectors(root, typed_words(ctx))
    (kind, value), *_ = choice.items()
    if noun in ("cluster", "instance"):  # its argument names the server
        at = words.index(noun) + 1
        verb = words[at] if words[at] in root.commands[kind].commands else "show"
        words = [*words[: at - 1], kind, verb, *(value if word == instead.name else word for word in words[at + 1 :])]
        choice = {}
    kept = options.typed - choice.keys() - (_SERVER if _SERVER & choice.keys() else frozenset())
    values: dict[str, Any] = dict(choice)
    chosen = replace(options, **values, typed=kept | choice.keys())
    return typed([*_selectors(root, chosen, words, chosen=choice.keys()), *words])


def _without_selectors(root: Any, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the noun of a command line, and its words without the options that select a server or an account."""
    flags = {flag: option for option in root.params for flag in option.opts}
    noun, command = _find_command(root, flags, words)
    used = getattr(command, "server_options", ())
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return noun, [*kept, word, *rest]
        flag = word.partition("=")[0] if word.startswith("--") else word[:2]
        name = flags[flag].name if flag in flags else None
        if name not in SERVER_OPTIONS or (noun in kept and name not in used):
            kept.append(word)
        elif word == flag:
            next(rest, None)
    return noun, kept


def with_selectors(ctx: typer.Context, text: str) -> str:
    """Return a text whose commands select the server and the AWS account that the user typed.

    ``rdsrepl slot list`` becomes ``rdsrepl --instance orders slot list`` if ``--instance orders`` was typed. Selectors
    of the environment and of the config file are in effect without it. A password in ``--dsn`` is left out.
    """
    options = _as_typed(global_options(ctx))
    if not options.typed & {*SERVER_OPTIONS}:
        return text
    root = ctx.find_root().command
    for found in reversed(list(find(text))):
        words = _selectors(root, options, found.words)
        if not all(map(is_plain, words)):  # without them, the command would reach another server
            text = f"{text[: found.start]}(no command is shown: an option cannot be pasted){text[found.end :]}"
        elif words:
            at = found.start + len("rdsrepl")
            text = f"{text[:at]} {shlex.join(words)}{text[at:]}"
    return text


def _as_typed(options: GlobalOptions) -> GlobalOptions:
    """Return the options with those that a runbook gave to its step in the environment, which ends with the step."""
    return replace(options, typed=options.typed.union(os.environ.get(STEP_OPTIONS, "").split(",")))


def server_options(ctx: typer.Context, words: Sequence[str]) -> frozenset[str]:
    """Return the options that select a server or an account and that a command takes, given by its words."""
    root = ctx.find_root().command
    flags = {flag: option for option in root.params for flag in option.opts}
    return frozenset(getattr(_find_command(root, flags, words)[1], "server_options", SERVER_OPTIONS))


def _selectors(root: Any, options: GlobalOptions, command: Sequence[str], *, chosen: Collection[str] = ()) -> list[str]:
    """Return the selectors that a command uses, does not have, and does not replace; CHOSEN are always among them."""
    own = command[: command.index("--")] if "--" in command else command
    flags = {flag: option for option in root.params for flag in option.opts}
    given = {str(flags[flag].name) for word in own if (flag := word.partition("=")[0]) in flags}
    noun, leaf = _find_command(root, flags, own)
    used = frozenset[str](getattr(leaf, "server_options", ())) - given
    if "target" in given:
        return []
    if given & _SERVER or noun in _NAMES_SERVER:
        used -= _SERVER - {*chosen}
    selectors: list[str] = []
    for name in SERVER_OPTIONS:
        value = _without_secret(getattr(options, name)) if name == "dsn" else getattr(options, name)
        if name in used & options.typed and value:
            selectors += ["-t" if name == "target" else f"--{name}", value]
    return selectors


def _find_command(root: Any, flags: Mapping[str, Any], words: Sequence[str]) -> tuple[str, Any]:
    """Return the noun of a command line and its command; the root where the words are not a command."""
    noun, node, is_value = "", root, False
    for word in words:
        if is_value:
            is_value = False
        elif word.startswith("-"):
            option = flags.get(word)
            is_value = option is not None and not option.is_flag and not option.count
        elif word in getattr(node, "commands", ()):
            noun, node = noun or word, node.commands[word]
        else:
            break
    return noun, node


def _without_secret(dsn: str | None) -> str | None:
    """Return a connection string without its password; None if it is not a connection string, which is the error."""
    if dsn is None or mask(dsn) == dsn:
        return dsn
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    from rdsrepl.config import SECRETS

    try:
        keywords = conninfo_to_dict(dsn)
    except (ProgrammingError, ValueError):
        return None
    return make_conninfo(**{key: str(word) for key, word in keywords.items() if key not in SECRETS})
