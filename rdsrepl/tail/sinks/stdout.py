"""Standard output as a sink: a terminal, a pipe, a regular file.

Durable means: in a regular file, synced to disk; in a pipe or a terminal, accepted by the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rdsrepl.errors import Error
from rdsrepl.tail.wakeup import WakeupPipe
from rdsrepl.text.escapes import json_line

_FSYNC_SECONDS: Final = 1.0
_WRITE_BYTES: Final = 1 << 20
_VECTORS: Final = 256
_TORN_BYTES: Final = 64 << 20


class SinkFailed(Error):
    """The output could not be written; nothing after what it accepted is confirmed."""


class StdoutSink:
    """Writes batches to a file descriptor from its own thread, so that a blocked reader blocks nothing else."""

    def __init__(self, fd: int = 1, *, is_json: bool = False) -> None:
        """Prepare a sink.

        Args:
            fd: where to write.
            is_json: the lines are JSON; on a terminal, control characters in them are escaped.
        """
        self._fd = fd
        self._escapes = is_json and os.isatty(fd)
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._queue: deque[tuple[int, bytes]] = deque()
        self._changed = threading.Condition()
        self._pending = 0
        self._written = 0
        self._durable = 0
        self._finishing = False
        self._failure: Error | None = None
        self.wakeup = WakeupPipe()
        self._thread = threading.Thread(target=self._work, name="stdout", daemon=True)
        self._thread.start()

    def put(self, number: int, lines: Sequence[str] | Sequence[bytes]) -> None:
        """Accept batch NUMBER."""
        if self._failure is not None:
            raise self._failure
        data = _joined(lines)
        if self._escapes:
            data = json_line(data.decode("utf-8", "surrogateescape")).encode()
        with self._changed:
            self._queue.append((number, data))
            self._pending += len(data)
            self._changed.notify()

    @property
    def pending_bytes(self) -> int:
        """The size of what was accepted and is not yet written."""
        return self._pending

    @property
    def durable(self) -> int:
        """The number up to which every batch is durable."""
        if self._failure is not None:
            raise self._failure
        return self._durable

    def finish(self) -> None:
        """Make everything that was accepted durable soon."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread after it has written everything, without waiting for a blocked reader."""
        self.finish()
        self._thread.join(timeout=0.5)
        if not self._thread.is_alive():
            self.wakeup.close()

    def _work(self) -> None:
        synced_at = time.monotonic()
        try:
            while True:
                with self._changed:
                    while not self._queue and not self._finishing and self._written == self._durable:
                        self._changed.wait()
                    if not self._queue and not self._finishing:
                        # Written and not yet synced: wait for more until the next fsync is due.
                        self._changed.wait(max(0.0, synced_at + _FSYNC_SECONDS - time.monotonic()))
                    chunk: list[tuple[int, bytes]] = []
                    size = 0
                    while self._queue and size < _WRITE_BYTES:
                        chunk.append(self._queue.popleft())
                        size += len(chunk[-1][1])
                    idle = not chunk and not self._queue
                    finishing = self._finishing
                if chunk:
                    self._write([memoryview(data) for _, data in chunk if data])
                    self._written = chunk[-1][0]
                    with self._changed:
                        self._pending -= size
                if not self._regular:
                    self._durable = self._written
                elif self._written != self._durable and (
                    time.monotonic() - synced_at >= _FSYNC_SECONDS or (idle and finishing)
                ):
                    self._sync()
                    synced_at = time.monotonic()
                self.wakeup.wake()
                if finishing and idle:
                    return
        except OSError as exc:
            self._failure = _failure(exc)
            self.wakeup.wake()

    def _write(self, views: list[memoryview]) -> None:
        position = 0
        while position < len(views):
            try:
                written = os.writev(self._fd, views[position : position + _VECTORS])
            except BlockingIOError:  # another process set O_NONBLOCK
                select.select([], [self._fd], [])
                continue
            while position < len(views) and written >= len(views[position]):
                written -= len(views[position])
                position += 1
            if written:
                views[position] = views[position][written:]

    def _sync(self) -> None:
        number = self._written
        os.fsync(self._fd)
        self._durable = number


def require_writable(fd: int = 1) -> None:
    """Make sure that a descriptor can be written.

    Raises:
        SinkFailed: it is closed, or open for reading only.
    """
    if fd == 1 and sys.__stdout__ is None:  # another file may have the number by now
        raise SinkFailed("standard output is closed", hint="redirect it: > FILE, or to a pipe")
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as exc:
        raise _failure(exc) from exc
    if mode == os.O_RDONLY:
        raise SinkFailed("standard output is open for reading only", hint="redirect it with >, or to a pipe")


def remove_torn_line(fd: int = 1) -> int:
    """Remove an incomplete JSON line from the end of a regular file that is appended to; return its size in bytes.

    A process that was killed may have written a part of a line. The first line of the next run would be appended to it
    and no parser could read it; the server sends that change again. Only the start of a JSON object is removed: any
    other text is ended with a newline instead (and 0 returned).
    """
    status = os.fstat(fd)
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_size == 0
        or os.lseek(fd, 0, os.SEEK_CUR) not in (0, status.st_size)
    ):
        return 0
    try:
        with Path(f"/dev/fd/{fd}").open("rb") as file:
            start = max(0, status.st_size - _TORN_BYTES)
            file.seek(start)
            tail = file.read()
    except OSError:
        os.write(fd, b"\n")  # not readable: an empty line is better than two lines joined
        return 0
    if tail.endswith(b"\n"):
        return 0
    newline = tail.rfind(b"\n")
    torn = tail[newline + 1 :]
    if torn.startswith(b"{") and (newline >= 0 or start == 0):
        os.ftruncate(fd, status.st_size - len(torn))
        os.lseek(fd, 0, os.SEEK_END)
        return len(torn)
    os.write(fd, b"\n")
    return 0


def _joined(lines: Sequence[str] | Sequence[bytes]) -> bytes:
    if lines and isinstance(lines[0], bytes):
        if len(lines) == 1:
            return lines[0]
        return b"".join(lines)  # type: ignore[arg-type]
    return "".join(lines).encode("utf-8", "surrogateescape")  # type: ignore[arg-type]


def _failure(exc: OSError) -> SinkFailed:
    if exc.errno == errno.EPIPE:
        return SinkFailed(
            "broken pipe: the reader closed standard output",
            hint="nothing is confirmed that it did not read; run the command again to resume",
        )
    return SinkFailed(
        f"could not write to standard output: {exc.strerror}",
        hint="free disk space or repair the disk, then start again: no change is confirmed that was not written",
    )
