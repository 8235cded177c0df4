"""``rdsrepl demo``."""

from __future__ import annotations

import typer

from rdsrepl.cli.options import Reader

Verb = Reader


def demo(ctx: typer.Context) -> None:
    """Walk the whole path."""
