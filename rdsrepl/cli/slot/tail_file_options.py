"""The options of ``slot tail`` for a file by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.options import duration_option, size_option
from rdsrepl.errors import BadValue
from rdsrepl.tail.options import Compression

if TYPE_CHECKING:
    from rdsrepl.tail.options import FileOptions

_FILE: Final = "To a file"


@dataclass(frozen=True, slots=True)
class FileFlags:
    """When a file is closed and a new one begun; None is never."""

    rotate_size: Annotated[
        int | None,
        size_option("--rotate-size", help="Close the file after this size, at the end of a transaction.", panel=_FILE),
    ] = None
    rotate_every: Annotated[
        float | None,
        duration_option(
            "--rotate-every", help="Close the file this long after its first change was written.", panel=_FILE
        ),
    ] = None
    rotate_compress: Annotated[
        Compression | None,
        typer.Option("--rotate-compress", help="Compress closed files.", rich_help_panel=_FILE, show_default=False),
    ] = None

    def options(self, sink: str) -> FileOptions | None:
        """Return how changes go to ``file:PATH``; None for another sink.

        Raises:
            BadValue: an option does not fit the sink, or its value is not valid.
        """
        from rdsrepl.tail.options import FileOptions, file_path

        path = file_path(sink)
        values = {
            "--rotate-size": self.rotate_size,
            "--rotate-every": self.rotate_every,
            "--rotate-compress": self.rotate_compress,
        }
        given = {name: value for name, value in values.items() if value is not None}
        if path is None:
            if given:
                raise BadValue(f"{next(iter(given))} requires --to file:PATH", hint="name a file: --to file:PATH")
            return None
        for name in ("--rotate-size", "--rotate-every"):
            if given.get(name) == 0:
                raise BadValue(f"{name} 0 is not positive", hint=f"omit {name}: the file is then never closed")
        if list(given) == ["--rotate-compress"]:
            raise BadValue(
                "--rotate-compress requires --rotate-size or --rotate-every: only closed files are compressed",
                hint="add one of them, such as --rotate-size 1GiB",
            )
        return FileOptions(path, self.rotate_size, self.rotate_every, self.rotate_compress)
