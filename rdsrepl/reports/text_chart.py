"""Draw the series of a slot with characters, as lines for a terminal. Pure: no I/O, no clock.

Retained WAL is a line, undelivered WAL an area, the forecast a dotted line, a limit a dashed one: they differ without
colours. A cell of the chart has two by four dots of Braille; in ASCII it has one character.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final

from rdsrepl.reports.axes import Axes, axes, thinned
from rdsrepl.retention.assessment import SlotRetention
from rdsrepl.retention.forecast import BREAK_TEXTS
from rdsrepl.retention.slot_series import Line, SlotSeries
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rich.text import Text

Piece = tuple[str, str]

#: The fewest lines and columns of a chart.
MIN_HEIGHT: Final = 8
MIN_WIDTH: Final = 40
_RETAINED, _UNDELIVERED, _FORECAST, _LIMIT, _LIMIT_NAME, _AXIS = "bold cyan", "blue", "cyan", "red", "bold red", "dim"
_BRAILLE: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_TIME_LABEL_WIDTH: Final = 10


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of a chart.

    Attributes:
        columns, rows: the dots in a cell.
        areas: a cell of the area, from the lowest to the full one.
        retained, forecast, limit, now: a cell of each line, also in the legend.
        frame: the corner, the line below the chart and its mark, the line beside it and its mark.
        dotted: the forecast has one dot in this many.
        above: stands before a limit above the chart.
    """

    columns: int
    rows: int
    areas: str
    retained: str
    forecast: str
    limit: str
    now: str
    frame: str
    dotted: int
    above: str
    ellipsis: str


UNICODE: Final = Glyphs(2, 4, "▁▂▃▄▅▆▇█", "⠤⠤", "⠄⠠", "┄", "┊", "└─┬│┤", 4, "↑", "…")
ASCII: Final = Glyphs(1, 1, "#", "*", ".", "-", ":", "`-+|+", 2, "above:", "...")


def glyphs_for(*, unicode: bool) -> Glyphs:
    """Return the characters for a terminal that displays Unicode, or only ASCII."""
    return UNICODE if unicode else ASCII


def failure(one: SlotRetention) -> str:
    """Return the first failure that a slot causes and when, for the title of its chart."""
    earliest = next((item for item in one.breaks if item.is_near), None)
    if earliest is None:
        return "no failure within a year" if one.breaks else "no failure is forecast"
    if one.slot.is_lost:
        return f"the slot is invalidated ({one.slot.lost_reason})"
    return f"{BREAK_TEXTS[earliest.what]} {earliest.when}"


