"""What the commands say beside their data: notes, warnings, questions. All of it goes to stderr."""

from __future__ import annotations

import sys

import typer

from rdsrepl.cli.context import LogFormat, global_options
from rdsrepl.render import line_for_person, log
from rdsrepl.units import format_duration


def note(ctx: typer.Context, text: str) -> None:
    """Say something worth knowing; ``--quiet`` leaves it out."""
    log_event(ctx, text, event="note")


def log_event(ctx: typer.Context, text: str, *, event: str, **fields: object) -> None:
    """Say something worth knowing, with FIELDS for those who read logs; ``--quiet`` leaves it out."""
    if global_options(ctx).quiet:
        return
    if global_options(ctx).log_format is LogFormat.json:
        log("info", text, event=event, **fields)
    else:
        _print(ctx, text, style="dim")


def warn(ctx: typer.Context, text: str) -> None:
    """Say something that must be read."""
    if global_options(ctx).log_format is LogFormat.json:
        log("warning", text, event="warning")
    else:
        _print(ctx, f"warning: {text}", style="yellow")


def prompt_yes(question: str) -> bool:
    """Ask a person at the terminal; anything but ``y`` or ``yes`` is no."""
    return _answer(f"{question} [y/N]").lower() in ("y", "yes")


def prompt_exact(question: str, wanted: str) -> bool:
    """Ask a person at the terminal to type something; return whether it is that."""
    return _answer(question) == wanted


def _answer(question: str) -> str:
    try:
        sys.stderr.write(f"{line_for_person(question)} ")
        sys.stderr.flush()
        return sys.stdin.readline().strip()
    except KeyboardInterrupt:
        sys.stderr.write("\n")  # the terminal shows ^C behind the question
        raise


def is_interactive() -> bool:
    """Say whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class Progress:
    """How far something is that takes its time.

    On a terminal one line that is written anew; elsewhere a line when the state changes, and a heartbeat.
    """

    def __init__(self, ctx: typer.Context, *, heartbeat_seconds: float = 30.0) -> None:
        self._ctx = ctx
        self._live = sys.stderr.isatty()
        self._heartbeat_seconds = heartbeat_seconds
        self._said = ""
        self._said_at = 0.0
        self._shown = False

    def say(self, text: str, seconds: float) -> None:
        """Say how it is after so many seconds; the first second is not worth a word."""
        if global_options(self._ctx).quiet or seconds < 1:
            return
        if self._live:
            from rdsrepl.render import console

            line = line_for_person(f"{text} ({format_duration(seconds)})")
            sys.stderr.write("\r\x1b[2K" + line[: console(sys.stderr).width - 1])
            sys.stderr.flush()
            self._shown = True
        elif text != self._said or seconds - self._said_at >= self._heartbeat_seconds:
            note(self._ctx, f"{text} ({format_duration(seconds)})")
            self._said, self._said_at = text, seconds

    def clear(self) -> None:
        """Take the line off the terminal; what comes next begins afresh."""
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._shown, self._said, self._said_at = False, "", 0.0


def _print(ctx: typer.Context, text: str, *, style: str) -> None:
    from rdsrepl.render import console

    out = console(sys.stderr)
    out.print(text, style=None if global_options(ctx).no_color else style)
