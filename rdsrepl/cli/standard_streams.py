"""Standard streams that fail in one known way: stdout with an error that names it, stderr without an error."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO

from rdsrepl.errors import OutputClosed, SinkFailed
from rdsrepl.render import displays_unicode
from rdsrepl.text.escapes import escape_unencodable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDOUT: Final = 1
_STDERR: Final = 2


def install() -> None:
    """Replace stdout and stderr of this process.

    A write to stdout that fails raises ``OutputClosed`` or ``SinkFailed``. A write to stderr never fails: the message
    is lost, but a plan that is being applied must not stop because its progress is not read. Characters that the
    encoding of a stream does not have are escaped.
    """
    sys.stdout = _replaced(sys.stdout, _Stdout(_STDOUT, "w", closefd=False))
    sys.stderr = _replaced(sys.stderr, _Stderr(_STDERR, "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        # Python writes UTF-8 in the C locale; a terminal there has only ASCII, for the boxes of --help as well.
        if isinstance(stream, io.TextIOWrapper) and stream.isatty() and not displays_unicode(stream):
            stream.reconfigure(encoding="ascii")
    escape_unencodable(sys.stdout, sys.stderr)


def discard(descriptor: int = _STDOUT) -> None:
    """Send what is still written to a stream that failed to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


class _Stdout(io.FileIO):
    """Raises errors of this program instead of ``OSError``."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return _write_all(super().write, data, self.fileno())
        except OSError as exc:
            if exc.errno == errno.EPIPE:
                raise OutputClosed("the reader closed standard output") from exc
            raise SinkFailed(
                f"could not write to standard output: {exc.strerror}", hint="free disk space, or write to another file"
            ) from exc


class _Stderr(io.FileIO):
    """Loses what cannot be written."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return _write_all(super().write, data, self.fileno())
        except OSError:
            discard(_STDERR)
            return memoryview(data).nbytes


def _write_all(write: Callable[[memoryview], int | None], data: ReadableBuffer, descriptor: int) -> int:
    view = memoryview(data).cast("B")
    written = 0
    while written < len(view):
        count = write(view[written:])
        if count is None:  # another process set O_NONBLOCK
            select.select([], [descriptor], [])
        written += count or 0
    return written


def _replaced(stream: TextIO, raw: io.FileIO) -> TextIO:
    # A stream that was closed is open to /dev/null by now, and has no original.
    if stream not in (sys.__stdout__, sys.__stderr__) or not isinstance(stream, io.TextIOWrapper):
        return stream
    # Without a BufferedWriter: it would write again what Ctrl-C interrupted.
    return io.TextIOWrapper(
        raw,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
