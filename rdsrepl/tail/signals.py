"""SIGINT, SIGTERM and SIGHUP while the tail runs: the first asks for a clean stop, a second exits at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rdsrepl.tail.wakeup import WakeupPipe

if TYPE_CHECKING:
    from types import FrameType


class StopSignals:
    """The signals that stop the tail.

    Attributes:
        received: the number of the first signal; None before one came.
        wakeup: is readable after a signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.wakeup = WakeupPipe()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._take) for number in numbers}
        wakeup_fd = signal.set_wakeup_fd(self.wakeup.write_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            self.wakeup.close()

    @property
    def reason(self) -> str:
        """Why the tail stops, after a signal."""
        if self.received == signal.SIGINT:
            return "stopped by Ctrl-C"
        return f"stopped by {signal.Signals(self.received or 0).name}"

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
