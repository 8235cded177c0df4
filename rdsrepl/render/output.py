"""Print a result to stdout: as a table for a person, as JSON, YAML, CSV or names for a program."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TextIO

from rdsrepl.render.documents import Format, document
from rdsrepl.render.fields import Field
from rdsrepl.render.terminal import console
from rdsrepl.text.escapes import json_text, shown, yaml_text

# How a formula begins in a spreadsheet (OWASP, CSV injection).
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def emit(value: object, output: Format, table: Callable[[], object], *, in_stream: bool = False) -> None:
    """Print VALUE to stdout as JSON or YAML, or print what TABLE returns (``listing``, ``facts``).

    Args:
        value: the result.
        output: the format; ``wide`` prints the table with all its columns, however wide the terminal is.
        table: returns what a person reads.
        in_stream: the document is one of several: JSON on one line, YAML after ``---``.
    """
    if output is Format.json:
        sys.stdout.write(json_text(document(value), indent=None if in_stream else 2) + "\n")
    elif output is Format.yaml:
        sys.stdout.write(yaml_text(document(value), explicit_start=in_stream))
    else:
        _print(table(), fits=output is not Format.wide)


def emit_names(names: Iterable[str]) -> None:
    """Print one name on each line."""
    sys.stdout.writelines(shown(name) + "\n" for name in names)


def emit_csv(rows: Iterable[Any], fields: Sequence[Field], *, headers: bool) -> None:
    """Print rows as CSV (RFC 4180, lines end with a line feed), with the names of the JSON document as header.

    A list is written as JSON. A text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    if headers:
        writer.writerow([field.path for field in fields])
    for row in rows:
        writer.writerow([_csv_cell(document(field.value(row))) for field in fields])


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json_text(value)
    if not isinstance(value, str):
        return value
    text = shown(value, keep="" if sys.stdout.isatty() else "\n\r\t")
    return f"'{text}" if text.startswith(_FORMULA) else text


def say(renderable: object, *, to_stdout: bool, plain: bool) -> None:
    """Print a text for people: to stdout if it is the result of the command, otherwise to stderr."""
    _print(renderable, sys.stdout if to_stdout else sys.stderr, plain=plain)


def _print(renderable: object, stream: TextIO | None = None, *, plain: bool = False, fits: bool = True) -> None:
    stream = stream or sys.stdout
    out = console(stream, fits=fits)
    out.no_color = out.no_color or plain
    if stream.isatty() and fits:
        out.print(renderable, crop=False)
        return
    # Remove the padding of the last column for programs that read lines.
    with out.capture() as captured:
        out.print(renderable)
    out.file.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def paged(renderable: object) -> None:
    """Print to the terminal; through ``PAGER`` (default: less) if the text is longer than the screen."""
    import shlex
    import signal
    import subprocess
    from pathlib import Path

    out = console(sys.stdout)
    with out.capture() as captured:
        out.print(renderable)
    text = captured.get()
    try:
        pager = shlex.split(os.environ.get("PAGER", "less"))
    except ValueError:  # a quote is not closed
        pager = []
    if text.count("\n") < out.height or pager in ([], ["cat"]):
        out.file.write(text)
        return
    if Path(pager[0]).name == "less":
        pager.append("-R")
    else:  # other pagers may not support colours
        text = re.sub(r"\x1b\[[\d;]*m", "", text)
    sys.stdout.flush()
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the pager handles Ctrl-C
    try:
        subprocess.run(pager, input=text.encode(), env={"LESS": "FX", **os.environ}, check=False)
    except OSError:
        out.file.write(text)
    finally:
        signal.signal(signal.SIGINT, before)
