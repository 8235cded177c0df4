"""Charts made of characters: whole pictures, every size, ASCII."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from rich.cells import cell_len

from rdsrepl.reports import text_chart
from rdsrepl.reports.text_chart import ASCII, UNICODE, Glyphs
from rdsrepl.retention.slot_series import Limit, Point, SlotSeries, slot_series
from tests.fixtures import builders
from tests.fixtures.builders import GIB, NOW, sample, seen

UNICODE_80 = """\
audit: the slot is invalidated in 4h48m                               2026-11-21
⠤⠤ retained 23.1 GB  █ undelivered 9.4 GB  ⠄⠠ forecast 35.1 GB
┄┄ disk full at 35.1 GB  ┄┄ max_slot_wal_keep_size 40.0 GB
40.0 GB ┤┄┄ max_slot_wal_keep_size 40.0 GB ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄
        │┄┄ disk full at 35.1 GB ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄
        │                                             ┊               ⡀ ⡀ ⠄ ⠂ ⠁
        │                                             ┊       ⡀ ⠄ ⠂ ⠁
        │                                             ⡀ ⠄ ⠂ ⠁
20.0 GB ┤                                     ⣀⡠⠤⠔⠒⠒⠉⠉┊
        │                            ⣀⣀⡠⠤⠔⠒⠊⠉⠉        ┊
        │                         ⠒⠉⠉                 ┊
        │            ⣀⡠⠤⠄                          ▁▃▃▄
        │   ⣀⣀⡠⠤⠔⠒⠊⠉⠉                     ▁▁▃▃▄▆▆▇█████
      0 ┤⠒⠉⠉▂▂▂▂▂▂▂▂▂▂▂▂▂         ▂▂▃▃▄▆▆▇█████████████
        └┬──────────────┬──────────────┬──────────────┬─────────────┬───────────
    UTC  06:00        08:00          10:00          12:00         14:00"""
ASCII_60 = """\
audit: the slot is invalidated in 4h48m           2026-11-21
* retained 23.1 GB  # undelivered 9.4 GB
. forecast 35.1 GB  -- disk full at 35.1 GB
40.0 GB +-- max_slot_wal_keep_size 40.0 GB -----------------
        |-- disk full at 35.1 GB ----------------------.-.-.
        |                                :     . . . .
20.0 GB +                       ********** . .
        |                  ******        :
        |   *********                   ##
      0 +***                    ##########
        `+----------+---------+----------+---------+--------
    UTC  06:00    08:00     10:00      12:00     14:00"""


def drawn(series: SlotSeries, width: int, height: int, glyphs: Glyphs = UNICODE, title: str = "") -> list[str]:
    """Return the chart as plain lines."""
    return [line.plain for line in text_chart.chart(series, title, width=width, height=height, glyphs=glyphs)]


def growing(**options: int | None) -> SlotSeries:
    """Return the series of a slot whose consumer stopped."""
    history, retention = builders.growing_slot(**options)  # type: ignore[arg-type]
    return slot_series(history, retention, retention.holdings[0])


def test_the_whole_picture() -> None:
    series = growing(free_bytes=12 * GIB)
    title = "the slot is invalidated in 4h48m"
    assert "\n".join(drawn(series, 80, 16, UNICODE, title)) == UNICODE_80
    assert "\n".join(drawn(series, 60, 12, ASCII, title)) == ASCII_60


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_size_fits(glyphs: Glyphs) -> None:
    many = replace(growing(), limits=tuple(Limit("disk full at", 20 * GIB + number) for number in range(5)))
    for series in (growing(), growing(keep_bytes=None), many):
        for width, height in ((40, 8), (41, 9), (60, 11), (79, 24), (120, 16), (200, 60)):
            lines = drawn(series, width, height, glyphs, "the disk is full in 1h00m and so on " * 5)
            assert len(lines) == height and max(map(cell_len, lines)) <= width
            if glyphs is ASCII:
                assert all(line.isascii() for line in lines)


def test_extreme_values() -> None:
    one = growing()
    at_once = (Point(NOW, 5), Point(NOW, 7))
    for retained in (at_once, (Point(NOW - timedelta(days=4000), 0), Point(NOW, 2**62)), (Point(NOW, 0),) * 3):
        series = replace(one, retained=(retained,), undelivered=(retained,), forecast=(), limits=())
        assert len(drawn(series, 60, 12)) == 12
    assert "1.0 kB" in "\n".join(drawn(replace(series, limits=(Limit("disk full at", 1024),)), 60, 12))


def test_a_limit_far_above_is_named_and_not_drawn() -> None:
    series = replace(growing(keep_bytes=None), limits=(Limit("max_slot_wal_keep_size", 900 * GIB),))
    lines = drawn(series, 80, 12)
    assert "↑ max_slot_wal_keep_size 900 GB" in lines[1] + lines[2] and "┄" not in "\n".join(lines[3:])


def test_the_lines_have_colours() -> None:
    lines = text_chart.chart(growing(), "", width=80, height=12)
    assert {span.style for line in lines for span in line.spans} >= {"bold cyan", "blue", "cyan", "red"}


def test_one_sample_is_no_picture() -> None:
    history, retention = builders.growing_slot()
    series = slot_series(history[-1:], retention, retention.holdings[0])
    assert drawn(series, 60, 12) == ["audit", "no history yet: this is the first sample"]
    short = slot_series(history, retention, retention.holdings[0], seconds=60)
    assert drawn(short, 60, 12)[1] == "no picture: there is only one sample in this time"
    lost = [sample(age, GIB, seen("audit", None)) for age in (5, 0)]
    assert "invalidated" in drawn(slot_series(lost, retention, retention.holdings[0]), 80, 12)[1]
