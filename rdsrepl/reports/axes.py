"""The axes of a chart: which range they show, and where their labels are. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from rdsrepl.retention.slot_series import Limit, Line, SlotSeries
from rdsrepl.units import format_size

# A limit that is further away than this many times the largest value would press the values onto the axis.
_FAR_LIMIT: Final = 4
_HEADROOM: Final = 1.05
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIME_STEPS: Final = (
    *(1, 5, 10, 15, 30),
    *(_MINUTE * many for many in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * many for many in (1, 2, 3, 6, 12)),
    *(_DAY * many for many in (1, 2, 7, 14, 28, 91, 182, 365)),
)
_SIZE_STEPS: Final = tuple(many << 10 * power for power in range(7) for many in (1, 2, 5, 10, 20, 50, 100, 256, 512))
_SHORTEST: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Axes:
    """The ranges of a chart and their labels.

    Attributes:
        start, end: the range of the time axis.
        high_bytes: the upper end of the size axis, which begins at 0.
        sizes: the labels of the size axis: bytes and text.
        times: the labels of the time axis, in UTC.
        limits: the limits inside the chart, the lowest first.
        far_limits: the limits above it.
    """

    start: datetime
    end: datetime
    high_bytes: float
    sizes: tuple[tuple[int, str], ...]
    times: tuple[tuple[datetime, str], ...]
    limits: tuple[Limit, ...]
    far_limits: tuple[Limit, ...]

    def x(self, at: datetime) -> float:
        """Return where a time is on the time axis: 0 at its start, 1 at its end."""
        return (at - self.start) / (self.end - self.start)

    def y(self, size_bytes: float) -> float:
        """Return where a size is on the size axis: 0 at its foot, 1 at its top."""
        return size_bytes / self.high_bytes

    @property
    def date(self) -> str:
        """The date of the labels, which have only the time of day."""
        return f"{self.start.astimezone(UTC):%Y-%m-%d}"


def axes(series: SlotSeries, *, most_sizes: int, most_times: int) -> Axes:
    """Return the axes that show all of a series.

    Args:
        series: the slot.
        most_sizes: how many labels the size axis has room for, besides 0.
        most_times: how many labels the time axis has room for.
    """
    highest = max(series.highest_bytes, 1)
    near = tuple(limit for limit in series.limits if limit.size_bytes <= highest * _FAR_LIMIT)
    far = tuple(limit for limit in series.limits if limit not in near)
    high = max(1024.0, max(highest, *(limit.size_bytes for limit in near), 0) * _HEADROOM)
    end = max(series.end, series.start + _SHORTEST)
    return Axes(
        series.start, end, high, _size_labels(high, most_sizes), _time_labels(series.start, end, most_times), near, far
    )


def thinned(line: Line, groups: int) -> Line:
    """Return a line with fewer points that looks the same: of each group the first, lowest, highest and last."""
    if len(line) <= 4 * groups:
        return line
    kept: set[int] = set()
    for number in range(groups):
        group = range(len(line) * number // groups, len(line) * (number + 1) // groups)
        sizes = [line[index].size_bytes for index in group]
        kept |= {group[0], group[-1], group[sizes.index(min(sizes))], group[sizes.index(max(sizes))]}
    return tuple(line[index] for index in sorted(kept))


def _size_labels(high: float, most: int) -> tuple[tuple[int, str], ...]:
    step = next((step for step in _SIZE_STEPS if high // step <= max(1, most)), _SIZE_STEPS[-1])
    return ((0, "0"), *((size, format_size(size)) for size in range(step, int(high) + 1, step)))


def _time_labels(start: datetime, end: datetime, most: int) -> tuple[tuple[datetime, str], ...]:
    span = (end - start).total_seconds()
    step = next((step for step in _TIME_STEPS if span / step <= max(1, most)), _TIME_STEPS[-1])
    first = -(-start.timestamp() // step) * step
    moments = [datetime.fromtimestamp(first + step * number, UTC) for number in range(most + 2)]
    return tuple((at, _time_label(at, step)) for at in moments if at <= end)


def _time_label(at: datetime, step: int) -> str:
    if step >= _DAY * 182:
        return f"{at:%Y-%m-%d}"
    if step >= _DAY or (at.hour, at.minute, at.second) == (0, 0, 0):
        return f"{at.day} {at:%b}"
    return f"{at:%H:%M:%S}" if step < _MINUTE else f"{at:%H:%M}"