def chart(series: SlotSeries, title: str, *, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """Return the chart of one slot as HEIGHT lines of at most WIDTH columns.

    Args:
        series: the slot.
        title: what follows the name of the slot in the first line; can be empty.
        width: at least ``MIN_WIDTH``.
        height: at least ``MIN_HEIGHT``.
        glyphs: the characters.
    """
    heading = [(shown(series.slot_name), "bold"), (": " if title else "", ""), (shown(title), "")]
    if not series.has_history:
        return [_line(heading, width, glyphs), _line([(_too_few(series), "")], width, glyphs)]
    plotted_rows = height - 5
    placed = axes(
        series, most_sizes=min(4, max(2, plotted_rows // 3)), most_times=max(2, (width - 10) // _TIME_LABEL_WIDTH)
    )
    margin = max(5, *(len(text) for _, text in placed.sizes)) + 1
    legend = _wrapped(_legend(series, placed, glyphs), width)[:2]
    plotted_rows += 2 - len(legend)
    cells = _cells(series, placed, width - margin - 1, plotted_rows, glyphs)
    return [
        _with_date(_line(heading, width - len(placed.date) - 2, glyphs), placed, width),
        *(_line(pieces, width, glyphs) for pieces in legend),
        *_plot(placed, cells, margin, plotted_rows, width, glyphs),
        *_time_axis(placed, margin, width, glyphs),
    ]


def _with_date(heading: Text, placed: Axes, width: int) -> Text:
    heading.pad_right(width - heading.cell_len - len(placed.date))
    return heading.append(placed.date, "dim")


def _too_few(series: SlotSeries) -> str:
    if series.samples <= 1:
        return "no history yet: this is the first sample"
    if series.retained:
        return "no picture: there is only one sample in this time"
    return "no picture: the slot is invalidated and retained no WAL in this time"


def _legend(series: SlotSeries, placed: Axes, glyphs: Glyphs) -> list[Piece]:
    now = series.retained[-1][-1].size_bytes
    parts = [(f"{glyphs.retained} retained {format_size(now)}", _RETAINED)]
    if series.undelivered:
        delivered = series.undelivered[-1][-1].size_bytes
        parts.append((f"{glyphs.areas[-1]} undelivered {format_size(delivered)}", _UNDELIVERED))
    if series.forecast:
        last = series.forecast[-1]
        parts.append((f"{glyphs.forecast} forecast {format_size(last.size_bytes)}", _FORECAST))
    parts += [(f"{glyphs.limit * 2} {limit.text}", _LIMIT) for limit in placed.limits]
    parts += [(f"{glyphs.above} {limit.text}", _LIMIT) for limit in placed.far_limits]
    return parts


def _wrapped(parts: Sequence[Piece], width: int) -> list[list[Piece]]:
    """Place the parts on lines, none divided."""
    lines: list[list[Piece]] = [[]]
    used = 0
    for text, style in parts:
        if lines[-1] and used + 2 + len(text) > width:
            lines.append([])
            used = 0
        if lines[-1]:
            lines[-1].append(("  ", ""))
        lines[-1].append((text, style))
        used += len(text) + 2
    return lines


class _Cells:
    """The characters of the plotted area; the first line is its top."""

    def __init__(self, width: int, height: int, glyphs: Glyphs) -> None:
        self.width, self.height, self._glyphs = width, height, glyphs
        self._dots: dict[tuple[int, int], int] = {}
        self._styles: dict[tuple[int, int], str] = {}
        self._texts: dict[tuple[int, int], Piece] = {}

    def put(self, column: int, row: int, text: str, style: str) -> None:
        """Put a character into a cell; dots cover it."""
        self._texts[column, row] = text, style

    def dot(self, x: int, y: int, text: str, style: str) -> None:
        """Put a dot: X from the left, Y from the foot, in dots."""
        glyphs = self._glyphs
        column, row = x // glyphs.columns, self.height - 1 - y // glyphs.rows
        if not (0 <= column < self.width and 0 <= row < self.height):
            return
        if glyphs.rows == 1:
            self.put(column, row, text, style)
        else:
            bit = _BRAILLE[x % 2][3 - y % 4]
            self._dots[column, row] = self._dots.get((column, row), 0) | bit
            self._styles[column, row] = style

    def is_free(self, column: int, row: int) -> bool:
        """Say whether a label may be put here."""
        return (column, row) not in self._dots and self._texts.get((column, row), ("", _LIMIT))[1] == _LIMIT

    def line(self, row: int) -> list[Piece]:
        """Return one line of cells, from the top."""
        cells = (self._cell((column, row)) for column in range(self.width))
        return [("".join(text for text, _ in run), style) for style, run in groupby(cells, key=lambda cell: cell[1])]

    def _cell(self, place: tuple[int, int]) -> Piece:
        if place in self._dots:
            return chr(0x2800 + self._dots[place]), self._styles[place]
        return self._texts.get(place, (" ", ""))


def _cells(series: SlotSeries, placed: Axes, width: int, height: int, glyphs: Glyphs) -> _Cells:
    cells = _Cells(width, height, glyphs)
    wide, high = width * glyphs.columns - 1, height * glyphs.rows - 1

    def dots(line: Line, *, every: int = 1) -> Iterator[tuple[int, int]]:
        places = [
            (round(placed.x(point.at) * wide), round(placed.y(point.size_bytes) * high))
            for point in thinned(line, width)
        ]
        return _polyline(places, every)

    if series.forecast:
        for row in range(height):
            cells.put(round(placed.x(series.now) * (width - 1)), row, glyphs.now, _AXIS)
    rows = {limit: _row(placed, limit.size_bytes, height, glyphs) for limit in placed.limits}
    for row in rows.values():
        for column in range(width):
            cells.put(column, row, glyphs.limit, _LIMIT)
    for column, filled in _area(series.undelivered, placed, width, height * len(glyphs.areas)):
        whole, part = divmod(filled, len(glyphs.areas))
        for step in range(whole):
            cells.put(column, height - 1 - step, glyphs.areas[-1], _UNDELIVERED)
        if part and whole < height:
            cells.put(column, height - 1 - whole, glyphs.areas[part - 1], _UNDELIVERED)
    for x, y in dots(series.forecast, every=glyphs.dotted):
        cells.dot(x, y, glyphs.forecast, _FORECAST)
    for line in series.retained:
        for x, y in dots(line):
            cells.dot(x, y, glyphs.retained, _RETAINED)
    for limit, row in rows.items():
        _label(cells, row, f" {limit.text} ")
    return cells


def _label(cells: _Cells, row: int, text: str) -> None:
    """Write the name of a limit on its line, where nothing else is drawn."""
    for first in (2, cells.width - len(text) - 2, (cells.width - len(text)) // 2):
        columns = range(first, first + len(text))
        if first >= 0 and all(cells.is_free(column, row) for column in columns):
            for column, character in zip(columns, text, strict=True):
                cells.put(column, row, character, _LIMIT_NAME)
            return


def _polyline(places: Sequence[tuple[int, int]], every: int) -> Iterator[tuple[int, int]]:
    """Yield the dots of a line through these places; one in EVERY."""
    if len(places) == 1:
        yield places[0]
    number = 0
    for (x0, y0), (x1, y1) in pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(steps + 1):
            if number % every == 0:
                yield x0 + round((x1 - x0) * step / steps), y0 + round((y1 - y0) * step / steps)
            number += 1


def _area(lines: Iterable[Line], placed: Axes, width: int, steps: int) -> Iterator[tuple[int, int]]:
    """Yield each column below a line, and how many of STEPS of its height are filled."""
    for line in (thinned(one, width) for one in lines):
        pairs = pairwise(line) if len(line) > 1 else [(line[0], line[0])]
        for before, after in pairs:
            first, last = (round(placed.x(point.at) * (width - 1)) for point in (before, after))
            for column in range(first, last + 1):
                part = (column - first) / (last - first) if last > first else 1.0
                size = before.size_bytes + (after.size_bytes - before.size_bytes) * part
                yield column, min(steps, round(placed.y(size) * steps))


def _row(placed: Axes, size_bytes: int, height: int, glyphs: Glyphs) -> int:
    """Return the line of the chart, from its top, in which the dots of a size are."""
    return height - 1 - round(placed.y(size_bytes) * (height * glyphs.rows - 1)) // glyphs.rows


def _plot(placed: Axes, cells: _Cells, margin: int, height: int, width: int, glyphs: Glyphs) -> list[Text]:
    labels = {_row(placed, size, height, glyphs): text for size, text in placed.sizes}
    lines = []
    for row in range(height):
        text = labels.get(row, "")
        mark = glyphs.frame[4 if text else 3]
        lines.append(_line([(f"{text:>{margin - 1}} ", ""), (mark, _AXIS), *cells.line(row)], width, glyphs))
    return lines


def _time_axis(placed: Axes, margin: int, width: int, glyphs: Glyphs) -> list[Text]:
    """Return the line below the chart and its labels, with the date and the time zone in the margin."""
    corner, line, mark = tuple(glyphs.frame[:3])
    wide = width - margin - 1
    marks, labels = [line] * wide, [" "] * wide
    for at, text in placed.times:
        column = round(placed.x(at) * (wide - 1))
        first = min(max(0, column - len(text) // 2), wide - len(text))
        if first >= 0 and all(one == " " for one in labels[max(0, first - 1) : first + len(text) + 1]):
            labels[first : first + len(text)] = text
            marks[column] = mark
    below = f"{'UTC':>{margin - 1}}  " + "".join(labels)
    return [
        _line([(" " * margin + corner, _AXIS), ("".join(marks), _AXIS)], width, glyphs),
        _line([(below.rstrip(), "")], width, glyphs),
    ]


def _line(pieces: Sequence[Piece], width: int, glyphs: Glyphs) -> Text:
    from rich.text import Text

    text = Text.assemble(*pieces, no_wrap=True, overflow="crop")
    if text.cell_len > width:
        text.truncate(width - len(glyphs.ellipsis))
        text.append(glyphs.ellipsis)
    text.rstrip()
    return text
