"""What the commands say beside their data: notes, warnings, questions. All of it goes to stderr."""

from __future__ import annotations

import sys

import typer

from rdsrepl.cli.options import shared


def note(ctx: typer.Context, text: str) -> None:
    """Say something worth knowing; ``--quiet`` leaves it out."""
    if not shared(ctx).quiet:
        _print(ctx, text, style="dim")


def warn(ctx: typer.Context, text: str) -> None:
    """Say something that must be read."""
    _print(ctx, f"warning: {text}", style="yellow")


def ask(question: str) -> bool:
    """Ask a person at the terminal; anything but ``y`` or ``yes`` is no."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def can_ask() -> bool:
    """Say whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _print(ctx: typer.Context, text: str, *, style: str) -> None:
    from rdsrepl.render import console

    out = console(sys.stderr)
    out.print(text, style=None if shared(ctx).no_color else style)
