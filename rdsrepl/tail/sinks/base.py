"""What the tail writes to: takes batches of lines, and reports which of them are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rdsrepl.tail.wakeup import WakeupPipe


class Sink(Protocol):
    """What the tail needs of a sink.

    Attributes:
        wakeup: is readable after progress.
    """

    wakeup: WakeupPipe

    def put(self, number: int, lines: Sequence[str] | Sequence[bytes]) -> None:
        """Accept batch NUMBER; returns at once.

        Raises:
            Error: an earlier batch could not be written.
        """
        ...

    @property
    def pending_bytes(self) -> int:
        """The size of what was accepted and is not yet written."""
        ...

    @property
    def durable(self) -> int:
        """The number up to which every batch is durable.

        Raises:
            Error: a batch could not be written.
        """
        ...

    def finish(self) -> None:
        """Make everything that was accepted durable soon; no batch comes after this."""
        ...

    def close(self) -> None:
        """Release the sink's resources; what is not durable by now is not confirmed."""
        ...
