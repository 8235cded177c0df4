"""The guards of the statement that advances a follower, and passes at the same time."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

import pytest

from rdsrepl.errors import Error
from rdsrepl.failover.slot_pairs import PairState
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import standbys
from rdsrepl.slot_sync.passes import PairOptions, PairSynchronizer
from tests.fixtures.program import Program
from tests.fixtures.slot_pairs import Pair

CURRENT = "SELECT pg_catalog.pg_current_wal_lsn()"


def make(rdsrepl: Program, pair: Pair) -> None:
    made = rdsrepl("slot", "create", "a", "--pair", pair.standby.dsn(), "--yes", dsn=pair.primary.dsn())
    assert made.code == 0, made.err


def test_a_follower_is_advanced_only_as_far_as_its_server_is(rdsrepl: Program, pair: Pair) -> None:
    make(rdsrepl, pair)
    pair.wait_until_replayed()
    with closing(pair.standby.connect()) as conn:
        server = standbys.read(conn, "standby").wal
        end = standbys.advance(conn, "a", "pgoutput", Lsn(1 << 60), server)
        assert end is not None and end <= standbys.read(conn, "standby").wal.lsn


@pytest.mark.parametrize("difference", ["plugin", "start", "recovery", "position"])
def test_a_slot_or_a_server_that_changed_is_not_advanced(rdsrepl: Program, pair: Pair, difference: str) -> None:
    make(rdsrepl, pair)
    pair.wait_until_replayed()
    at = pair.confirmed(pair.standby, "a") or 0
    with closing(pair.standby.connect()) as conn:
        server, plugin, lsn = standbys.read(conn, "standby").wal, "pgoutput", Lsn(1 << 60)
        if difference == "plugin":
            plugin = "wal2json"
        elif difference == "start":
            server = replace(server, started_at=server.at)
        elif difference == "recovery":  # as after a promotion: the function for a primary fails on this standby
            server = replace(server, in_recovery=False)
        else:
            lsn = Lsn(at)
        if difference == "recovery":
            with pytest.raises(Exception, match="recovery is in progress"):
                standbys.advance(conn, "a", plugin, lsn, server)
        else:
            assert standbys.advance(conn, "a", plugin, lsn, server) is None
    assert pair.confirmed(pair.standby, "a") == at


def test_passes_at_the_same_time_do_no_harm(rdsrepl: Program, pair: Pair) -> None:
    make(rdsrepl, pair)
    failures: list[Error] = []
    positions: list[tuple[int, int]] = []
    states: set[PairState] = set()

    def work() -> None:
        options = PairOptions(("a",), leader_at="here")
        with PairSynchronizer(pair.primary.target(), pair.standby.target(), options) as pairs:
            for _ in range(15):
                try:
                    (done,) = pairs.run()
                except Error as exc:
                    failures.append(exc)
                    continue
                assert done.leader_lsn is not None and done.follower_lsn is not None
                positions.append((done.follower_lsn, done.leader_lsn))
                states.add(done.state)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(20):
        pair.run(
            pair.primary,
            f"INSERT INTO public.t VALUES ({number}, 'x')",
            f"SELECT pg_catalog.pg_replication_slot_advance('a', ({CURRENT}))",
        )
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(positions) == 45
    assert states == {PairState.ready}
    follower, leader = pair.confirmed(pair.standby, "a"), pair.confirmed(pair.primary, "a")
    assert follower is not None and leader is not None and follower <= leader
