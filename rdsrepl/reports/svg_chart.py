"""Draw the series of a slot as an SVG image for an HTML page. Pure: no I/O, no clock.

The image has no colours of its own: the classes ``retained``, ``undelivered``, ``forecast``, ``limit``, ``axis`` and
``now`` get theirs from the page's style sheet, for light, dark and printed pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import Final

from rdsrepl.reports.axes import Axes, axes, thinned
from rdsrepl.retention.slot_series import Limit, Line, SlotSeries
from rdsrepl.text.escapes import shown
from rdsrepl.text.masking import mask
from rdsrepl.units import format_size

#: The size of the image in its own units; a page scales it to its width.
WIDTH: Final = 720
HEIGHT: Final = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 16, 18, 34
_MOST_SIZES, _MOST_TIMES = 4, 8
#: Into how many groups a long line is divided: at least one for each two units of the image.
_GROUPS: Final = WIDTH // 2
_LABEL_SPACE: Final = 14
# Half the width of a time in the font of a phone: a label needs as much room on both sides.
_HALF_LABEL: Final = 28


def chart(series: SlotSeries, title: str) -> str:
    """Return the chart of one slot as a ``svg`` element; a well-formed XML fragment.

    Args:
        series: the slot; with at least two samples.
        title: what a screen reader says; any text.
    """
    placed = _placed(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img">',
        f"<title>{_safe(title)}</title>",
        *_size_axis(placed),
        *_time_axis(placed),
        *(_area(line, placed) for line in series.undelivered),
        *(_polyline(line, placed, "undelivered-edge") for line in series.undelivered),
        *_limits(placed),
        *_now(series, placed),
        *(_polyline(line, placed, "retained") for line in series.retained),
        _polyline(series.forecast, placed, "forecast") if series.forecast else "",
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def far_limits(series: SlotSeries) -> tuple[Limit, ...]:
    """Return the limits that are above the chart."""
    return _placed(series).far_limits


def _placed(series: SlotSeries) -> Axes:
    return axes(series, most_sizes=_MOST_SIZES, most_times=_MOST_TIMES)


def _x(placed: Axes, at: datetime) -> str:
    return f"{_LEFT + placed.x(at) * (WIDTH - _LEFT - _RIGHT):.1f}"


def _y(placed: Axes, size_bytes: float) -> str:
    return f"{HEIGHT - _BOTTOM - placed.y(size_bytes) * (HEIGHT - _TOP - _BOTTOM):.1f}"


def _size_axis(placed: Axes) -> Iterable[str]:
    for size, text in placed.sizes:
        y = _y(placed, size)
        yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{text}</text>'


def _time_axis(placed: Axes) -> Iterable[str]:
    foot = HEIGHT - _BOTTOM
    yield f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{foot}" y2="{foot}"/>'
    for at, text in placed.times:
        x = _x(placed, at)
        yield f'<line class="axis" x1="{x}" x2="{x}" y1="{foot}" y2="{foot + 5}"/>'
        if _LEFT + _HALF_LABEL <= float(x) <= WIDTH - _HALF_LABEL:
            yield f'<text x="{x}" y="{foot + 19}" text-anchor="middle">{text}</text>'
    yield f'<text x="{_LEFT - 8}" y="{foot + 19}" text-anchor="end">UTC</text>'


def _limits(placed: Axes) -> Iterable[str]:
    """Yield the lines of the limits with their names, each name above its line and clear of the one below."""
    lowest = float(HEIGHT)
    for limit in placed.limits:
        y = float(_y(placed, limit.size_bytes))
        lowest = min(y - 5, lowest - _LABEL_SPACE)
        yield f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="limit-name" x="{_LEFT + 6}" y="{max(lowest, 10.0):.1f}">{_safe(limit.text)}</text>'


def _now(series: SlotSeries, placed: Axes) -> Iterable[str]:
    if series.forecast:
        x = _x(placed, series.now)
        yield f'<line class="now" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        yield f'<text class="now-name" x="{float(x) + 4:.1f}" y="{HEIGHT - _BOTTOM - 6}">now</text>'


def _polyline(line: Line, placed: Axes, kind: str) -> str:
    if len(line) == 1:
        x, y = _x(placed, line[0].at), _y(placed, line[0].size_bytes)
        return f'<circle class="{kind}-point" r="2.5" cx="{x}" cy="{y}"/>'
    return f'<polyline class="{kind}" points="{_points(line, placed)}"/>'


def _area(line: Line, placed: Axes) -> str:
    first, last = (_x(placed, point.at) for point in (line[0], line[-1]))
    foot = HEIGHT - _BOTTOM
    return f'<polygon class="undelivered" points="{first},{foot} {_points(line, placed)} {last},{foot}"/>'


def _points(line: Line, placed: Axes) -> str:
    return " ".join(f"{_x(placed, point.at)},{_y(placed, point.size_bytes)}" for point in thinned(line, _GROUPS))


def description(series: SlotSeries) -> str:
    """Return what the chart shows, for a screen reader."""
    sizes = f"retained {format_size(series.retained[-1][-1].size_bytes)} of WAL" if series.retained else "no WAL"
    return f"{series.slot_name}: {sizes} at {series.now.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _safe(text: str) -> str:
    return escape(shown(mask(text)))
