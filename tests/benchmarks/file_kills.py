"""What a file has after many kill -9 under a steady load: every change once, in order, in each format.

The tail appends to a file, or rotates and compresses it, and is killed at random moments: also while it starts, closes
a file or compresses one. Then the files are read in the order of their names.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from backports import zstd

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT, connect, own_server
from tests.benchmarks.repeats import load

KILLS = 100
# The id of an inserted row: in JSON, in wal2json's, in pgoutput's own message.
_IDS = {
    "json": re.compile(rb'"after":{"id":(\d+)'),
    "debezium": re.compile(rb'"after":{"id":(\d+)'),
    "wal2json": re.compile(rb'"name":"id","type":"bigint","value":(\d+)'),
    "raw wal2json": re.compile(rb'"name":"id","type":"bigint","value":(\d+)'),
    "raw pgoutput": re.compile(rb"I....N\x00\x02t...[\x01-\x14](\d+)t", re.DOTALL),
}


@dataclass(frozen=True)
class Case:
    """A way to write a file."""

    format: str
    plugin: str
    rotate: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.format} ({self.plugin})" + (" " + " ".join(self.rotate) if self.rotate else "")

    @property
    def ids(self) -> re.Pattern[bytes]:
        """Finds the ids of its changes."""
        return _IDS.get(self.format) or _IDS[f"raw {self.plugin}"]


_ROTATE = ("--rotate-size", "300kB", "--rotate-compress", "gzip")
_PLAIN = (
    Case("wal2json", "pgoutput"),
    Case("wal2json", "wal2json"),
    Case("raw", "wal2json"),
    Case("raw", "pgoutput"),
)
CASES = (
    *_PLAIN,
    Case("json", "pgoutput", _ROTATE),
    Case("debezium", "pgoutput", _ROTATE),
    Case("wal2json", "pgoutput", (*_ROTATE[:2], "--rotate-every", "1s", "--rotate-compress", "zstd")),
    Case("raw", "wal2json", _ROTATE),
    Case("raw", "pgoutput", _ROTATE[:2]),
)


def contents(directory: Path) -> bytes:
    """Return what the files of a directory have, in the order of their names; the current one is the last."""
    closed = sorted(path for path in directory.iterdir() if path.name.startswith("out.") and path.suffix != ".rdsrepl")
    return b"".join(map(_content, [*closed, directory / "out"]))


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return zstd.decompress(data) if path.suffix == ".zst" else data


def run_case(server: PostgresServer, case: Case, directory: Path, kills: int, rng: random.Random) -> None:
    """Kill a tail again and again, and check what it wrote."""
    directory.mkdir()
    slot = f"kills_{directory.name}"
    out = directory / "out"
    out.touch()
    with closing(connect(server)) as conn:
        conn.execute("TRUNCATE t RESTART IDENTITY")
        conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, case.plugin))
    command = [SCRIPT, "-q", "--dsn", server.dsn(user="bench", dbname="bench"), "slot", "tail", slot]
    command += ["--format", case.format, *case.rotate]
    if case.rotate:
        command += ["--to", f"file:{out}"]

    def start(*words: str) -> subprocess.Popen[bytes]:
        with out.open("ab") as file:
            return subprocess.Popen([*command, *words], stdout=file)

    with load(server):
        for _ in range(kills):
            tail = start()
            time.sleep(rng.uniform(0.4, 1.6))
            assert tail.poll() is None, f"{case.name}: ended by itself"
            tail.kill()
            tail.wait()
    assert start("--until-now").wait() == 0
    ids = [int(found) for found in case.ids.findall(contents(directory))]
    with closing(connect(server)) as conn:
        wanted = [int(row[0]) for row in conn.execute("SELECT id FROM t ORDER BY id").fetchall()]
        conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    missing, repeated = len(set(wanted) - set(ids)), len(ids) - len(set(ids))
    files = len(list(directory.iterdir()))
    print(f"  {case.name:72} kills {kills:4}  changes {len(wanted):9,}  files {files:4}  ", end="")
    print(f"missing {missing}  repeated {repeated}  in order {ids == sorted(ids)}", flush=True)
    assert ids == wanted, f"{case.name}: {directory}"


def report(kills: int = KILLS) -> None:
    """Kill tails in each way to write a file, and print what is missing and repeated."""
    print(f"\nA file after kill -9 under load, {kills} kills each")
    rng = random.Random(kills)
    with own_server() as server, tempfile.TemporaryDirectory(prefix="rdsrepl-files-") as directory:
        with closing(connect(server)) as conn:
            conn.execute("CREATE TABLE t (id bigserial PRIMARY KEY, v text)")
            conn.execute("CREATE PUBLICATION p FOR TABLE t")
        for number, case in enumerate(CASES):
            run_case(server, case, Path(directory) / str(number), kills, rng)


if __name__ == "__main__":
    report(int(sys.argv[1]) if len(sys.argv) > 1 else KILLS)
