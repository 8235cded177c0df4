"""Print notes, warnings and questions to stderr; stdout is for data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rdsrepl.cli.context import LogFormat, global_options
from rdsrepl.cli.hints import with_selectors
from rdsrepl.render import line_for_person, log


def note(ctx: typer.Context, text: str) -> None:
    """Print a note, unless ``--quiet`` is given."""
    log_event(ctx, text, event="note")


def log_event(ctx: typer.Context, text: str, *, event: str, **fields: object) -> None:
    """Print a note, with FIELDS in a JSON log, unless ``--quiet`` is given."""
    if global_options(ctx).quiet:
        return
    text = with_selectors(ctx, text)
    if global_options(ctx).log_format is LogFormat.json:
        log("info", text, event=event, **fields)
    else:
        _print(ctx, text, style="dim")


def warn(ctx: typer.Context, text: str) -> None:
    """Print a warning."""
    text = with_selectors(ctx, text)
    if global_options(ctx).log_format is LogFormat.json:
        log("warning", text, event="warning")
    else:
        _print(ctx, f"warning: {text}", style="yellow")


def prompt_yes(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; any answer but ``y`` or ``yes`` is no."""
    return (prompt_line(f"{question} [y/N]") or "").lower() in ("y", "yes")


def prompt_exact(question: str, wanted: str) -> bool:
    """Ask the user to type a text; return whether the answer is that text."""
    return prompt_line(question) == wanted


def prompt_password(question: str) -> str:
    """Ask for a password on the terminal, without showing it; empty at the end of the input."""
    import getpass

    try:
        with _ended_line():
            return getpass.getpass(f"{line_for_person(question)} ", stream=sys.stderr)
    except EOFError:
        return ""


def prompt_line(question: str) -> str | None:
    """Ask for a line on the terminal; None at the end of the input, which is Ctrl-D."""
    with _ended_line():
        sys.stderr.write(f"{_wrapped(line_for_person(question))} ")
        sys.stderr.flush()
        line = sys.stdin.readline()
    if not line.endswith("\n"):
        sys.stderr.write("\n")
    return line.strip() if line else None


def _wrapped(text: str) -> str:
    """Break a line at its spaces; a terminal would break it within a word."""
    if not sys.stderr.isatty():
        return text
    import textwrap

    from rdsrepl.render import console

    width = max(console(sys.stderr).width - 1, 20)
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


@contextmanager
def _ended_line() -> Iterator[None]:
    """End the line of a question after Ctrl-C: the terminal shows ^C after the question, or nothing."""
    try:
        yield
    except (KeyboardInterrupt, EOFError):
        sys.stderr.write("\n")
        raise


def is_interactive() -> bool:
    """Say whether stdin and stderr are a terminal, so that a question can be answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _print(ctx: typer.Context, text: str, *, style: str) -> None:
    from rdsrepl.render import print_message

    print_message(text, style=None if global_options(ctx).no_color else style)
