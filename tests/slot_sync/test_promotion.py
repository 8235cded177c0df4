"""A slot pair under load, whose primary is killed and whose standby is promoted: nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rdsrepl.failover.slot_pairs import PairState
from tests.fixtures.program import Program
from tests.fixtures.slot_pairs import make_pair
from tests.workloads.promotions import PreparedPair, promote_once

if TYPE_CHECKING:
    from tests.fixtures.postgres import Servers


@pytest.mark.slow
def test_the_consumer_of_a_ready_pair_loses_nothing_and_a_naive_script_loses_rows(
    servers: Servers, rdsrepl: Program, tmp_path: Path
) -> None:
    """The benchmark runs 200 of them."""
    template = make_pair(tmp_path, servers.get(16).binaries)
    prepared = PreparedPair(tmp_path, template, rdsrepl)
    try:
        done = promote_once(prepared, rdsrepl, 1, pause_seconds=0.01)
        # A naive script loses nothing where the consumer has confirmed everything by chance.
        naive = any(promote_once(prepared, rdsrepl, n, naive=True, pause_seconds=0.01).lost for n in range(2, 9))
    finally:
        template.stop()
    assert done.state in (PairState.ready, PairState.behind)
    assert (done.lost, done.rows > 0) == (0, True)
    assert naive, "the harness finds what is lost"
