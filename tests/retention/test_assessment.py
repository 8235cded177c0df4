"""The assessment of slots: retained WAL, rates and forecasts; one test compares a forecast with a real server."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.config import Target
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import connection
from rdsrepl.postgres.slots import Slot
from rdsrepl.retention import assessment, forecast, server_state
from rdsrepl.retention.assessment import Retention
from rdsrepl.retention.forecast import Rate, Storage
from rdsrepl.retention.thresholds import Severity, Thresholds
from rdsrepl.state import slot_history
from rdsrepl.state.slot_history import Observation, SlotObservation
from tests.fixtures.builders import NOW, slot, wal
from tests.fixtures.lone_server import start

GIB = 1 << 30
END = wal().lsn


def at(lsn: int, name: str = "s", **other: Any) -> Slot:
    """Return a slot at a position."""
    return slot(
        name, restart_lsn=Lsn(lsn), confirmed_flush_lsn=Lsn(lsn), retained_bytes=END - lsn, lag_bytes=END - lsn, **other
    )


def looked(
    seconds_ago: float, slots: Sequence[Slot], *, wal_lsn: int, next_xid: int = 1000, **other: Any
) -> Observation:
    seen = tuple(
        SlotObservation(one.slot_name, one.active, one.restart_lsn, one.confirmed_flush_lsn, 100) for one in slots
    )
    made = Observation(NOW - timedelta(seconds=seconds_ago), wal().started_at, 1, Lsn(wal_lsn), next_xid, seen)
    return replace(made, **other)


def only(found: Retention) -> assessment.SlotRetention:
    (one,) = found.holdings
    return one


# WAL that a drop frees.


positions = st.lists(st.integers(1, END), min_size=1, max_size=8)


@given(lsns=positions, keep=st.integers(0, END))
def test_dropping_more_slots_never_frees_less(lsns: list[int], keep: int) -> None:
    slots = [at(lsn, f"s{number}") for number, lsn in enumerate(lsns)]
    here = wal(keep_bytes=keep)
    names = [one.slot_name for one in slots]
    everything, keeper = assessment.freed_by_dropping(names, slots, here)
    assert keeper is None
    assert everything == max(0, END - keep - min(lsns)), "all that wal_keep_size does not keep"
    sizes = [assessment.freed_by_dropping(names[:count], slots, here)[0] for count in range(len(names) + 1)]
    assert sizes == sorted(sizes) and sizes[-1] == everything
    for one in slots:
        freed, other = assessment.freed_by_dropping([one.slot_name], slots, here)
        assert freed <= (one.retained_bytes or 0) and (other is None or other != one.slot_name)


def test_the_slot_that_retains_the_same_wal_is_named() -> None:
    slots = [at(5 * GIB, "old"), at(6 * GIB, "next"), at(9 * GIB, "new")]
    assert assessment.freed_by_dropping(["old"], slots, wal()) == (GIB, "next")
    assert assessment.freed_by_dropping(["next"], slots, wal()) == (0, "old")
    assert assessment.freed_by_dropping(["old", "next"], slots, wal()) == (4 * GIB, "new")
    assert assessment.freed_by_dropping(["lost"], [slot("lost", restart_lsn=None)], wal()) == (0, None)


# Forecasts.


def breaks(found: Retention, what: str) -> forecast.Forecast | None:
    return next((one for one in only(found).breaks if one.what == what), None)


@given(rate=st.integers(1, 1 << 30), more=st.integers(1, 1 << 30), free=st.integers(0, 1 << 44))
def test_faster_growth_means_an_earlier_failure(rate: int, more: int, free: int) -> None:
    def when(per_second: float) -> float:
        found = assessment.assess(
            wal(), [at(GIB)], storage=Storage(free, source="x"), wal_rate=Rate(per_second, 0.0, "CloudWatch")
        )
        full = breaks(found, "storage_full")
        assert full is not None
        return full.seconds

    assert when(rate) == pytest.approx(free / rate) and when(rate + more) <= when(rate)


def test_a_slot_fills_the_disk_only_beyond_the_largest_slot() -> None:
    found = assessment.assess(
        wal(), [at(GIB, "old"), at(9 * GIB, "new")], storage=Storage(GIB), wal_rate=Rate(1 << 20, 0.0, "CloudWatch")
    )
    seconds = {one.slot.slot_name: one.breaks[0].seconds for one in found.holdings}
    assert seconds == {"old": 1024, "new": 9 * 1024} and found.blamed == "old"


def test_the_disk_forecast_includes_autoscaling_and_the_slot_limit() -> None:
    rate = Rate(1 << 20, 0.0, "CloudWatch")
    grown = breaks(assessment.assess(wal(), [at(9 * GIB)], storage=Storage(GIB, GIB), wal_rate=rate), "storage_full")
    assert grown is not None and grown.seconds == 2048 and "autoscaling" in grown.reason
    limited = assessment.assess(
        wal(slot_keep_bytes=2 * GIB),
        [at(9 * GIB, safe_wal_size=GIB)],
        storage=Storage(5 * GIB),
        wal_rate=rate,
    )
    assert [one.what for one in only(limited).breaks] == ["slot_invalidated"]
    assert only(limited).breaks[0].seconds == 1024


@pytest.mark.parametrize(
    "lost", [{"wal_status": "lost"}, {"invalidation_reason": "idle_timeout"}, {"conflicting": True}]
)
def test_an_invalidated_slot_is_critical(lost: dict[str, Any]) -> None:
    one = only(assessment.assess(wal(), [slot(**lost)]))
    assert [item.what for item in one.breaks] == ["slot_invalidated"] and one.breaks[0].seconds == 0
    assert one.severity is Severity.CRITICAL


def test_transaction_ids_run_out() -> None:
    one = slot(catalog_xmin_age=1_000_000_000, xmin_age=400)
    past = looked(600, [one], wal_lsn=END, next_xid=wal().next_xid - 600_000)
    found = assessment.assess(wal(), [one], [past])
    wraparound = breaks(found, "xid_wraparound")
    assert wraparound is not None and wraparound.seconds == pytest.approx((2**31 - 3_000_000 - 10**9) / 1000)
    assert only(found).xid_age == 1_000_000_000 and only(found).severity is Severity.CRITICAL


def test_a_short_burst_gives_no_forecast_for_days() -> None:
    one = at(9 * GIB)
    wide = Storage(1 << 40, source="x")
    burst = assessment.assess(wal(), [one], [looked(3, [one], wal_lsn=END - (200 << 20))], storage=wide)
    assert only(burst).breaks and not only(burst).breaks[0].has_enough_history
    assert "breaks" not in {reason.measure for reason in only(burst).reasons}
    trend = assessment.assess(wal(), [one], [looked(800, [one], wal_lsn=END - (200 << 20) * 200)], storage=wide)
    assert only(trend).breaks[0].has_enough_history
    assert "breaks" in {reason.measure for reason in only(trend).reasons}


# Rates.


def test_a_consumer_that_catches_up_gives_no_forecast() -> None:
    before, now = at(2 * GIB, active=True, inactive_since=None), at(9 * GIB, active=True, inactive_since=None)
    found = assessment.assess(
        wal(),
        [now],
        [looked(100, [before], wal_lsn=END - GIB)],
        storage=Storage(1),
        wal_rate=Rate(9e9, 0.0, "CloudWatch"),
    )
    one = only(found)
    assert one.growth is not None and one.growth.per_second == -6 * GIB / 100
    assert one.delivery is not None and one.delivery.per_second == 7 * GIB / 100
    assert found.wal_rate is not None and found.wal_rate.per_second == GIB / 100 and one.breaks == ()


def test_a_new_active_slot_has_no_rate() -> None:
    one = only(
        assessment.assess(wal(), [at(GIB, active=True)], wal_rate=Rate(1e9, 0.0, "CloudWatch"), storage=Storage(1))
    )
    assert one.growth is None and one.breaks == ()


def test_the_rate_of_cloudwatch_replaces_a_short_window() -> None:
    one, cloudwatch = at(9 * GIB), Rate(5.0, 0.0, "CloudWatch")
    short = assessment.assess(wal(), [one], [looked(5, [one], wal_lsn=END - 1000)], wal_rate=cloudwatch)
    assert short.wal_rate == cloudwatch
    long = assessment.assess(wal(), [one], [looked(100, [one], wal_lsn=END - 1000)], wal_rate=cloudwatch)
    assert long.wal_rate == Rate(10.0, 100.0, "observed")


@pytest.mark.parametrize("other", [{"timeline": 2}, {"lsn": Lsn(END + 1)}])
def test_samples_of_another_wal_are_not_compared(other: dict[str, Any]) -> None:
    one = at(9 * GIB)
    found = assessment.assess(wal(), [one], [looked(100, [one], wal_lsn=END - 1000, **other)])
    assert found.wal_rate is None and only(found).growth is None


def test_age_of_the_last_confirmed_wal() -> None:
    one = at(9 * GIB)
    history = [
        looked(300, [one], wal_lsn=8 * GIB),
        looked(200, [one], wal_lsn=9 * GIB - GIB // 2),
        looked(100, [one], wal_lsn=9 * GIB + GIB // 2),
    ]
    assert only(assessment.assess(wal(), [one], history)).lag_seconds == pytest.approx(150)
    assert only(assessment.assess(wal(), [at(END)], history)).lag_seconds == 0
    assert only(assessment.assess(wal(), [at(GIB)], history)).lag_seconds is None, "older than anything that was seen"


# Thresholds.


@given(
    retained=st.integers(0, END),
    limit=st.integers(1, END),
    stricter=st.integers(1, END),
)
def test_a_stricter_threshold_never_reports_less(retained: int, limit: int, stricter: int) -> None:
    def found(bytes_: int) -> bool:
        assessed = assessment.assess(
            wal(), [at(END - retained, active=True, inactive_since=None)],
            warn=Thresholds(retained_bytes=bytes_), critical=Thresholds(),
        )  # fmt: skip
        return only(assessed).severity is Severity.WARNING

    low, high = sorted((limit, stricter))
    assert found(low) or not found(high)


def test_each_measure_is_reported_once_with_its_worst_severity() -> None:
    one = at(GIB, active=False, inactive_since=NOW - timedelta(days=2), wal_status="unreserved")
    found = assessment.assess(
        wal(), [one],
        warn=Thresholds(retained_bytes=1, inactive_seconds=60),
        critical=Thresholds(retained_bytes=2, inactive_seconds=1e9),
    )  # fmt: skip
    assert [(reason.severity, reason.measure) for reason in only(found).reasons] == [
        (Severity.CRITICAL, "retained"),
        (Severity.WARNING, "inactive"),
    ]
    assert found.severity is Severity.CRITICAL


def test_a_standby_has_no_disk_forecast() -> None:
    found = assessment.assess(
        wal(in_recovery=True, timeline=None), [at(GIB)], storage=Storage(1), wal_rate=Rate(1e9, 0.0, "CloudWatch")
    )
    assert only(found).breaks == ()


# The recent past.


def test_retained_history_in_steps() -> None:
    one = at(9 * GIB)
    history = [looked(seconds, [one], wal_lsn=9 * GIB + 100 - seconds) for seconds in (95, 45, 5)]
    values = assessment.retained_history(history, "s", points=10, seconds=100)
    assert len(values) == 10 and [values[1], values[6], values[9]] == [5.0, 55.0, 95.0] and values[0] is None
    assert assessment.retained_history([], "s", points=3, seconds=9) == ()


# The history.


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_stored_sample_is_read_back_unchanged(state: Path) -> None:
    made = looked(10, [at(GIB, "a"), slot("lost", restart_lsn=None)], wal_lsn=END)
    held = replace(
        made, slots=(*made.slots, SlotObservation("b", True, None, None, None, "PID 1 (user ä)")), timeline=None
    )
    assert slot_history.record("one", made) and slot_history.record("one", held)
    assert slot_history.history("one") == (made, held) and slot_history.history("other") == ()
    (file,) = (state / "observations").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and "one" not in file.name


def test_a_damaged_line_affects_only_itself(state: Path) -> None:
    made = looked(10, [at(GIB)], wal_lsn=END)
    slot_history.record("one", made)
    (file,) = (state / "observations").iterdir()
    with file.open("a") as torn:
        torn.write('{"at": "2026\n[]\n{"at": 5}\nnonsense\n')
    slot_history.record("one", made)
    assert slot_history.history("one") == (made, made)


def test_a_long_history_is_thinned_out_and_keeps_the_newest_samples(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_history, "_MAX_BYTES", 20_000)
    made = [looked(1000 - number, [at(GIB)], wal_lsn=END - 1000 + number) for number in range(500)]
    for one in made:
        assert slot_history.record("one", one)
    kept = slot_history.history("one")
    (file,) = (state / "observations").iterdir()
    assert file.stat().st_size <= 20_000 and list(kept) == sorted(kept, key=lambda one: one.at)
    assert kept[-10:] == tuple(made[-10:]) and kept[0].at < made[400].at


def _record_many(number: int) -> None:
    for count in range(50):
        slot_history.record("one", looked(number * 100 + count, [at(GIB)], wal_lsn=END))


def test_concurrent_writers_write_complete_lines(state: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_record_many, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    (file,) = (state / "observations").iterdir()
    assert len(slot_history.history("one")) == 200 == len([json.loads(line) for line in file.read_text().splitlines()])


def test_a_history_that_is_not_writable_is_not_written(state: Path) -> None:
    state.write_text("")
    assert not slot_history.record("one", looked(1, [], wal_lsn=END)) and slot_history.history("one") == ()


# A forecast on a real server.


def test_the_forecast_of_an_invalidation_is_accurate(state: Path, tmp_path: Path) -> None:
    """If the WAL grows as measured, the forecast is accurate to 20 percent: in bytes, as this machine may be busy."""
    server = start(tmp_path / "pg", 18, max_slot_wal_keep_size="160MB", max_wal_size="32MB", min_wal_size="32MB")
    try:
        with connection.open(Target("test", server.dsn())) as conn:
            conn.execute("SELECT pg_create_logical_replication_slot('doomed', 'pgoutput')")

            def write(megabytes: int) -> None:
                message = "pg_logical_emit_message(true, 'x', repeat('y', 262144))"
                conn.execute(f"SELECT count({message}) FROM generate_series(1, {4 * megabytes})")

            def position() -> tuple[float, float]:
                query = "SELECT pg_current_wal_lsn() - '0/0', extract(epoch FROM clock_timestamp())"
                row = conn.execute(query).fetchone()
                assert row is not None
                return float(row[0]), float(row[1])

            server_state.read(conn)
            before = position()
            write(40)
            time.sleep(2)
            found = server_state.read(conn).assess()
            after = position()
            (doomed,) = found.holdings
            foretold = doomed.breaks[0]
            assert foretold.what == "slot_invalidated" and foretold.seconds is not None
            for _ in range(400):
                write(1)
                conn.execute("CHECKPOINT")
                if conn.execute("SELECT wal_status FROM pg_replication_slots").fetchone() == ("lost",):
                    break
            written = position()[0] - after[0]
    finally:
        server.stop("immediate")
        server.remove()
    expected = foretold.seconds * (after[0] - before[0]) / (after[1] - before[1])
    assert 0.8 * written <= expected <= 1.2 * written, (foretold, written)


def test_a_forecast_beyond_a_year_names_no_time() -> None:
    far = forecast.Forecast("storage_full", 284167.5 * 86400, "80 GB of storage is free")
    assert (far.when, far.text) == (
        "not within a year",
        "the disk is full: not within a year; 80 GB of storage is free",
    )
    near = replace(far, seconds=3 * 3600.0)
    assert near.text == "the disk is full in 3h00m: 80 GB of storage is free"
