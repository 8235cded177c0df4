"""Tables that fit the terminal: less important columns are left out, then names are shortened in the middle.

Only prose is wrapped, and only at spaces. Output that is not for a terminal has all columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from rdsrepl.render.terminal import UNLIMITED
from rdsrepl.render.wrapping import wrapped
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown
from rdsrepl.text.glyphs import ascii_text
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.text import Text

_GAP: Final = 2
# Prose narrower than this is hard to read; a longer word in it may be shortened.
_NARROWEST_PROSE, _LONGEST_WORD = 24, 40
# A name is shortened to this before a column is left out for it, and to the other one when nothing else helps.
_USUAL_NAME: Final = 28
_NARROWEST_NAME: Final = 8
# Less room for the value of a fact is too little.
_NARROWEST_VALUE: Final = 32

# How many rows of one kind a terminal shows: a thousand slots without a consumer are one finding to a person.
_MOST_OF_A_KIND: Final = 10


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its title.
        value: returns the cell of a row; None and an empty text are shown as a dash, a list with commas.
        field: the field of the JSON document that it shows, for ``--sort-by`` and ``--filter``; None if it is none.
        priority: 1 is always shown; a narrow terminal leaves out the columns with the highest number first.
        kind: ``name`` is shortened in the middle, ``prose`` is wrapped at spaces, ``number`` is aligned to the right;
            it and a ``word`` are never shortened.
    """

    heading: str
    value: Callable[[Any], object]
    field: str | None = None
    priority: int = 1
    kind: Literal["word", "name", "prose", "number"] = "word"


def listing(rows: Sequence[Any], columns: Sequence[Column], *, empty: str, headers: bool = True) -> object:
    """Return rows as a table, or EMPTY if there are no rows."""
    return _Fitted(rows, columns, headers=headers) if rows else empty


def facts(pairs: Sequence[tuple[str, object]]) -> object:
    """Return the facts of one object as two columns: name and value; long values wrap at spaces."""
    return _Facts(pairs)


