"""What a running tail prints."""

from __future__ import annotations

from rdsrepl.tail.progress import RecentNotes


def test_the_same_note_comes_at_most_every_thirty_seconds() -> None:
    """A server that is down for an hour, and whose refusals alternate, does not print a line for each attempt."""
    notes = RecentNotes()
    printed = [second for second in range(100) if notes.is_due("refused" if second % 2 else "starting up", second)]
    assert printed == [0, 1, 30, 31, 60, 61, 90, 91]
