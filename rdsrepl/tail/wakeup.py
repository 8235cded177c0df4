"""A pipe that ends a ``select`` in another thread, for example when a sink has written something."""

from __future__ import annotations

import contextlib
import os
import threading


class WakeupPipe:
    """A pipe that is readable after ``wake`` until ``drain``; ``select`` takes the object itself.

    ``wake`` may be called from any thread, the other methods only from the thread that waits.
    """

    def __init__(self) -> None:
        self._read, self.write_fd = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self.write_fd, False)
        # Another file may have the number of a descriptor that was closed.
        self._closing = threading.Lock()

    def fileno(self) -> int:
        """Return the file descriptor to select on."""
        return self._read

    def wake(self) -> None:
        """Make the pipe readable; does nothing when it is full or closed."""
        with self._closing, contextlib.suppress(OSError):
            os.write(self.write_fd, b"!")

    def drain(self) -> None:
        """Make the pipe unreadable again."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Close both ends; ``wake`` and ``close`` may still be called."""
        with self._closing:
            if self._read >= 0:
                os.close(self._read)
                os.close(self.write_fd)
                self._read = self.write_fd = -1
