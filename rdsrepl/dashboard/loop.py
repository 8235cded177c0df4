"""Run the dashboard: a full screen on a terminal, or lines without one."""

from __future__ import annotations

import io
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from rdsrepl.dashboard import view
from rdsrepl.dashboard.poller import PollerThread, SlotPoller
from rdsrepl.dashboard.state import (
    Event,
    Key,
    PollFailed,
    PollStarted,
    Resized,
    Snapshot,
    SnapshotTaken,
    State,
    next_state,
)
from rdsrepl.dashboard.terminal import Terminal
from rdsrepl.errors import Error

#: The clock and the age of the snapshot are refreshed this often.
_TICK_SECONDS: Final = 1.0
_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS = 0.5, 15.0
#: A poll that takes longer is aborted, and the connection is opened again.
_MAX_POLL_SECONDS: Final = 15.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(slots=True)
class _Schedule:
    """When the next poll begins."""

    due_at: float = 0.0
    delay_seconds: float = _FIRST_DELAY_SECONDS

    def succeeded(self, started_at: float, interval_seconds: float) -> None:
        self.due_at, self.delay_seconds = started_at + interval_seconds, _FIRST_DELAY_SECONDS

    def failed(self) -> float:
        """Return the delay before the next attempt in seconds: exponential, with jitter."""
        pause = self.delay_seconds * random.uniform(0.5, 1.0)
        self.due_at = time.monotonic() + pause
        self.delay_seconds = min(self.delay_seconds * 2, _MAX_DELAY_SECONDS)
        return pause


def run_full_screen(poller: SlotPoller, state: State, *, colour: bool, limit: int | None = None) -> None:
    """Show the dashboard until the user quits, or until LIMIT snapshots are shown.

    Raises:
        Error: the first poll failed; later failures are shown and retried.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    thread = PollerThread(poller, wake=lambda: _wake(wake_write))
    schedule, polls, started_at = _Schedule(), 0, 0.0
    try:
        with _signals(wake_write), Terminal() as terminal:
            while not state.quitting:
                now = time.monotonic()
                if not thread.busy and not state.paused and now >= schedule.due_at:
                    started_at = now
                    state = next_state(state, PollStarted(datetime.now(UTC)))
                    thread.start()
                thread.abort_after(_MAX_POLL_SECONDS)
                size = terminal.size()
                if size != (state.columns, state.rows):
                    state = next_state(state, Resized(*size))
                terminal.draw(_render(state, size, colour=colour))
                wait = _TICK_SECONDS if thread.busy or state.paused else min(_TICK_SECONDS, schedule.due_at - now)
                ready, _, _ = select.select([terminal.fileno(), wake_read], [], [], max(0.0, wait))
                if terminal.fileno() in ready:
                    keys = terminal.keys()
                    if keys is None:
                        return
                    for key in keys:
                        if key == "redraw":
                            terminal.redraw()
                        before = state
                        state = next_state(state, Key(key))
                        if before.paused and not state.paused:
                            schedule.due_at = 0.0
                        elif before.interval_seconds != state.interval_seconds and state.failure is None:
                            schedule.due_at = started_at + state.interval_seconds
                for number in _read_signals(wake_read) if wake_read in ready else b"":
                    if number in _STOP_SIGNALS:
                        return
                    _handle_signal(number, terminal)
                if (result := thread.result()) is not None:
                    state = next_state(state, _event(result, state, schedule, started_at))
                    polls += isinstance(result, Snapshot)
                    if limit is not None and polls >= limit:
                        return
    finally:
        thread.stop()
        os.close(wake_read)
        os.close(wake_write)


def run_lines(
    poller: SlotPoller,
    state: State,
    *,
    emit: Callable[[Snapshot], None],
    note: Callable[[str], None],
    limit: int | None = None,
) -> None:
    """Pass every snapshot to EMIT until a signal arrives, or until LIMIT snapshots are passed.

    Args:
        poller: reads the snapshots.
        state: contains the interval.
        emit: prints a snapshot.
        note: prints when the connection is lost, and when it is restored.
        limit: the number of snapshots.

    Raises:
        Error: the first poll failed; later failures are printed and retried.
    """
    thread = PollerThread(poller)
    schedule, polls, lost = _Schedule(), 0, False
    try:
        while limit is None or polls < limit:
            time.sleep(max(0.0, schedule.due_at - time.monotonic()))
            started_at = time.monotonic()
            thread.start()
            while (result := thread.result(timeout=_TICK_SECONDS)) is None:
                thread.abort_after(_MAX_POLL_SECONDS)
            if isinstance(result, Snapshot):
                if lost:
                    note("reconnected")
                polls, lost = polls + 1, False
                schedule.succeeded(started_at, state.interval_seconds)
                emit(result)
            elif isinstance(result, Error) and polls:
                pause = schedule.failed()
                if not lost:
                    note(f"{result.message}; reconnecting in {pause:.1f}s, then repeatedly")
                lost = True
            else:
                raise result
    except KeyboardInterrupt:
        return
    finally:
        thread.stop()


def _event(result: Snapshot | BaseException, state: State, schedule: _Schedule, started_at: float) -> Event:
    now = datetime.now(UTC)
    if isinstance(result, Snapshot):
        schedule.succeeded(started_at, state.interval_seconds)
        return SnapshotTaken(result, now)
    if not isinstance(result, Error) or state.snapshot is None:
        raise result
    pause = schedule.failed()
    return PollFailed(result.message, now, now + timedelta(seconds=pause))


def _render(state: State, size: tuple[int, int], *, colour: bool) -> list[str]:
    from rich.console import Console

    width, height = size
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    with console.capture() as captured:
        console.print(view.view(state, width, height, datetime.now(UTC)))
    return captured.get().splitlines()


@contextmanager
def _signals(wake: int) -> Iterator[None]:
    """Receive signals through a pipe while the full screen is shown."""
    numbers = (*_STOP_SIGNALS, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    descriptor = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle_signal(number: int, terminal: Terminal) -> None:
    if number == signal.SIGTSTP:
        terminal.leave()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # Sent to this thread, so that it stops here with the whole process.
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
    if number in (signal.SIGTSTP, signal.SIGCONT):
        terminal.enter()
    elif number == signal.SIGWINCH:
        terminal.redraw()


def _wake(descriptor: int) -> None:
    try:
        os.write(descriptor, b"\0")
    except OSError:
        return  # the pipe is full, so the loop wakes in any case; or the loop has ended


def _read_signals(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""
