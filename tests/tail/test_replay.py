"""A random workload, streamed through kills, and replayed into a second database: no table differs.

The long run is ``python -m tests.benchmarks replay_oracle``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.workloads.replay import Oracle

if TYPE_CHECKING:
    from tests.fixtures.postgres import Servers
    from tests.fixtures.program import Program


@pytest.mark.parametrize(("version", "encoding"), [(15, "LATIN1"), (16, "EUC_JP"), (18, "SQL_ASCII")])
def test_no_table_differs(version: int, encoding: str, servers: Servers, rdsrepl: Program, tmp_path: Path) -> None:
    """The role has settings that must not affect the lines; repeats are dropped by the documented identity."""
    with Oracle(rdsrepl, tmp_path, servers.get(version), encoding, seed=20261121 + version) as oracle:
        for _ in range(2):
            oracle.workload.run(22)
            oracle.stream_and_kill()
        oracle.finish()
        results = oracle.replay()
    assert oracle.workload.ddl > 3
    for replayed in results:
        assert replayed.differing == [], replayed
        assert replayed.lines - replayed.repeats > 40, replayed
