"""``rdsrepl publication``."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="publication")


@app.callback()
def group() -> None:
    """Hold the verbs."""
