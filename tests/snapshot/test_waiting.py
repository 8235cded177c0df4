"""What a snapshot waits for is said once, and again at intervals."""

from __future__ import annotations

from rdsrepl.snapshot.waiting import WaitReport


def test_a_wait_is_reported_once_then_at_intervals_and_at_its_end() -> None:
    now = 0.0
    notes: list[str] = []
    saved: list[str | None] = []
    report = WaitReport(notes.append, saved.append, lambda: now)
    report.ends()
    report.waits("PID 1", "end it")
    report.ends()
    assert (notes, saved) == ([], []), "a moment is not reported"
    while now < 130:
        now += 1
        report.waits("PID 1", "end it")
    assert notes == ["waits for PID 1; end it"] * 3
    assert saved == ["PID 1; end it"]
    report.waits("PID 2")
    assert saved[1:] == ["PID 2"] and len(notes) == 3
    report.ends()
    report.ends()
    assert (notes[3:], saved[2:]) == (["goes on"], [None])
