"""Print any object as a table, JSON or YAML. Only this module prints data; ``say`` prints messages.

Texts of others are made safe here, where they are rendered: ``console`` prints each text on one line with its control
characters escaped, and masks secrets in what it prints to stderr.

Rows are frozen dataclasses; the keys of a document are their field names, which are a documented contract.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

from rdsrepl.lsn import Lsn
from rdsrepl.text.escapes import json_text, shown, yaml_text
from rdsrepl.text.masking import mask, masked
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Column = tuple[str, Callable[[Any], object]]


class Format(StrEnum):
    """The values of ``--output``."""

    table = "table"
    json = "json"
    yaml = "yaml"


def document(value: object) -> Any:
    """Return VALUE as plain data, ready for JSON or YAML: LSNs and times as text, dataclasses as mappings."""
    if isinstance(value, Lsn):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: document(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): document(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [document(item) for item in value]
    return str(value)


def emit(value: object, output: Format, table: Callable[[], object]) -> None:
    """Print VALUE to stdout as one JSON or YAML document, or print what TABLE returns (``listing``, ``facts``)."""
    if output is Format.json:
        sys.stdout.write(json_text(document(value), indent=2) + "\n")
    elif output is Format.yaml:
        sys.stdout.write(yaml_text(document(value)))
    else:
        _print(table())


def log(level: str, message: str, **fields: object) -> None:
    """Write one JSON object to stderr: ``time`` (UTC), ``level``, ``message`` and FIELDS."""
    document = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "message": message}
    write_object({**document, **fields})


def write_object(value: object) -> None:
    """Write one JSON object to stderr, on a line of its own."""
    sys.stderr.write(json_text(masked(value)) + "\n")
    sys.stderr.flush()


def write_traceback(exc: BaseException) -> None:
    """Write an error, its causes and their stack traces to stderr."""
    import traceback

    text = "".join(traceback.format_exception(exc))
    sys.stderr.write(shown(mask(text), keep="\n").rstrip("\n") + "\n")
    sys.stderr.flush()


def line_for_person(text: str) -> str:
    """Return a text for stderr that ``console`` does not print, such as a question: one line, secrets masked."""
    return shown(mask(text))


def _print(renderable: object, stream: TextIO | None = None, *, plain: bool = False) -> None:
    stream = stream or sys.stdout
    out = console(stream)
    out.no_color = out.no_color or plain
    if stream.isatty():
        out.print(renderable)
        return
    # Remove the padding of the last column for programs that read lines.
    with out.capture() as captured:
        out.print(renderable)
    stream.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


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
        sys.stdout.write(text)
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
        sys.stdout.write(text)
    finally:
        signal.signal(signal.SIGINT, before)


def say(renderable: object, *, to_stdout: bool, plain: bool) -> None:
    """Print a text for people: to stdout if it is the result of the command, otherwise to stderr."""
    _print(renderable, sys.stdout if to_stdout else sys.stderr, plain=plain)


def listing(rows: Sequence[Any], columns: Sequence[Column], *, empty: str) -> object:
    """Return rows as a table, or EMPTY if there are no rows."""
    from rich.table import Table

    if not rows:
        return empty
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Programs read lines; on a narrow terminal a cell is folded.
    terminal = sys.stdout.isatty()
    for heading, _ in columns:
        table.add_column(heading, no_wrap=not terminal, overflow="fold" if terminal else "ignore")
    for row in rows:
        table.add_row(*(_cell(getter(row)) for _, getter in columns))
    return table


def facts(pairs: Sequence[tuple[str, object]]) -> object:
    """Return the facts of one object as two columns: name and value."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, _cell(value))
    return table


def stacked(*parts: object) -> object:
    """Return several renderables, one below the other."""
    from rich.console import Group

    return Group(*parts)  # type: ignore[arg-type]


def styled(text: str, style: str) -> Text:
    """Return one line in a style."""
    from rich.text import Text

    return Text(shown(text), style=style)


def cell_lines(*parts: str | Text) -> Text:
    """Return several lines as one cell of a table."""
    from rich.text import Text

    return Text("\n").join(Text(shown(part)) if isinstance(part, str) else part for part in parts)


def print_lines(out: Console, text: str, *, style: str | None = None) -> None:
    """Print a text of several lines whose line breaks are not escaped, such as a page."""
    for line in text.split("\n"):
        out.print(line, style=style)


def size(size_bytes: int | None) -> str:
    """Return a size for a table; a dash if it is unknown."""
    return "-" if size_bytes is None else format_size(size_bytes)


def ago(moment: datetime | None, now: datetime) -> str:
    """Return how long ago a moment was, for a table."""
    return "-" if moment is None else format_duration(max(0.0, (now - moment).total_seconds())) + " ago"


def console(stream: TextIO, *, hides_secrets: bool | None = None) -> Console:
    """Return a rich console on a stream; without a terminal it prints plain, unwrapped lines.

    It prints every text and every cell of a table on one line, with control characters escaped.

    Args:
        stream: stdout or stderr.
        hides_secrets: mask secrets; by default only on stderr, because stdout is data.
    """
    terminal = stream.isatty()
    hides = stream is sys.stderr if hides_secrets is None else hides_secrets
    safe_console: Console = _console_class()(
        (lambda text: shown(mask(text))) if hides else shown,
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not terminal,
        width=None if terminal else 32_000,
        no_color=not colours(stream),
        force_terminal=terminal,
    )
    return safe_console


@cache
def _console_class() -> Any:
    from rich.console import Console

    class Safe(Console):
        """Escapes every text before it prints it."""

        def __init__(self, safe: Callable[[str], str], **options: Any) -> None:
            super().__init__(**options)
            self._safe = safe

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(self._safe(text), **options)

    return Safe


def colours(stream: TextIO) -> bool:
    """Return whether to use colours on a stream: it is a terminal, and ``NO_COLOR`` is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _cell(value: object) -> Any:
    from rich.text import Text

    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "-"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return str(value)
