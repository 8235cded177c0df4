"""The series behind the charts: gaps, slots that were created again, forecasts and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from rdsrepl.retention import assessment
from rdsrepl.retention.forecast import Storage
from rdsrepl.retention.slot_series import SlotSeries, slot_series
from rdsrepl.state.slot_history import Observation
from tests.fixtures import builders
from tests.fixtures.builders import GIB, NOW, sample, seen


def of(history: Sequence[Observation], name: str = "audit", **given: object) -> SlotSeries:
    """Return the series of a slot that is still there."""
    slot = builders.slot(name, **given)
    retention = assessment.assess(builders.wal(), [slot], ())
    return slot_series(history, retention, retention.holdings[0])


def ages(series: SlotSeries) -> list[list[int]]:
    """Return how many minutes before now each point of each line is."""
    return [[round((NOW - point.at).total_seconds() / 60) for point in line] for line in series.retained]


def test_sizes_of_a_growing_slot() -> None:
    history, retention = builders.growing_slot()
    series = slot_series(history, retention, retention.holdings[0])
    assert series.has_history and series.samples == len(history)
    assert [line[0].size_bytes for line in series.retained] == [2 * GIB, 2 * GIB + 200 * (60 << 20)]
    assert series.retained[-1][-1].size_bytes == retention.holdings[0].retained_bytes
    assert series.undelivered[-1][-1].size_bytes == retention.holdings[0].undelivered_bytes
    assert (series.start, series.now) == (history[0].at, history[-1].at)


def test_a_time_without_samples_is_a_gap() -> None:
    regular = [sample(age, 100 * GIB - age, seen("audit", GIB)) for age in (90, 85, 80, 75, 20, 15, 10, 5, 0)]
    assert ages(of(regular)) == [[90, 85, 80, 75], [20, 15, 10, 5, 0]]
    # Samples once an hour are connected, two samples far apart are not.
    hourly = [sample(60 * age, 100 * GIB - age, seen("audit", GIB)) for age in (9, 8, 7, 6, 2, 1, 0)]
    assert ages(of(hourly)) == [[540, 480, 420, 360, 120, 60, 0]]
    assert ages(of([hourly[0], hourly[-1]])) == [[540], [0]]
    by_hand = [sample(age, 100 * GIB - age, seen("audit", GIB)) for age in (241, 240, 1, 0)]
    assert ages(of(by_hand)) == [[241, 240], [1, 0]]


def test_a_slot_that_was_created_again_starts_anew_in_the_picture() -> None:
    other = seen("other", GIB)
    dropped = [
        sample(20, 10 * GIB, seen("audit", GIB)),
        sample(15, 11 * GIB, other),
        sample(10, 12 * GIB, seen("audit", 12 * GIB)),
        sample(5, 13 * GIB, seen("audit", 12 * GIB)),
    ]
    assert ages(of(dropped)) == [[10, 5]]
    # A reduced sample does not name the slots that did not change.
    reduced = [dropped[0], replace(dropped[1], partial=True), *dropped[2:]]
    assert ages(of(reduced)) == [[20, 10, 5]]
    # Created again between two samples: the counters start from zero. A reset of the statistics changes its time.
    counted = [
        sample(age, (30 - age) * GIB, seen("audit", GIB, counters=counters))
        for age, counters in ((15, (5, 9, None)), (10, (6, 9, None)), (5, (0, 0, None)), (0, (0, 1, None)))
    ]
    assert ages(of(counted)) == [[5, 0]]
    reset = [replace(one, slots=(replace(one.slots[0], counters=(0, 0, "now")),)) for one in counted[2:]]
    assert ages(of([*counted[:2], *reset])) == [[15, 10, 5, 0]]


def test_samples_of_other_wal_and_of_a_clock_that_was_set_back() -> None:
    held = seen("audit", GIB)
    past = [sample(20, 50 * GIB, held), sample(15, 51 * GIB, held), sample(10, 20 * GIB, held, timeline=2)]
    assert ages(of([*past, sample(5, 21 * GIB, held, timeline=2)])) == [[10, 5]]
    ahead = [sample(20, 10 * GIB, held), sample(-60, 11 * GIB, held), sample(5, 12 * GIB, held)]
    assert ages(of(ahead)) == [[20, 5]]


def test_an_invalidated_slot_ends() -> None:
    history = [
        sample(15, 10 * GIB, seen("audit", GIB, 2 * GIB)),
        sample(10, 11 * GIB, seen("audit", GIB, 2 * GIB)),
        sample(5, 12 * GIB, seen("audit", None, 2 * GIB)),
        sample(0, 13 * GIB, seen("audit", None, 2 * GIB)),
    ]
    series = of(history, wal_status="lost", retained_bytes=0)
    assert ages(series) == [[15, 10]] and len(series.undelivered[0]) == 2 and series.forecast == ()
    assert not of(history[2:], wal_status="lost").has_history


def test_a_physical_slot_has_no_undelivered_wal() -> None:
    series = of([sample(5, 9 * GIB, seen("audit", GIB)), sample(0, 10 * GIB, seen("audit", GIB))])
    assert series.undelivered == () and series.has_history


def test_the_forecast_ends_at_the_failure_or_after_half_of_the_history() -> None:
    history, retention = builders.growing_slot()
    series = slot_series(history, retention, retention.holdings[0])
    seconds = retention.holdings[0].breaks[0].seconds
    assert series.end == NOW + timedelta(seconds=seconds) and seconds < 6 * 3600
    assert [limit.text for limit in series.limits] == ["max_slot_wal_keep_size 40.0 GB"]
    assert abs(series.forecast[-1].size_bytes - 40 * GIB) < GIB // 100
    history, retention = builders.growing_slot(keep_bytes=None)
    series = slot_series(history, retention, retention.holdings[0])
    assert series.end == NOW + timedelta(hours=3) and series.limits == ()
    recent = slot_series(history, retention, retention.holdings[0], seconds=3600)
    assert recent.start == NOW - timedelta(hours=1) and recent.end == NOW + timedelta(minutes=30)


def test_a_slot_that_catches_up_is_forecast_to_retain_nothing() -> None:
    before = sample(10, 100 * GIB, seen("audit", 90 * GIB, 90 * GIB))
    slot = builders.slot("audit", restart_lsn=99 * GIB, confirmed_flush_lsn=99 * GIB, retained_bytes=GIB, active=True)
    now = builders.wal(lsn=100 * GIB)
    retention = assessment.assess(now, [slot], [before])
    series = slot_series([before, assessment.to_observation(now, [slot])], retention, retention.holdings[0])
    assert [point.size_bytes for point in series.forecast] == [GIB, 0, 0]


def test_free_storage_is_a_limit_on_top_of_the_retained_wal() -> None:
    history, retention = builders.growing_slot(free_bytes=10 * GIB)
    storage = Storage(10 * GIB, may_grow_bytes=5 * GIB)
    retained = retention.holdings[0].retained_bytes or 0
    series = slot_series(history, replace(retention, storage=storage), retention.holdings[0])
    assert [(limit.name, limit.size_bytes) for limit in series.limits] == [
        ("disk full at", retained + 15 * GIB),
        ("max_slot_wal_keep_size", 40 * GIB),
    ]
    # Another slot retains more, although the assessment is restricted to this one.
    larger = replace(history[-1], slots=(*history[-1].slots, seen("larger", 90 * GIB)))
    series = slot_series([*history[:-1], larger], replace(retention, storage=storage), retention.holdings[0])
    assert [limit.size_bytes for limit in series.limits] == [40 * GIB, retained + 8 * GIB + 15 * GIB]
    standby = replace(retention, wal=replace(retention.wal, in_recovery=True))
    assert [limit.name for limit in slot_series(history, standby, standby.holdings[0]).limits] == [
        "max_slot_wal_keep_size"
    ]
