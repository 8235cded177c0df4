"""What a signal does to the snapshots of a slot: one rule for the receiver and for the command that sends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from rdsrepl.snapshot.requests import Control, Method, Request, Signal, Verb
from rdsrepl.snapshot.state import MAX_UNFINISHED, SnapshotState, Status
from rdsrepl.text.counts import named

NO_CONDITIONS: Final = "its condition needs slot tail --allow-snapshot-conditions"
NO_TRUNCATE: Final = "its --method slot needs slot tail --allow-snapshot-truncate"


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a request may ask for; every role of the database can write one.

    Attributes:
        conditions: an SQL condition, which is run.
        truncate: tables without a key, which begin with a TRUNCATE in the output.
    """

    conditions: bool = False
    truncate: bool = False

    def reason_against(self, request: Request) -> str | None:
        """Return why a request is refused; None if it is not."""
        if request.where is not None and not self.conditions:
            return NO_CONDITIONS
        return NO_TRUNCATE if request.method is Method.slot and not self.truncate else None


_EVERYTHING: Final = Allowed(conditions=True, truncate=True)


@dataclass(frozen=True, slots=True)
class Transition:
    """The effect of a signal.

    Attributes:
        snapshots: all snapshots of the slot after it.
        message: what happened, or why nothing did, for people.
        is_refused: nothing happened.
    """

    snapshots: tuple[SnapshotState, ...]
    message: str
    is_refused: bool = False


def after(
    snapshots: Sequence[SnapshotState], signal: Signal, *, now: datetime, allowed: Allowed = _EVERYTHING
) -> Transition:
    """Return what a signal does.

    Args:
        snapshots: those of the slot.
        signal: a signal for this slot.
        now: the time.
        allowed: what the process allows requests to ask for; the command that sends one does not know.
    """
    before = tuple(snapshots)
    found = next((one for one in before if one.request.id == signal.id), None)
    if isinstance(signal, Control):
        if found is None:
            return Transition(before, f"snapshot {signal.id} does not exist", is_refused=True)
        changed, message = _controlled(found, signal.verb, now, allowed)
        if changed is None:
            return Transition(before, message, is_refused=True)
        return Transition(tuple(changed if one is found else one for one in before), message)
    if found is not None:
        return Transition(before, f"snapshot {signal.id} exists already", is_refused=True)
    if sum(not one.status.has_ended for one in before) >= MAX_UNFINISHED:
        message = f"snapshot {signal.id} is not started: the slot has {MAX_UNFINISHED} that have not ended"
        return Transition(before, message, is_refused=True)
    new = SnapshotState.new(signal)
    if (reason := allowed.reason_against(signal)) is not None:
        new = replace(new, status=Status.failed, reason=reason, ended_at=now)
        return Transition((*before, new), f"snapshot {signal.id} is refused: {reason}")
    return Transition((*before, new), f"snapshot {signal.id} is requested")


def _controlled(found: SnapshotState, verb: Verb, now: datetime, allowed: Allowed) -> tuple[SnapshotState | None, str]:
    """Return the changed snapshot, or None, and the message."""
    name, status = f"snapshot {found.request.id}", found.status
    if verb is Verb.resume and status in (Status.paused, Status.failed):
        if (reason := allowed.reason_against(found.request)) is not None:
            return None, f"{name} is not resumed: {reason}"
        again = Status.requested if found.started_at is None else Status.running
        resumed = replace(found, status=again, reason=None, ended_at=None)
        for place, table in enumerate(found.tables):
            if status is Status.failed and not table.is_done:  # nothing noted rows that moved to the part that was read
                resumed = resumed.with_table(place, table.from_start())
        return resumed, f"{name} is resumed"
    if status.has_ended:
        return None, f"{name} is {status} already"
    if verb is Verb.cancel:
        left = [table.table for table in found.tables if table.is_incomplete]
        message = f"{name} is cancelled" + (f"; the output has not all rows of {named(left, most=3)}" if left else "")
        return replace(found, status=Status.cancelled, ended_at=now), message
    if verb is Verb.pause and status is not Status.paused:
        return replace(found, status=Status.paused), f"{name} is paused"
    already = "paused" if verb is Verb.pause else "running"
    return None, f"{name} is {already} already"
