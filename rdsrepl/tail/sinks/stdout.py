"""Standard output as a sink: a terminal, a pipe, a regular file.

Durable means: in a regular file, synced to disk; in a pipe, read by the reader; elsewhere, accepted by the kernel. What
a reader leaves in a pipe is lost when it closes the pipe, so that only what it has read may be confirmed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rdsrepl.errors import Error, OutputClosed, SinkFailed
from rdsrepl.tail.model import joined
from rdsrepl.tail.wakeup import WakeupPipe
from rdsrepl.text.escapes import json_line

# A file is synced this often. Where fsync is slow, it takes at most a fifth of the time: one call is for all that was
# written since the last one.
_FSYNC_SECONDS: Final = 0.2
_FSYNC_SHARE: Final = 5
# How often a pipe is checked: for what its reader has read, and whether there is still a reader.
_UNREAD_SECONDS: Final = 0.02
_READER_SECONDS: Final = 0.5
_WRITE_BYTES: Final = 1 << 20
_VECTORS: Final = 256
_TORN_BYTES: Final = 64 << 20


class Entry(NamedTuple):
    """What waits to be written.

    Attributes:
        number: the batch.
        data: its bytes.
        lsn: everything committed before this position ends with the batch; None if that is not known.
    """

    number: int
    data: bytes
    lsn: int | None = None


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
        mode = os.fstat(fd).st_mode
        self._regular = stat.S_ISREG(mode)
        self._pipe = stat.S_ISFIFO(mode)
        self._has_reader = self._pipe or stat.S_ISSOCK(mode)
        self._queue: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._pending = 0
        self._written = 0
        self._durable = 0
        self._sync_pause = _FSYNC_SECONDS
        # What is in the pipe: the batches, and the total size of what was written up to the end of each.
        self._unread: deque[tuple[int, int]] = deque()
        self._written_bytes = 0
        self._finishing = self._closing = False
        self._failure: Exception | None = None
        self.wakeup = WakeupPipe()
        # Held while the thread writes or syncs.
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="stdout", daemon=True)
        self._thread.start()

    def put(self, number: int, lines: Sequence[str] | Sequence[bytes]) -> None:
        """Accept batch NUMBER."""
        data = joined(lines)
        if self._escapes:
            data = json_line(data.decode("utf-8", "surrogateescape")).encode()
        self._accept(Entry(number, data))

    def _accept(self, entry: Entry) -> None:
        if self._failure is not None:
            raise self._failure
        with self._changed:
            self._queue.append(entry)
            self._pending += len(entry.data)
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
        if self._closing:
            return
        self._closing = True
        self.finish()
        self._thread.join(timeout=0.5)
        if not self._thread.is_alive():
            self.wakeup.close()

    def _work(self) -> None:
        synced_at = time.monotonic()
        try:
            while True:
                chunk, idle, finishing = self._next_chunk(synced_at)
                with self._busy:
                    synced_at = self._handle(chunk, synced_at, ends=idle and finishing)
                self.wakeup.wake()
                if finishing and idle and (self._written == self._durable or self._closing):
                    return
        except Exception as exc:  # noqa: BLE001 - a thread that ends without an error would block the tail
            self._failure = self._failed(exc) if isinstance(exc, OSError) else exc
            self.wakeup.wake()

    def _handle(self, chunk: Sequence[Entry], synced_at: float, *, ends: bool) -> float:
        """Write batches, and find out what is durable; return when a file was synced last."""
        if chunk:
            self._write_chunk(chunk)
            self._written = chunk[-1].number
            with self._changed:
                self._pending -= sum(len(entry.data) for entry in chunk)
        if self._pipe:
            self._take_read(chunk)
        elif not self._regular:
            self._durable = self._written
        elif self._written != self._durable and (time.monotonic() - synced_at >= self._sync_pause or ends):
            self._sync()
            synced_at = time.monotonic()
        if self._has_reader and not (ends and self._written == self._durable):
            self._require_reader()
        return synced_at

    def _next_chunk(self, synced_at: float) -> tuple[list[Entry], bool, bool]:
        """Wait for batches, or until a file must be synced or a pipe checked.

        Returns:
            The batches, empty if there are none yet; whether no others are left; whether none will follow.
        """
        with self._changed:
            while not self._queue and not (self._finishing and (self._closing or not self._unread)):
                pause = self._pause(synced_at)
                if not self._changed.wait(pause):
                    break
            chunk: list[Entry] = []
            size = 0
            while self._queue and size < _WRITE_BYTES:
                chunk.append(self._queue.popleft())
                size += len(chunk[-1].data)
                if self._ends_chunk(chunk[-1], size):
                    break
            return chunk, not self._queue, self._finishing

    def _pause(self, synced_at: float) -> float | None:
        """Return how long to wait for the next batch; None for any time."""
        if self._has_reader:
            return _UNREAD_SECONDS if self._unread else _READER_SECONDS
        if self._written == self._durable:
            return None
        return max(0.0, synced_at + self._sync_pause - time.monotonic())

    def _ends_chunk(self, entry: Entry, size: int) -> bool:  # noqa: ARG002
        """Whether nothing is written together with what precedes it; SIZE bytes were taken up to its end."""
        return False

    def _take_read(self, chunk: Sequence[Entry]) -> None:
        """Move ``durable`` to what the reader of the pipe has read, after CHUNK was written."""
        for entry in chunk:
            self._written_bytes += len(entry.data)
            self._unread.append((entry.number, self._written_bytes))
        if self._unread:
            read_bytes = self._written_bytes - _unread_bytes(self._fd)
            while self._unread and self._unread[0][1] <= read_bytes:
                self._durable = self._unread.popleft()[0]

    def _require_reader(self) -> None:
        """Raise BrokenPipeError if the reader has closed the pipe; a write is not needed to see it."""
        poll = select.poll()
        poll.register(self._fd, 0)
        if poll.poll(0):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _write_chunk(self, chunk: Sequence[Entry]) -> None:
        self._write([memoryview(entry.data) for entry in chunk if entry.data])

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
        number, started = self._written, time.monotonic()
        os.fsync(self._fd)
        self._synced()
        self._sync_pause = max(_FSYNC_SECONDS, _FSYNC_SHARE * (time.monotonic() - started))
        self._durable = number

    def _synced(self) -> None:
        """Do what must follow a sync before anything is confirmed."""

    def _failed(self, exc: OSError) -> Error:
        return _failure(exc)


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


def _unread_bytes(fd: int) -> int:
    """Return how much the reader of a pipe has not read yet; 0 where the system does not tell."""
    try:
        size: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    except OSError:
        return 0
    return size


def _failure(exc: OSError) -> Error:
    if exc.errno == errno.EPIPE:
        return OutputClosed("the reader closed standard output")
    return SinkFailed(
        f"could not write to standard output: {exc.strerror}",
        hint="free disk space or repair the disk, then start again: no change is confirmed that was not written",
    )
