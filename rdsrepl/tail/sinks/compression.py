"""Compresses closed files in a thread of its own, so that the stream never waits for it.

A compressed file gets its name when it is complete and on disk; then the other one is removed. A crash in between is
repaired by the next run, which finds both.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final, Literal, cast

from rdsrepl.errors import BadValue
from rdsrepl.state import zstandard
from rdsrepl.state.json_lines import sync_directory
from rdsrepl.tail.options import Compression
from rdsrepl.tail.sinks.rotation import closed_files
from rdsrepl.text.escapes import shown

#: what is added to the name of a compressed file.
SUFFIXES: Final[Mapping[Compression, str]] = {Compression.gzip: ".gz", Compression.zstd: ".zst"}
_BLOCK_BYTES: Final = 1 << 20


class _Stopped(Exception):
    """The run ends before a file is compressed."""


class Compressor:
    """Compresses the closed files of an output file, one at a time."""

    def __init__(self, path: Path, method: Compression, warn: Callable[[str], None]) -> None:
        """Start with the files that are there.

        Args:
            path: the output file.
            method: how to compress.
            warn: takes a warning about a file that could not be compressed; it is tried again with the next one.

        Raises:
            BadValue: a package that the method needs is not installed.
        """
        self._path = path
        self._method = method
        self._warn = warn
        self._warned: set[str] = set()
        self._open = opener(method)
        self._condition = threading.Condition()
        self._requested, self._ending, self._stopping = True, False, False
        self._thread = threading.Thread(target=self._work, name="compression", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Compress what was closed."""
        with self._condition:
            self._requested = True
            self._condition.notify()

    def finish(self, seconds: float) -> bool:
        """Wait until every file is compressed, at most this long; return whether that is so."""
        self._end(stop=False)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End the thread; the next run begins again with the file in progress."""
        self._end(stop=True)
        self._thread.join()

    def _end(self, *, stop: bool) -> None:
        with self._condition:
            self._ending, self._stopping = True, stop
            self._condition.notify()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._requested and not self._ending:
                    self._condition.wait()
                if self._stopping or not self._requested:
                    return
                self._requested = False
            try:
                for closed in closed_files(self._path):
                    self._compress(closed)
            except OSError as exc:
                self._report(self._path.parent, exc)
            except _Stopped:
                return

    def _compress(self, closed: Path) -> None:
        target = closed.with_name(closed.name + SUFFIXES[self._method])
        temporary = closed.with_name(compressing_name(closed, self._method))
        try:
            if not os.path.lexists(target):
                self._write(closed, temporary)
                temporary.rename(target)
                sync_directory(target.parent)
            elif not self._has(target, closed):
                raise FileExistsError(errno.EEXIST, f"{target.name} exists with other content")
            closed.unlink()
        except _Stopped:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        except Exception as exc:  # noqa: BLE001 - a damaged file has an error of its library: zlib.error, ZstdError
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._report(closed, exc)

    def _write(self, closed: Path, temporary: Path) -> None:
        with closed.open("rb") as source, temporary.open("wb") as file:
            with self._open(file, "wb") as compressed:
                while block := source.read(_BLOCK_BYTES):
                    self._go_on()
                    compressed.write(block)
            file.flush()
            shutil.copystat(closed, temporary)
            os.fsync(file.fileno())

    def _has(self, target: Path, closed: Path) -> bool:
        """Return whether a compressed file has the content of the other one."""
        with closed.open("rb") as source, target.open("rb") as file, self._open(file, "rb") as compressed:
            while block := source.read(_BLOCK_BYTES):
                self._go_on()
                if compressed.read(len(block)) != block:
                    return False
            return not compressed.read(1)

    def _go_on(self) -> None:
        if self._stopping:
            raise _Stopped

    def _report(self, path: Path, exc: Exception) -> None:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        text = f"could not compress {shown(str(path))}: {reason}; it stays as it is until the next file is closed"
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)


def compressing_name(closed: Path, method: Compression = Compression.zstd) -> str:
    """Return the name of the compressed file while it is written.

    It begins with a dot, so that patterns for the files do not match it.
    """
    return f".{closed.name}{SUFFIXES[method]}.tmp"


def opener(method: Compression) -> Callable[[IO[bytes], Literal["rb", "wb"]], IO[bytes]]:
    """Return what opens a compressed file in a file that is open.

    Raises:
        BadValue: a package that the method needs is not installed.
    """
    if method is Compression.gzip:
        return lambda file, mode: cast(IO[bytes], gzip.GzipFile(filename="", mode=mode, fileobj=file, mtime=0))
    try:
        zstd = zstandard.module()
    except ImportError as exc:
        raise BadValue(
            "--rotate-compress zstd requires the package backports.zstd", hint="install it: pip install 'rdsrepl[zstd]'"
        ) from exc
    return lambda file, mode: cast(IO[bytes], zstd.ZstdFile(file, mode))
