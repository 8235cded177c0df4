"""The replay oracle at full size: every server version, encoding and many seeds, with kills; no table may differ.

``python -m tests.benchmarks replay_oracle [SEEDS]``
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.fixtures.postgres import VERSIONS, Servers
from tests.fixtures.program import Program
from tests.workloads.replay import Oracle

SEEDS = 10
KILLS = 5
TRANSACTIONS = 60
ENCODINGS = ("UTF8", "LATIN1", "EUC_JP", "SQL_ASCII")


def report(seeds: int = SEEDS) -> None:
    """Run all seeds, and print how many changes were replayed.

    Raises:
        AssertionError: a table differs.
    """
    began = time.monotonic()
    lines = repeats = as_text = statements = 0
    with tempfile.TemporaryDirectory(prefix="rdsrepl-replay-") as directory:
        home = Path(directory)
        program, servers = Program(home), Servers(home)
        try:
            for seed in range(seeds):
                for version in VERSIONS:
                    encoding = ENCODINGS[(seed + version) % len(ENCODINGS)]
                    place = home / f"{seed}_{version}"
                    place.mkdir()
                    with Oracle(program, place, servers.get(version), encoding, seed) as oracle:
                        for _ in range(KILLS):
                            oracle.workload.run(TRANSACTIONS)
                            oracle.stream_and_kill()
                        oracle.finish()
                        for replayed in oracle.replay():
                            assert not replayed.differing, (seed, version, encoding, replayed)
                            lines += replayed.lines
                            repeats += replayed.repeats
                            as_text += replayed.as_text
                        statements += oracle.workload.ddl
        finally:
            servers.stop()
    print(f"\nReplay of {lines - repeats:,} changes with {statements:,} DDL statements in the stream, {seeds} seeds")
    print(f"  on {', '.join(map(str, VERSIONS))} in {', '.join(ENCODINGS)}, {KILLS} kills each: 0 tables differ")
    print(f"  {repeats:,} repeats dropped, {as_text:,} lines with text; {time.monotonic() - began:.0f} s")
