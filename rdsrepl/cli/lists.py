"""Print a list: read its rows, filter and sort them, print them in the wanted format, and again with ``--watch``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import typer

from rdsrepl.cli.console import note, warn
from rdsrepl.cli.context import global_options, list_options, set_output
from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue, Denied, Error, NotFound, Refused, UsageError
from rdsrepl.render import (
    Column,
    Format,
    Listing,
    console,
    document,
    emit,
    emit_csv,
    emit_names,
    is_dumb,
    listing,
    query,
    stacked,
    styled,
)
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

_SHORTEST_SECONDS: Final = 0.5
# Another attempt does not help.
_PERMANENT: Final = (UsageError, NotFound, Refused, Denied)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a list has at one moment.

    Attributes:
        rows: all rows, before the conditions of ``--filter``.
        document: returns the JSON document of the rows that are left; default: a list of them.
        columns: the columns of the table; default: those of the list.
        table: returns what a person reads; default: the table.
        below: returns lines that follow the table.
        empty: printed without rows; default: that of the list.
    """

    rows: Sequence[Any]
    document: Callable[[Sequence[Any]], object] | None = None
    columns: Sequence[Column] | None = None
    table: Callable[[Sequence[Any]], object] | None = None
    below: Callable[[Sequence[Any]], Sequence[object]] | None = None
    empty: str | None = None


ReadRows = Callable[[], Rows | Sequence[Any]]


def print_list(ctx: typer.Context, shown: Listing, read: ReadRows) -> Rows:
    """Print a list with the options of ``ListCommand``; return what was read, before ``--filter``.

    The options are checked before READ is called.

    Raises:
        BadValue: an option is not valid.
        Error: reading failed; with ``--watch``, the first time, or for a reason that does not pass.
    """
    printer = _Printer(ctx, shown)
    seconds = list_options(ctx).watch
    if seconds is None:
        rows = _as_rows(read())
        printer.print(rows)
        return rows
    return _watch(ctx, printer, lambda: _as_rows(read()), seconds)


def print_database_list(ctx: typer.Context, shown: Listing, read: Callable[[Connection], Rows | Sequence[Any]]) -> Rows:
    """Print a list that a database has; see ``print_list``. One connection serves all reads until it fails."""
    _Printer(ctx, shown)  # the options are checked before the target is looked up
    with _connected(database_target(ctx), read) as read_rows:
        return print_list(ctx, shown, read_rows)


@contextmanager
def _connected(target: Target, read: Callable[[Connection], Rows | Sequence[Any]]) -> Iterator[ReadRows]:
    """Yield a function that reads; it connects when it needs to, also after an error."""
    import psycopg

    from rdsrepl.postgres import connection
    from rdsrepl.postgres.error_mapping import translate

    current: Connection | None = None

    def read_rows() -> Rows | Sequence[Any]:
        nonlocal current
        if current is None:
            current = connection.connect(target)
        try:
            return read(current)
        except BaseException as exc:
            current.close()
            current = None
            if isinstance(exc, psycopg.Error):
                raise translate(exc) from exc
            raise

    try:
        yield read_rows
    finally:
        if current is not None:
            current.close()


def checked_interval(option: str, seconds: float) -> float:
    """Return how often a list is read.

    Raises:
        BadValue: that would be too often.
    """
    if seconds < _SHORTEST_SECONDS:
        raise BadValue(f"{option} {seconds:g}s is too short", hint="give at least 500ms")
    return seconds


def _as_rows(read: Rows | Sequence[Any]) -> Rows:
    return read if isinstance(read, Rows) else Rows(read)


