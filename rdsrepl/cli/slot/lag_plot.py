"""Draw the slots of ``slot lag --plot`` for the terminal: one slot, or the worst few that fit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from rdsrepl.render import console, stacked
from rdsrepl.reports import text_chart
from rdsrepl.retention.assessment import Retention
from rdsrepl.retention.slot_series import slot_series
from rdsrepl.state.slot_history import Observation
from rdsrepl.text.counts import counted

_MOST_SLOTS: Final = 3
_MOST_HEIGHT: Final = 20
#: The size of a chart in a pipe or a file.
_PIPE_WIDTH, _PIPE_HEIGHT = 80, 16
# The lines of the prompt and of the notes.
_OTHER_LINES: Final = 3


def plot(
    history: Sequence[Observation], retention: Retention, *, seconds: float | None, unicode: bool, more: str
) -> object:
    """Return the charts of the worst slots.

    Args:
        history: the samples, oldest first, the current one included.
        retention: the slots to draw, the worst first.
        seconds: how much of the history to draw; None draws all.
        unicode: whether the terminal displays more than ASCII.
        more: the command that draws another slot.
    """
    if not retention.holdings:
        return "no replication slots"
    width, height, most = _space(len(retention.holdings))
    glyphs = text_chart.glyphs_for(unicode=unicode)
    parts: list[object] = []
    missing = False
    for one in retention.holdings[:most]:
        series = slot_series(history, retention, one, seconds=seconds)
        missing = missing or series.samples <= 1
        title = text_chart.failure(one)
        parts += text_chart.chart(series, title, width=width, height=height, glyphs=glyphs)
    if missing:
        parts.append(
            "A picture needs two samples: run the command again later. Each slot list, lag, check and prune adds one, "
            "and slot watch adds one a minute."
        )
    rest = len(retention.holdings) - most
    if rest > 0:
        parts.append(f"{counted(rest, 'more slot')}: {more}")
    return stacked(*parts)


def _space(slots: int) -> tuple[int, int, int]:
    """Return the width and height of a chart, and how many fit."""
    if not sys.stdout.isatty():
        return _PIPE_WIDTH, _PIPE_HEIGHT, min(slots, _MOST_SLOTS)
    out = console(sys.stdout)
    rows = out.height - _OTHER_LINES
    most = max(1, min(slots, _MOST_SLOTS, rows // text_chart.MIN_HEIGHT))
    height = max(text_chart.MIN_HEIGHT, min(_MOST_HEIGHT, rows // most))
    return max(text_chart.MIN_WIDTH, out.width), height, most
