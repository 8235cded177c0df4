"""Declare ``--html FILE``, check it before the command begins, and write the page."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from rdsrepl import __version__
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.errors import BadValue
from rdsrepl.state import output_file
from rdsrepl.text.escapes import shown

_STDOUT: Final = Path("-")

HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Also write a self-contained HTML page to this file; - writes only the page, to stdout.",
        show_default=False,
    ),
]


def require_usable(ctx: typer.Context, file: Path | None) -> None:
    """Refuse a file that cannot be written, before anything else is done.

    Raises:
        BadValue: the file is not writable, or two documents would go to stdout.
    """
    if file == _STDOUT:
        if not global_options(ctx).output.is_table:
            output = global_options(ctx).output.value
            raise BadValue(f"--html - and -o {output} both write to stdout", hint=f"leave out -o {output}")
    elif file is not None:
        output_file.require_writable(file, "--html")


def is_stdout(file: Path | None) -> bool:
    """Say whether only the page is printed."""
    return file == _STDOUT


def write(ctx: typer.Context, file: Path, page: str) -> None:
    """Write the page to the file or to stdout.

    Raises:
        Error: the file cannot be written.
    """
    if file == _STDOUT:
        sys.stdout.write(page)
    else:
        output_file.write(file, page)
        note(ctx, f"wrote {shown(str(file))}")


def footer() -> str:
    """Return the last line of a page: the program, and the time by this machine's clock."""
    return f"Written at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC by rdsrepl, version {__version__}"