class _Printer:
    """Prints the rows of a list as the options want it.

    Raises:
        BadValue: an option is not valid.
    """

    def __init__(self, ctx: typer.Context, shown: Listing) -> None:
        self.ctx, self._shown = ctx, shown
        self._options = options = list_options(ctx)
        self._select = shown.select(conditions=options.filter, sort_by=options.sort_by)
        if options.watch is not None:
            checked_interval("--watch", options.watch)
        self._query = None if options.query is None else query(options.query)
        output = global_options(ctx).output
        if self._query and output not in (Format.json, Format.yaml):
            if "output" in global_options(ctx).typed:
                raise UsageError(f"--query and -o {output} cannot be used together", hint="use -o json or -o yaml")
            set_output(ctx, Format.json)  # as in the AWS CLI
        self.output = global_options(ctx).output
        self._printed = False

    def print(self, found: Rows) -> None:
        """Print once; the second time and later as the next document of a stream."""
        rows, headers = self._select(found.rows), not self._options.no_headers
        watches = self._options.watch is not None
        if self.output is Format.name:
            emit_names(self._shown.named(row) for row in rows)
        elif self.output is Format.csv:
            emit_csv(rows, self._shown.fields, headers=headers and not self._printed)
        elif self.output.is_table:
            if not rows and not headers:
                note(self.ctx, self._empty(found))
            else:
                sys.stdout.write("\n" if self._printed else "")
                emit(None, self.output, lambda: self.table(found))
        else:
            value = document(found.document(rows) if found.document else rows)
            emit(self._query(value) if self._query else value, self.output, lambda: "", in_stream=watches)
        self._printed = True
        sys.stdout.flush()

    def table(self, found: Rows) -> object:
        """Return the table for a person."""
        rows = self._select(found.rows)
        if rows and found.table is not None:
            return found.table(rows)
        columns, headers = found.columns or self._shown.columns, not self._options.no_headers
        table = listing(rows, columns, empty=self._empty(found), headers=headers)
        below = found.below(rows) if rows and found.below else ()
        return stacked(table, *below) if below else table

    def _empty(self, found: Rows) -> str:
        """Return what is printed without rows; a condition that hides all of them is not an empty list."""
        if not found.rows:
            return with_selectors(self.ctx, found.empty or self._shown.empty)
        return f"no row meets --filter {' and '.join(self._options.filter)} (of {len(found.rows)})"


def _watch(ctx: typer.Context, printer: _Printer, read: Callable[[], Rows], seconds: float) -> Rows:
    """Print the list every SECONDS until Ctrl-C, which is the usual end: exit code 0."""
    redraws = sys.stdout.isatty() and printer.output.is_table and not is_dumb()
    last = Rows(())
    try:
        last = read()
        with _screen(printer, seconds) if redraws else _lines(ctx, printer) as show:
            show(last, None)
            while True:
                time.sleep(seconds)
                try:
                    last = read()
                except _PERMANENT:
                    raise
                except (Error, OSError) as exc:
                    show(last, exc)
                else:
                    show(last, None)
    except KeyboardInterrupt:
        return last


_Show = Callable[[Rows, Exception | None], None]


@contextmanager
def _lines(ctx: typer.Context, printer: _Printer) -> Iterator[_Show]:
    """Yield a function that prints a block of lines, or a warning on stderr."""

    def show(found: Rows, error: Exception | None) -> None:
        if error is None:
            printer.print(found)
        else:
            warn(ctx, f"could not read the list, trying again: {_cause(error)}")

    yield show


@contextmanager
def _screen(printer: _Printer, seconds: float) -> Iterator[_Show]:
    """Yield a function that draws the list over the previous one."""
    from rich.live import Live

    with Live(console=console(sys.stdout), auto_refresh=False) as screen:

        def show(found: Rows, error: Exception | None) -> None:
            at = time.strftime("%H:%M:%S")
            heading = styled(f"{at}, every {format_interval(seconds)}; Ctrl-C ends", "dim")
            if error is not None:
                heading = styled(f"{at}: could not read the list, trying again: {_cause(error)}", "bold red")
            screen.update(stacked(heading, printer.table(found)), refresh=True)  # type: ignore[arg-type]

        yield show


def format_interval(seconds: float) -> str:
    """Return an interval as it would be typed."""
    return f"{seconds:g}s" if seconds < 60 else format_duration(seconds)


def _cause(error: Exception) -> str:
    return error.message if isinstance(error, Error) else str(error)
