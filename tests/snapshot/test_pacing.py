"""How many rows a chunk has, and when the next one is read."""

from __future__ import annotations

from rdsrepl.postgres.standby_lag import StandbyLag
from rdsrepl.snapshot.pacing import MOST_LAG_SECONDS, WANTED_BYTES, Pace, StandbyLimit
from rdsrepl.snapshot.requests import Request


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_chunks_grow_to_what_was_requested_and_shrink_with_wide_rows_or_a_slow_output() -> None:
    overflows = 0
    pace = Pace(Request("a", "s", ("t",), chunk_rows=5_000), lambda: overflows, Clock())
    pace.begins_table()
    sizes = []
    for _ in range(4):
        sizes.append(pace.rows)
        pace.was_read(pace.rows, pace.rows * 40, is_cut=False)
        pace.was_written(pace.rows, 0.01)
    assert sizes == [1_000, 2_000, 4_000, 5_000]
    pace.was_read(50, WANTED_BYTES, is_cut=True)
    pace.was_written(50, 0.01)
    assert pace.rows == 50, "as many as fit"
    pace.begins_table()
    assert pace.rows == 1_000, "the rows of another table may be narrow, and wide: a chunk of 5,000 could be large"
    pace.was_written(1_000, 30.0)
    assert pace.rows == 500
    for _ in range(9):
        pace.was_written(pace.rows, 30.0)
    assert pace.rows == 100
    overflows = 3
    pace.begins_table()
    assert (pace.most_rows, pace.rows) == (625, 625)


def test_a_rate_is_kept_and_made_up_for_only_a_moment() -> None:
    clock = Clock()
    pace = Pace(Request("a", "s", ("t",), chunk_rows=100, rows_per_second=1_000), lambda: 0, clock)
    rows, began = 0, clock.seconds
    while rows < 20_000:
        clock.seconds += pace.left_seconds + 0.03
        pace.was_written(100, 0.02)
        rows += 100
    assert 19.5 < clock.seconds - began < 20.5, "the time that a chunk takes is not added to the time between two"
    clock.seconds += 60
    rows = 0
    while not pace.left_seconds:
        pace.was_written(100, 0.0)
        rows += 100
    assert rows <= 1_100, "after a minute without rows"
    assert Pace(Request("a", "s", ("t",)), lambda: 0, clock).left_seconds == 0


def test_a_standby_that_stays_behind_is_ignored_after_five_minutes() -> None:
    clock = Clock()
    limit = StandbyLimit(clock)
    late, later = StandbyLag("late", MOST_LAG_SECONDS), StandbyLag("later", 3600.0)
    assert limit.waits_for([]) is None
    assert limit.waits_for([StandbyLag("near", MOST_LAG_SECONDS - 1)]) is None
    assert limit.waits_for([later]) == "later"
    clock.seconds += 299
    assert limit.waits_for([later]) == "later"
    clock.seconds += 1
    assert limit.waits_for([later]) is None
    assert limit.waits_for([later, late]) == "late"
    clock.seconds += 1
    assert limit.waits_for([later]) is None
    assert limit.waits_for([]) is None
    assert limit.waits_for([later]) == "later", "it was not behind any more"