class _Facts:
    """Names and values; a value is below its name if the names leave too little room beside them."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        self._pairs = pairs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.padding import Padding
        from rich.table import Table

        cells = [(_text(name, console, options), _text(value, console, options)) for name, value in self._pairs]
        room = options.max_width - _GAP - max((name.cell_len for name, _ in cells), default=0)
        if room < _NARROWEST_VALUE and any(value.cell_len > room for _, value in cells):
            for name, value in cells:
                name.stylize("bold")
                yield name
                yield Padding(value, (0, 0, 0, 6))
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in cells:
            table.add_row(name, value)
        yield table


class _Fitted:
    """A table that chooses its columns and their widths when the width of the terminal is known."""

    def __init__(self, rows: Sequence[Any], columns: Sequence[Column], *, headers: bool) -> None:
        self._rows, self._columns, self._headers = rows, columns, headers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        def text(value: object) -> Text:
            return _text(value, console, options)

        all_cells = [
            _Cells(
                column,
                text(column.heading if self._headers else ""),
                [text(column.value(row)) for row in self._rows],
                options.ascii_only,
            )
            for column in self._columns
        ]
        shown_cells = _fitting(all_cells, options.max_width)
        yield from _lines(shown_cells, _widths(shown_cells, options.max_width), console, headers=self._headers)
        hidden = len(all_cells) - len(shown_cells)
        if hidden and self._headers:
            yield styled(f"{counted(hidden, 'column')} hidden; -o wide", "dim")


def sections(
    rows: Sequence[Any],
    columns: Sequence[Column],
    lines: Callable[[Any], Sequence[object]],
    *,
    heading: str = "FINDING",
    wide: object = None,
    kind: Callable[[Any], str] | None = None,
) -> object:
    """Return rows that are mostly prose: the columns of a row in one line, and its lines below it, indented.

    Names stay whole, and a command is not broken. In a pipe the lines are in the last column of a table. On a terminal
    the first rows of each kind are followed by the number of the others; a pipe gets all.

    Args:
        rows: the rows.
        columns: the short facts about a row.
        lines: returns the prose of a row.
        heading: the heading of the prose.
        wide: what is printed in a pipe and with ``-o wide``; default: the same table.
        kind: returns the kind of a row, such as the check that found it; default: all rows are shown.
    """
    return _Sections(rows, columns, lines, heading, wide, kind)


class _Sections:
    """Prose on a terminal, and a table in a pipe."""

    def __init__(
        self,
        rows: Sequence[Any],
        columns: Sequence[Column],
        lines: Callable[[Any], Sequence[object]],
        heading: str,
        wide: object,
        kind: Callable[[Any], str] | None,
    ) -> None:
        self._rows, self._columns, self._lines, self._heading, self._wide = rows, columns, lines, heading, wide
        self._kind = kind

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        def text(value: object) -> Text:
            return _text(value, console, options)

        if options.max_width >= UNLIMITED and self._wide is not None:
            yield self._wide
            return
        if options.max_width >= UNLIMITED:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for column in self._columns:
                table.add_column(text(column.heading), no_wrap=True)
            table.add_column(text(self._heading), overflow="fold")
            for row in self._rows:
                cells = [text(column.value(row)) for column in self._columns]
                table.add_row(*cells, Text("\n").join(text(line) for line in self._lines(row)))
            yield table
            return
        counts: Counter[str] = Counter()
        for row in self._rows:
            kind = "" if self._kind is None else self._kind(row)
            counts[kind] += 1
            if kind and counts[kind] > _MOST_OF_A_KIND:
                continue
            yield Text("  ").join(text(column.value(row)) for column in self._columns)
            for line in map(text, self._lines(row)):
                for part in wrapped(line.plain, options.max_width - 2):
                    yield Text(f"  {part}", line.style, no_wrap=True, overflow="ignore")
        for kind, count in counts.items():
            if kind and count > _MOST_OF_A_KIND:
                yield text(f"and {count - _MOST_OF_A_KIND:,} more of {kind}; -o json prints all")


class _Cells:
    """The texts of one column, and how wide they are."""

    def __init__(self, column: Column, heading: Text, texts: list[Text], ascii_only: bool) -> None:
        self.column, self.heading, self.texts = column, heading, texts
        self._mark = "..." if ascii_only else "…"
        self.widest = max(heading.cell_len, *(text.cell_len for text in texts))

    @property
    def wanted(self) -> int:
        """The width below which columns of lower importance are left out."""
        if self.column.kind == "name":
            return min(self.widest, _USUAL_NAME)
        if self.column.kind == "prose":
            return min(self.widest, max(min(self._longest_word(), _LONGEST_WORD), _NARROWEST_PROSE))
        return self.widest

    @property
    def importance(self) -> tuple[bool, int]:
        """What is left out first: a column without any value, then the highest priority number."""
        is_empty = all(text.plain == "-" for text in self.texts)
        return (is_empty and self.column.priority > 1, self.column.priority)

    @property
    def narrowest(self) -> int:
        """The smallest width, for a terminal on which even the most important columns do not fit."""
        shrinks = self.column.kind in ("name", "prose")
        return min(self.widest, _NARROWEST_NAME) if shrinks else self.widest

    def fitted(self, text: Text, width: int, console: Console) -> list[str]:
        """Return the lines of a text, each padded to a width; a name, or a word that is too long, is shortened."""
        lines = [text.plain]
        if text.cell_len > width and self.column.kind == "prose":
            words = " ".join(shortened(word, width, self._mark) for word in text.plain.split(" "))
            lines = [line.plain.rstrip() for line in _with_plain(text, words).wrap(console, width)]
        elif text.cell_len > width:
            lines = [shortened(text.plain, width, self._mark)]
        return [_padded(line, width, right=self.column.kind == "number") for line in lines]

    def _longest_word(self) -> int:
        from rich.cells import cell_len

        return max(cell_len(word) for text in (self.heading, *self.texts) for word in text.plain.split(" "))


def _fitting(cells: list[_Cells], width: int) -> list[_Cells]:
    """Return the columns that fit; of two with the same importance, the right one is left out first."""
    kept = list(cells)
    while sum(one.wanted for one in kept) + _GAP * (len(kept) - 1) > width:
        least = max(range(len(kept)), key=lambda number: (kept[number].importance, number))
        if kept[least].column.priority <= 1:
            break
        del kept[least]
    return kept


def _widths(cells: list[_Cells], width: int) -> list[int]:
    """Return a width for each column: prose, then names give way until the table fits."""
    widths = [one.widest for one in cells]
    excess = sum(widths) + _GAP * (len(cells) - 1) - width
    limits: Sequence[tuple[str, list[int]]] = (
        ("prose", [one.wanted for one in cells]),
        ("name", [one.wanted for one in cells]),
        ("name", [one.narrowest for one in cells]),
        ("prose", [one.narrowest for one in cells]),
    )
    for kind, smallest in limits:
        for _ in range(excess):
            shrinking = [at for at, one in enumerate(cells) if one.column.kind == kind and widths[at] > smallest[at]]
            if not shrinking:
                break
            widths[max(shrinking, key=widths.__getitem__)] -= 1
            excess -= 1
    return widths


def _lines(cells: list[_Cells], widths: list[int], console: Console, *, headers: bool) -> Iterator[Segment]:
    """Yield the lines of a table; rich's own table takes about five times as long for a thousand rows."""
    from rich.segment import Segment
    from rich.style import Style

    bold = Style(bold=True)
    rows = [[one.heading for one in cells]] if headers else []
    rows += [list(row) for row in zip(*(one.texts for one in cells), strict=True)]
    for number, row in enumerate(rows):
        blocks = [one.fitted(text, width, console) for one, text, width in zip(cells, row, widths, strict=True)]
        styles = [bold if headers and number == 0 else console.get_style(text.style or "none") for text in row]
        for height in range(max(len(block) for block in blocks)):
            for at, block in enumerate(blocks):
                yield Segment(" " * (_GAP if at else 0))
                yield Segment(block[height] if height < len(block) else " " * widths[at], styles[at])
            yield Segment.line()


