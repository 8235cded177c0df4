"""A long history is thinned by age, and says the same about idle times, use and peaks as before."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdsrepl.lsn import Lsn
from rdsrepl.retention.idleness import assess_idleness
from rdsrepl.retention.prune_rules import last_consumer
from rdsrepl.state import slot_history
from rdsrepl.state.slot_history import Observation, SlotObservation
from tests.fixtures.builders import GIB, NOW, sample, seen, slot, wal

HOUR, DAY = 3600.0, 86_400.0
MIB = 1 << 20


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "rdsrepl"


def look(minutes_ago: float, **slots: tuple[bool, int] | None) -> Observation:
    """Return a sample of slots, each active or not and with the bytes that it retains of 100 GiB of WAL."""
    end = 100 * GIB
    rows = [
        seen(name, end - given[1], end - given[1], active=given[0], holder="PID 7 (app)" if given[0] else None)
        for name, given in slots.items()
        if given is not None
    ]
    return sample(minutes_ago, end, *rows)


@st.composite
def histories(draw: st.DrawFn) -> list[Observation]:
    """Return a history of months: slots are used, idle, dropped and created again; servers restart, clocks are set."""
    made: list[Observation] = []
    events = st.sampled_from(["quiet", "quiet", "quiet", "use", "leave", "drop", "create", "restart", "clock", "move"])
    ago = draw(st.sampled_from((2.0, 40.0, 400.0))) * 1440
    started, skew, lsn = NOW - timedelta(days=500), 0.0, 50 * GIB
    slots: dict[str, SlotObservation] = {}
    while ago > 0 and len(made) < 60:
        match draw(events):
            case "use" | "create":
                slots["s"] = seen("s", lsn, lsn, active=True, holder=f"PID {draw(st.integers(1, 3))}")
            case "leave" if "s" in slots:
                slots["s"] = seen("s", lsn, lsn)
            case "drop":
                slots.pop("s", None)
            case "restart":
                started += timedelta(days=1)
            case "clock":
                skew = draw(st.sampled_from((0.0, -9.9, 9.9, 10.1, 25.0, 3600.0)))
            case "move":
                lsn += GIB
        made.append(
            Observation(
                NOW - timedelta(minutes=ago), started, 1, Lsn(lsn), 1000, (*slots.values(), seen("t", GIB)), skew
            )
        )
        ago -= draw(st.sampled_from((0.5, 5.0, 5.0, 5.0, 61.0, 1500.0)))
    return made


@settings(max_examples=150, deadline=None)
@given(histories(), st.sampled_from([(DAY, 30 * DAY), (6 * HOUR, 7 * DAY), (HOUR, DAY)]))
def test_idle_times_and_the_last_use_are_the_same_after_thinning(
    made: list[Observation], ages: tuple[float, float]
) -> None:
    last = made[-1]
    thinned = slot_history.compact(slot_history.compact(made[: len(made) // 2], *ages) + made[len(made) // 2 :], *ages)
    here = wal(
        started_at=last.started_at, lsn=last.lsn, version=16, clock_skew_seconds=last.clock_skew_seconds, timeline=1
    )
    for one in last.slots:
        now = slot(
            one.slot_name,
            active=one.active,
            restart_lsn=one.restart_lsn,
            confirmed_flush_lsn=one.confirmed_flush_lsn,
            inactive_since=None,
        )
        before, after = assess_idleness(now, made, here), assess_idleness(now, thinned, here)
        assert (after.proof, after.seconds, after.since, after.counted_from) == (
            before.proof,
            before.seconds,
            before.since,
            before.counted_from,
        )
        assert last_consumer(one.slot_name, thinned) == last_consumer(one.slot_name, made)
    assert thinned == slot_history.compact(thinned, *ages)


def test_old_samples_become_hourly_then_daily_and_keep_the_peaks() -> None:
    made = [
        look(minutes, quiet=(True, 3 * MIB + minutes % 7), busy=(True, (5 + (minutes // 5) % 11) * MIB))
        for minutes in range(60 * 1440, -1, -5)
    ]
    made[1000] = look(60 * 1440 - 5000, quiet=(True, 3 * MIB), busy=(True, 40 * GIB))
    made[9001] = look(60 * 1440 - 45005, quiet=(True, 20 * GIB), busy=(True, MIB))
    thinned = slot_history.compact(made, DAY, 30 * DAY)
    whole = [one for one in thinned if not one.partial]
    ages = Counter(
        "day" if age <= DAY else "month" if age <= 30 * DAY else "older"
        for age in ((NOW - one.at).total_seconds() for one in whole)
    )
    assert ages["day"] == 289 and 29 * 24 <= ages["month"] <= 29 * 24 + 1 and 30 <= ages["older"] <= 32
    peaks = {
        name: max(one.lsn - row.restart_lsn for one in thinned if (row := one.slot(name)) and row.restart_lsn)
        for name in ("quiet", "busy")
    }
    assert peaks == {"quiet": 20 * GIB, "busy": 40 * GIB}
    # Peaks that differ by less than a WAL segment are not kept: a year has to fit.
    assert len(thinned) - len(whole) == 2


def _record(number: int) -> list[datetime]:
    """Record samples; return their times."""
    times = []
    for count in range(60):
        one = replace(look(0, a=(False, GIB), b=(True, count * MIB)), at=datetime.now(UTC), next_xid=number)
        assert slot_history.record("one", one)
        times.append(one.at)
    return times


def test_writers_that_thin_the_file_at_the_same_time_keep_the_newest_samples(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_history, "_MAX_BYTES", 20_000)
    with multiprocessing.get_context("fork").Pool(3) as writers:
        written = sorted(chain.from_iterable(writers.map(_record, range(3), chunksize=1)))
    (file,) = (state / "observations").iterdir()
    assert file.stat().st_size <= 20_000 and all(json.loads(line) for line in file.read_text().splitlines())
    kept = {one.at for one in slot_history.history("one") if not one.partial}
    assert set(written[-12:]) <= kept and len(kept) < len(written)
