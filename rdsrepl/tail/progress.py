"""What a running tail reports: its progress, its summary at the end, and the interface that receives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from rdsrepl.lsn import Lsn

_SAME_NOTE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class GateProgress:
    """What a tail with ``--behind`` holds back.

    Attributes:
        held_bytes: received, and not replayed by the standby.
        is_connected: whether the standby answers.
        replayed_lsn: up to where it has replayed the WAL of the slot's server.
    """

    held_bytes: int
    is_connected: bool
    replayed_lsn: Lsn


@dataclass(frozen=True, slots=True)
class Progress:
    """What a tail has received, delivered and confirmed so far.

    Attributes:
        changes, received_bytes: received since the start.
        received_lsn: the position up to which the server has sent.
        confirmed_lsn: the position that is confirmed: the server may remove the WAL before it.
        seconds: since the start.
        reconnects: how often the connection was opened again.
        connected: whether the slot is being streamed now.
        pending_bytes: received, not durable, and held in memory.
        oldest_undelivered_seconds: how long the oldest change that is not durable has waited since it was received.
        gate: what is held back for a standby; None without ``--behind``.
        timeline: of the server; 0 on Aurora.
        undone_changes: delivered, and not on the server any more since a failover.
    """

    changes: int
    received_bytes: int
    received_lsn: Lsn
    confirmed_lsn: Lsn
    seconds: float
    reconnects: int
    connected: bool = False
    pending_bytes: int = 0
    oldest_undelivered_seconds: float = 0.0
    gate: GateProgress | None = None
    timeline: int = 0
    undone_changes: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """How a tail ended: its progress and the reason."""

    progress: Progress
    reason: str


class Observer(Protocol):
    """Receives what the tail reports; it must not write to stdout."""

    def note(self, text: str) -> None:
        """Report an event."""
        ...

    def warn(self, text: str) -> None:
        """Report an event that needs attention."""
        ...

    def progress(self, progress: Progress) -> None:
        """Report the progress; called many times a second."""
        ...


class RecentNotes:
    """Says whether a note is due: the same text is printed at most every 30 seconds."""

    def __init__(self) -> None:
        self._printed_at: dict[str, float] = {}

    def is_due(self, text: str, now: float) -> bool:
        """Return whether to print a note at NOW, in seconds of a monotonic clock."""
        self._printed_at = {one: at for one, at in self._printed_at.items() if now - at < _SAME_NOTE_SECONDS}
        return self._printed_at.setdefault(text, now) == now