def _padded(text: str, width: int, *, right: bool) -> str:
    from rich.cells import cell_len

    room = " " * (width - cell_len(text))
    return room + text if right else text + room


def shortened(text: str, width: int, mark: str = "…") -> str:
    """Return a text of at most WIDTH cells; what is left out of its middle is marked."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    room = width - len(mark)
    if room < 2:
        return set_cell_size(text, max(0, width))
    head = set_cell_size(text, (room + 1) // 2).rstrip()
    tail, left = "", room // 2
    for one in reversed(text):
        left -= cell_len(one)
        if left < 0:
            break
        tail = one + tail
    return head + mark + tail


def _text(value: object, console: Console, options: ConsoleOptions) -> Text:
    """Return a cell as the console displays it."""
    cell = _cell(value)
    if isinstance(cell, str):
        return console.render_str(cell)
    return _with_plain(cell, ascii_text(cell.plain)) if options.ascii_only else cell


def _with_plain(text: Text, plain: str) -> Text:
    from rich.text import Text

    return Text(plain, style=text.style)


def indented(text: str) -> object:
    """Return a text two columns to the right, its following lines as well."""
    from rich.padding import Padding

    return Padding(text, (0, 0, 0, 2))


def stacked(*parts: object) -> object:
    """Return several renderables, one below the other."""
    from rich.console import Group

    return Group(*parts)  # type: ignore[arg-type]


def styled(text: str, style: str) -> Text:
    """Return one line in a style."""
    from rich.text import Text

    return Text(shown(text), style=style)


def size(size_bytes: int | None) -> str:
    """Return a size for a table; a dash if it is unknown."""
    return "-" if size_bytes is None else format_size(size_bytes)


def ago(moment: datetime | None, now: datetime) -> str:
    """Return how long ago a moment was, for a table."""
    return "-" if moment is None else format_duration(max(0.0, (now - moment).total_seconds())) + " ago"


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
