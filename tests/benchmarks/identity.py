"""A long replay with kills that drops repeats by the identity of each line, on each version."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

from tests.fixtures.postgres import VERSIONS, Database, Servers
from tests.fixtures.program import Program
from tests.workloads import identity_kills

KILLS = 60


def report(kills: int = KILLS) -> None:
    """Run the replay, and print how many lines were dropped."""
    for version in VERSIONS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="rdsrepl-identity-") as directory:
            home = Path(directory)
            program, servers = Program(home), Servers(home)
            try:
                database = Database(servers.get(version), "postgres")
                database.run(*identity_kills.SETUP)
                start = partial(program.start, dsn=database.dsn)
                kept, dropped, messages = identity_kills.stream_with_kills(database.dsn, home, start, kills)
            finally:
                servers.stop()
        print(f"\nPostgreSQL {version}, two tails killed {kills} times each: {kept:,} lines, every identity unique")
        print(f"  {dropped:,} repeats dropped, {messages:,} messages, 0 differences; {time.monotonic() - began:.0f} s")
