"""Detects changes that are missing between what was delivered and the slot's position.

There are two comparisons:

- **Within a run**, at each new connection: the tail knows the position up to which it received everything. If the slot
  is past that position, changes are missing, and the run stops.
- **Between runs**, with what this machine stored in its last run. Another machine may have streamed the slot in the
  meantime, so a slot that advanced is only reported. A slot that was recreated with the same name stops the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import SlotMoved
from rdsrepl.lsn import Lsn
from rdsrepl.state import streamed_slots
from rdsrepl.state.streamed_slots import SlotFingerprint, StreamedSlot
from rdsrepl.tail.progress import Observer
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.timelines import Timelines

_TABLES_NAMED: Final = 10
_REMEDY: Final = (
    "copy the tables again to fill the gap, or continue without the missing changes: --accept-gap (the stream starts "
    "at the slot's position)"
)


def fingerprint_of(checked: PreflightResult) -> SlotFingerprint:
    """Return what distinguishes the slot from one that is created later with the same name."""
    slot = checked.slot
    return SlotFingerprint(
        None if slot.restart_lsn is None else int(slot.restart_lsn),
        None if slot.catalog_xmin is None else int(slot.catalog_xmin),
        slot.total_bytes,
        checked.stats_reset,
        checked.started_at,
    )


def gap(slot_name: str, position: int, received: int, *, was_recreated: bool) -> SlotMoved:
    """Return the error for a slot whose position is past what was received."""
    how = "another consumer or an advance moved it, or it was recreated"
    if was_recreated:
        how = "it was dropped and recreated"
    return SlotMoved(
        f"slot {slot_name} is at {Lsn(position)} now, and everything up to {Lsn(received)} was received: {how}; "
        f"changes committed in these {format_size(position - received)} of WAL were not delivered",
        hint=_REMEDY,
    )


class LastRun:
    """What this machine stores about a slot from run to run."""

    def __init__(
        self, slot_name: str, discarded: Callable[[Sequence[str]], list[str]], observer: Observer, *, accept_gap: bool
    ) -> None:
        """Prepare to compare the slot.

        Args:
            slot_name: the slot.
            discarded: takes the publications of the last run, returns the tables that are no longer published.
            observer: receives notes and warnings.
            accept_gap: continue although changes are missing.
        """
        self._slot_name = slot_name
        self._discarded = discarded
        self._observer = observer
        self._accept_gap = accept_gap
        self._system_id = ""
        self._timelines: Timelines | None = None
        self._streamed: StreamedSlot | None = None

    def compare(self, system_id: str, timelines: Timelines, checked: PreflightResult) -> None:
        """Compare the slot, which this connection holds, with the last run's; nothing is confirmed yet.

        Raises:
            SlotMoved: the slot was recreated since.
        """
        before = streamed_slots.load(system_id, self._slot_name)
        if before is not None:
            self._compare_positions(before, timelines, checked)
            if before.publications and set(before.publications) != set(checked.publications):
                self._warn_publications(before, checked)

    def connected(self, system_id: str, timelines: Timelines, checked: PreflightResult, claimed: int) -> None:
        """Record the slot on a new connection; up to CLAIMED it is confirmed, or was about to be."""
        self._system_id, self._timelines = system_id, timelines
        self._streamed = StreamedSlot(
            datetime.now(UTC),
            timelines.of_end(claimed),
            Lsn(claimed),
            tuple(sorted(checked.publications)),
            fingerprint_of(checked),
            is_final=False,
        )

    def confirming(self, lsn: int) -> None:
        """Store that everything up to LSN is about to be confirmed."""
        if self._streamed is None or self._timelines is None or lsn <= self._streamed.confirmed_lsn:
            return
        self._streamed = replace(
            self._streamed, at=datetime.now(UTC), timeline=self._timelines.of_end(lsn), confirmed_lsn=Lsn(lsn)
        )
        streamed_slots.save(self._system_id, self._slot_name, self._streamed)

    def ended(self) -> None:
        """Make what is stored durable: the run ended without an error."""
        if self._streamed is not None:
            streamed_slots.save(self._system_id, self._slot_name, replace(self._streamed, is_final=True))

    def _compare_positions(self, before: StreamedSlot, timelines: Timelines, checked: PreflightResult) -> None:
        end = timelines.end_of(before.timeline)
        if end is None:
            return  # that timeline is not an ancestor: the positions cannot be compared
        observer, name, at = self._observer, self._slot_name, checked.slot.confirmed_flush_lsn or Lsn(0)
        last, when = before.confirmed_lsn, before.at.isoformat(timespec="seconds")
        base = Lsn(min(last, end))
        if last > base:
            observer.warn(
                f"the last run here ({when}) confirmed slot {name} up to {last} on timeline {before.timeline}, which "
                f"ends at {base} on this server: changes delivered after {base} do not exist on it"
            )
        if at < base:
            observer.note(f"slot {name} is at {at}, before {base}: changes in between were delivered and come again")
        elif (
            at > base
            and before.timeline == timelines.current
            and before.mark.is_different_slot(fingerprint_of(checked))
        ):
            found = gap(name, at, base, was_recreated=True)
            if not self._accept_gap:
                raise found
            observer.warn(found.message)
        elif at > base:
            observer.note(
                f"slot {name} moved from {base} to {at} since the last run here ({when}): another consumer or an "
                "advance moved it, or it was recreated; if no other consumer delivers its changes, those in between "
                "are missing"
            )

    def _warn_publications(self, before: StreamedSlot, checked: PreflightResult) -> None:
        tables = [shown(table) for table in self._discarded(before.publications)]
        lost = "the earlier publications have no other table"
        if tables:
            named = ", ".join(tables[:_TABLES_NAMED]) + (", …" if len(tables) > _TABLES_NAMED else "")
            lost = f"changes of {named} are not streamed, and are lost once later positions are confirmed"
        self._observer.warn(
            f"slot {self._slot_name} was streamed with publications {shown(', '.join(before.publications))}; "
            f"from {checked.slot.confirmed_flush_lsn} on it is streamed with "
            f"{shown(', '.join(checked.publications)) or 'none'}: {lost}"
        )
