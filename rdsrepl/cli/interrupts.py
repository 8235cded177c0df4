"""Ctrl-C and SIGTERM: the first ends the command in order, with a report; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Final

from rdsrepl.errors import ExitCode

# `timeout` and service managers can send SIGTERM to the process and to its group: that is one request.
_SAME_REQUEST_SECONDS: Final = 1.0


class _Interrupts:
    def __init__(self) -> None:
        self._received_at: float | None = None

    def take(self, number: int, _: FrameType | None) -> None:
        """Raise ``KeyboardInterrupt`` with the number of the signal; exit at the second one."""
        now = time.monotonic()
        if self._received_at is None:
            self._received_at = now
            raise KeyboardInterrupt(number)
        if number == signal.SIGTERM and now - self._received_at < _SAME_REQUEST_SECONDS:
            return
        if os.isatty(2):
            os.write(2, b"\r\ninterrupted again: ended at once; the running step may or may not be done\r\n")
        os._exit(ExitCode.INTERRUPTED)


def install(*, ctrl_c: bool) -> None:
    """Handle SIGTERM, unless it is ignored, and Ctrl-C if wanted."""
    take = _Interrupts().take
    if ctrl_c:
        signal.signal(signal.SIGINT, take)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, take)
