"""The command reference is generated from the command line, and every command has a help text and an example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from rdsrepl.cli import lazy_commands
from rdsrepl.cli.main import app
from tests import ROOT
from tests.fixtures.program import Program

KEPT = ROOT / "docs" / "reference.md"


def commands() -> Iterator[tuple[str, Any]]:
    """Return every command, by its words."""

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield words, command
        else:
            for name, child in children.items():
                yield from walk(f"{words} {name}", child)

    yield from walk("rdsrepl", typer.main.get_command(app))


ALL = dict(commands())


def test_the_reference_is_current() -> None:
    command = [sys.executable, "-m", "typer", "rdsrepl.cli.main", "utils", "docs", "--name", "rdsrepl"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
    text = made.stdout.strip() + "\n"
    if os.environ.get("RDSREPL_UPDATE"):
        KEPT.write_text(text)
    assert KEPT.read_text() == text, "run make docs to update it"


def test_the_index_of_the_commands_is_current() -> None:
    """Completion takes names and summaries from it, and imports no command."""
    root: Any = typer.main.get_command(app)
    groups = [root, *(one for one in root.commands.values() if hasattr(one, "commands"))]
    index = {
        group.name: {name: one.get_short_help_str() for name, one in group.commands.items() if not one.hidden}
        for group in groups
    }
    text = json.dumps(index, indent=1) + "\n"
    if os.environ.get("RDSREPL_UPDATE"):
        lazy_commands.INDEX.write_text(text)
    assert lazy_commands.INDEX.read_text() == text, "run make docs to update it"


@pytest.mark.parametrize("words", ALL)
def test_every_command_has_help_and_an_example(words: str) -> None:
    command = ALL[words]
    assert command.help, f"{words} has no help"
    assert "Example:" in command.help and words in command.help, f"{words} has no example"
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name in ("help",), f"{words}: {parameter.name} has no help"


OUTPUT = {"--output", "--verbose", "--quiet", "--no-color"}
AWS = {"--target", "--profile", "--region"}
SERVER = AWS | {"--cluster", "--instance"}
DATABASE = SERVER | {"--dsn", "--dbname", "--user"}
# The commands that use no database, with the server options that they take. The longest name decides.
SCOPES = {
    "cluster": AWS, "cluster reboot": DATABASE, "cluster failover": DATABASE, "cluster delete": DATABASE,
    "instance": AWS, "instance reboot": DATABASE, "instance failover": DATABASE, "instance promote": DATABASE,
    "param-group": AWS, "param-group create": SERVER, "param-group attach": DATABASE, "param-group diff": DATABASE,
    "stream": AWS, "iam-policy": SERVER,
    "runbook list": set(), "runbook show": set(), "config": set(), "sandbox": set(), "demo": set(), "help": set(),
    "completion": set(), "apply": set(),
}  # fmt: skip


@pytest.mark.parametrize("words", ALL)
def test_a_command_takes_the_global_options_that_it_can_use(words: str) -> None:
    parents = [name for name in SCOPES if f"{words} ".startswith(f"rdsrepl {name} ")]
    wanted = SCOPES[max(parents, key=len)] if parents else DATABASE
    added = getattr(ALL[words], "_added", ())
    assert {option.opts[0] for option in added} & DATABASE <= wanted
    options = {option for parameter in ALL[words].params for option in getattr(parameter, "opts", ())}
    assert wanted | OUTPUT - ({"--output"} if words == "rdsrepl psql" else set()) <= options


@pytest.mark.parametrize("words", ALL)
def test_dash_h_is_help_on_every_level(words: str) -> None:
    taken = [parameter.name for parameter in ALL[words].params if "-h" in getattr(parameter, "opts", ())]
    assert taken == []


@pytest.mark.parametrize("words", ["slot tail", "snapshot start", "cluster create"])
def test_no_word_of_a_help_page_is_cut(rdsrepl: Program, words: str) -> None:
    """On 80 columns the name of a long option could not be read."""
    page = rdsrepl(*words.split(), "--help", env={"COLUMNS": "80"}).out
    assert "…" not in page
    assert max(map(len, page.splitlines())) <= 80
