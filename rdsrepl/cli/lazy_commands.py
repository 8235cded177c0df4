"""Import and build a command when it is first needed: a command line runs one of about seventy.

To import all modules of ``rdsrepl slot`` takes longer than everything else that ``slot list`` does before it connects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import typer
from typer.models import CommandInfo

#: The short help of every command that is not hidden, by group and name; ``make docs`` writes it.
INDEX: Final = Path(__file__).with_name("command_index.json")


class Commands(Mapping[str, Any]):
    """Commands by name, in the order of the help; each is built at its first use."""

    def __init__(self, builders: Mapping[str, Callable[[], Any]]) -> None:
        self._builders = builders
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._builders[name]()
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)

    def __contains__(self, name: object) -> bool:
        return name in self._builders


def noun(name: str, module: str, cls: type[Any]) -> Any:
    """Return the group of a noun; its commands are built when they are used.

    Args:
        name: the noun.
        module: has ``app``, with the verbs of that module, and may have ``VERB_MODULES``: the modules of other verbs,
            by verb. Such a module is imported when its verb is used, and its ``register(app)`` adds the verb.
        cls: the class of the group.
    """
    source = import_module(module)
    app: typer.Typer = source.app
    builders: dict[str, Callable[[], Any]] = {_name(info): partial(_built, info) for info in app.registered_commands}
    for verb, place in getattr(source, "VERB_MODULES", {}).items():
        builders[verb] = partial(_imported_verb, place, verb)
    without_verbs = typer.Typer(pretty_exceptions_enable=False)
    without_verbs.info = app.info
    holder = typer.Typer(pretty_exceptions_enable=False)
    holder.add_typer(without_verbs, name=name, cls=cls)
    group: Any = typer.main.get_group(holder).commands[name]
    group.commands = Commands(builders)
    return group


def command(name: str, function: Callable[..., Any], cls: type[Any]) -> Any:
    """Return a command of the root."""
    holder = typer.Typer(pretty_exceptions_enable=False)
    holder.command(name, cls=cls)(function)
    return _built(holder.registered_commands[0])


def summaries(group: str | None) -> Mapping[str, str]:
    """Return the short help of the commands of a group, for the completion of their names; empty if not known."""
    index: dict[str, dict[str, str]] = json.loads(INDEX.read_text(encoding="utf-8"))
    return index.get(group or "", {})


def _name(info: CommandInfo) -> str:
    assert info.callback is not None
    return info.name or typer.main.get_command_name(info.callback.__name__)


def _imported_verb(module: str, verb: str) -> Any:
    part = typer.Typer()
    import_module(module).register(part)
    return _built(next(info for info in part.registered_commands if _name(info) == verb))


def _built(info: CommandInfo) -> Any:
    holder = typer.Typer(pretty_exceptions_enable=False)
    holder.registered_commands = [info]
    return typer.main.get_group(holder).commands[_name(info)]
