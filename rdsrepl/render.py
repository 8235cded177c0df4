"""Any object as a table, JSON or YAML. Nothing else prints data; talk goes to stderr through ``say``.

Rows are frozen dataclasses; a document's keys are their field names, which are a documented contract.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, TextIO

from rdsrepl.lsn import Lsn
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console

Column = tuple[str, Callable[[Any], object]]


class Format(StrEnum):
    """What ``--output`` takes."""

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
    """Print VALUE to stdout as one JSON or YAML document, or what TABLE makes for a person (``listing``, ``facts``)."""
    if output is Format.json:
        sys.stdout.write(json.dumps(document(value), ensure_ascii=False, indent=2) + "\n")
    elif output is Format.yaml:
        import yaml

        yaml.safe_dump(document(value), sys.stdout, sort_keys=False, allow_unicode=True)
    else:
        _print(table())


def log(level: str, message: str, **fields: object) -> None:
    """Write one JSON object to stderr: ``time`` (UTC), ``level``, ``message`` and FIELDS."""
    document = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "message": message}
    sys.stderr.write(json.dumps({**document, **fields}, ensure_ascii=False) + "\n")
    sys.stderr.flush()


def _print(renderable: object, stream: TextIO | None = None, *, plain: bool = False) -> None:
    stream = stream or sys.stdout
    out = console(stream)
    out.no_color = out.no_color or plain
    if stream.isatty():
        out.print(renderable)
        return
    # A table pads its last column; for a program that reads lines that is noise.
    with out.capture() as captured:
        out.print(renderable)
    stream.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def paged(renderable: object) -> None:
    """Print to the terminal; through ``PAGER`` (by default less) when that is longer than the screen."""
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
    except ValueError:  # a quote without its other half
        pager = []
    if text.count("\n") < out.height or pager in ([], ["cat"]):
        sys.stdout.write(text)
        return
    if Path(pager[0]).name == "less":
        pager.append("-R")
    else:  # nobody knows whether it takes colours
        text = re.sub(r"\x1b\[[\d;]*m", "", text)
    sys.stdout.flush()
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the pager's own business
    try:
        subprocess.run(pager, input=text.encode(), env={"LESS": "FX", **os.environ}, check=False)
    except OSError:
        sys.stdout.write(text)
    finally:
        signal.signal(signal.SIGINT, before)


def say(renderable: object, *, to_stdout: bool, plain: bool) -> None:
    """Print something made for a person: on stdout where it is what was asked for, else on stderr."""
    _print(renderable, sys.stdout if to_stdout else sys.stderr, plain=plain)


def listing(rows: Sequence[Any], columns: Sequence[Column], *, empty: str) -> object:
    """Return rows as a table; EMPTY is said where there are none."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text(empty)
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Lines are for programs; on a narrow terminal a cell is folded rather than cut.
    terminal = sys.stdout.isatty()
    for heading, _ in columns:
        table.add_column(heading, no_wrap=not terminal, overflow="fold" if terminal else "ignore")
    for row in rows:
        table.add_row(*(_cell(getter(row)) for _, getter in columns))
    return table


def facts(pairs: Sequence[tuple[str, object]]) -> object:
    """Return one thing's facts as two columns: name and value."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, _cell(value))
    return table


def stacked(*parts: object) -> object:
    """Return several of them, one below the other."""
    from rich.console import Group

    return Group(*parts)  # type: ignore[arg-type]


def size(size_bytes: int | None) -> str:
    """Print bytes for a table; unknown is a dash."""
    return "-" if size_bytes is None else format_size(size_bytes)


def ago(moment: datetime | None, now: datetime) -> str:
    """Print how long ago a moment was, for a table."""
    return "-" if moment is None else format_duration(max(0.0, (now - moment).total_seconds())) + " ago"


def console(stream: TextIO) -> Console:
    """Return a rich console on a stream; plain and unwrapped when that is no terminal, or colours are not wanted."""
    from rich.console import Console

    terminal = stream.isatty()
    return Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not terminal,
        width=None if terminal else 32_000,
        no_color=not colours(stream),
        force_terminal=terminal,
    )


def colours(stream: TextIO) -> bool:
    """Say whether colours are wanted on a stream: a terminal, and neither ``NO_COLOR`` nor ``--no-color``."""
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
