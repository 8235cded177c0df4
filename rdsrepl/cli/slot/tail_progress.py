"""The progress of ``slot tail`` on stderr: rows that are redrawn on a terminal, else a line every 30 seconds."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import typer

from rdsrepl.cli.console import log_event, note, warn
from rdsrepl.cli.context import LogFormat, global_options
from rdsrepl.cli.progress import Rows, folded, screen_size, updates_in_place
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rdsrepl.tail.options import TailOptions
    from rdsrepl.tail.progress import Progress
    from rdsrepl.tail.run import TailResult
    from rdsrepl.tail.wal_position import WalPositionPoller

_LINE_SECONDS: Final = 30.0
_REFRESH_SECONDS: Final = 1.0


class ProgressReporter:
    """Writes notes, warnings and the progress of a tail to stderr; threads beside the stream write notes, too."""

    def __init__(self, ctx: typer.Context, watch: WalPositionPoller) -> None:
        self._ctx = ctx
        on_terminal = global_options(ctx).log_format is LogFormat.text and updates_in_place()
        # On a terminal, the changes themselves may be written there, too; then there is no progress.
        self._rows = Rows() if on_terminal and not sys.stdout.isatty() else None
        self._interval_seconds = _REFRESH_SECONDS if on_terminal else _LINE_SECONDS
        self._quiet = global_options(ctx).quiet or (on_terminal and sys.stdout.isatty())
        self._last_at = time.monotonic()
        self._last: Progress | None = None
        self._watch = watch
        # One text at a time: the rows that one thread draws may not be erased by another one meanwhile.
        self._writing = threading.RLock()

    def note(self, text: str) -> None:
        """Write a note on its own line."""
        with self._writing:
            self.clear()
            note(self._ctx, text)

    def warn(self, text: str) -> None:
        """Write a warning on its own line."""
        with self._writing:
            self.clear()
            warn(self._ctx, text)

    def progress(self, progress: Progress) -> None:
        """Write the progress if the interval is over."""
        now = time.monotonic()
        if self._quiet or now - self._last_at < self._interval_seconds:
            return
        self._watch.start()
        before, seconds = self._last, now - self._last_at
        self._last, self._last_at = progress, now
        changes = progress.changes - (before.changes if before else 0)
        received = progress.received_bytes - (before.received_bytes if before else 0)
        lag = self._watch.lag_bytes(progress.confirmed_lsn or progress.received_lsn)
        text = (
            f"{counted(progress.changes, 'change')}, {changes / seconds:.0f}/s, {received / seconds / 1e6:.1f} MB/s, "
            f"lag {'?' if lag is None else format_size(lag)}, at {progress.received_lsn}, "
            f"confirmed {progress.confirmed_lsn}"
        )
        if self._rows is not None:
            with self._writing:
                self._rows.draw(folded(text, screen_size()[0] - 3))
        else:
            log_event(
                self._ctx,
                text,
                event="progress",
                changes_per_second=round(changes / seconds, 1),
                received_bytes_per_second=round(received / seconds),
                lag_bytes=lag,
                **_fields(progress),
            )

    def clear(self) -> None:
        """Remove the progress from the terminal."""
        if self._rows is not None:
            with self._writing:
                self._rows.erase()


def report(ctx: typer.Context, options: TailOptions, result: TailResult) -> None:
    """Print the summary of a run that ended."""
    summary = result.summary
    progress = summary.progress
    rate = progress.changes / progress.seconds if progress.seconds else 0.0
    again = f", {counted(progress.reconnects, 'reconnect')}" if progress.reconnects else ""
    confirmed = f"confirmed {progress.confirmed_lsn}" if options.confirm else "nothing confirmed (--no-confirm)"
    log_event(
        ctx,
        f"slot {options.slot_name}: {counted(progress.changes, 'change')} "
        f"in {format_duration(progress.seconds)} ({rate:.0f}/s), "
        f"{format_size(progress.received_bytes)} received, {confirmed}{again}; {summary.reason}",
        event="stopped",
        slot=options.slot_name,
        reason=summary.reason,
        **_fields(progress),
    )


def _fields(progress: Progress) -> dict[str, object]:
    """Return a progress as a log's fields."""
    return {
        "changes": progress.changes,
        "received_bytes": progress.received_bytes,
        "received_lsn": str(progress.received_lsn),
        "confirmed_lsn": str(progress.confirmed_lsn),
        "oldest_undelivered_seconds": round(progress.oldest_undelivered_seconds, 3),
        "seconds": round(progress.seconds, 3),
        "reconnects": progress.reconnects,
    }
