"""Say what a snapshot waits for: in its state, and to people, once and then at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# A shorter wait is not reported.
_FIRST_SECONDS: Final = 1.0
_REPEAT_SECONDS: Final = 60.0


class WaitReport:
    """Reports one wait at a time of a snapshot."""

    def __init__(
        self, note: Callable[[str], None], save: Callable[[str | None], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare; nothing is reported yet.

        Args:
            note: takes sentences for people, which begin with ``waits``.
            save: takes what the state says; None when nothing is waited for any more.
            now: a clock in seconds.
        """
        self._note, self._save, self._now = note, save, now
        self._since: float | None = None
        self._noted_at: float | None = None
        self._saved: str | None = None

    def waits(self, what: str, remedy: str | None = None) -> None:
        """Take what is waited for; call this again and again until ``ends``."""
        now = self._now()
        self._since = now if self._since is None else self._since
        if now - self._since < _FIRST_SECONDS:
            return
        text = what if remedy is None else f"{what}; {remedy}"
        if text != self._saved:
            self._saved = text
            self._save(text)
        if self._noted_at is None or now - self._noted_at >= _REPEAT_SECONDS:
            self._noted_at = now
            self._note(f"waits for {text}")

    def ends(self) -> None:
        """Report that it goes on, if a wait was reported."""
        self._since = None
        if self._saved is not None:
            self._saved = None
            self._save(None)
        if self._noted_at is not None:
            self._noted_at = None
            self._note("goes on")
