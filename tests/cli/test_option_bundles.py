"""Commands that receive options in dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from rdsrepl.cli.option_bundles import with_bundles


@dataclass(frozen=True)
class Limits:
    """Two options that commands share."""

    rows: Annotated[int, typer.Option("--rows", help="Print at most N rows.")] = 10
    table: Annotated[list[str] | None, typer.Option("--table", help="Print only this table.")] = None


def test_a_bundle_becomes_its_options_and_arrives_as_one_object() -> None:
    received: list[Any] = []

    @with_bundles
    def show(ctx: typer.Context, name: str, *, limits: Limits, all: bool = False) -> None:
        """Show a thing."""
        received.append((ctx.info_name, name, limits, all))

    app = typer.Typer()
    app.command()(show)
    for words in (["a"], ["a", "--rows", "3", "--table", "x", "--table", "y", "--all"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert received == [("show", "a", Limits(), False), ("show", "a", Limits(3, ["x", "y"]), True)]
    assert "Print only this table." in CliRunner().invoke(app, ["--help"]).output
