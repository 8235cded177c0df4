"""``slot sync`` and ``slot pairs`` on a primary and its standby."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures.program import Program, Result
from tests.fixtures.slot_pairs import Pair
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Servers


@pytest.fixture
def sync(rdsrepl: Program, pair: Pair) -> Any:
    """Run a verb with the primary as the command's server and the standby as the other one."""

    def run(verb: str, *words: str, **options: Any) -> Result:
        given = {"dsn": pair.primary.dsn(), **options}
        return rdsrepl("-o", "json", "slot", verb, *words, "--with", pair.standby.dsn(), **given)

    return run


def create(rdsrepl: Program, pair: Pair, *names: str) -> None:
    """Create pairs: the followers first, so that they are ready at once."""
    for name in names:
        done = rdsrepl("slot", "create", name, "--pair", pair.standby.dsn(), "--yes", dsn=pair.primary.dsn())
        assert done.code == 0, done.err


@contextmanager
def consumer(rdsrepl: Program, pair: Pair, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Read a slot of the primary until the end of the block."""
    words = ("-q", "slot", "tail", name, "--publication", "p")
    process = rdsrepl.start(*words, dsn=pair.primary.dsn(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    query = f"SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = '{name}'"
    wait_until(lambda: pair.run(pair.primary, query)[0][0], "the consumer reads the slot")
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def insert(pair: Pair, rows: int) -> None:
    pair.run(pair.primary, f"INSERT INTO public.t SELECT g, 'x' FROM generate_series(1, {rows}) g")


def states(result: Result) -> dict[str, str]:
    return {row["slot_name"]: row["state"] for row in result.json}


def test_a_pass_moves_the_follower_to_the_consumers_position(rdsrepl: Program, pair: Pair, sync: Any) -> None:
    create(rdsrepl, pair, "a")
    looked = sync("pairs")
    assert (looked.code, states(looked)) == (0, {"a": "ready"})
    start = pair.confirmed(pair.standby, "a")
    with consumer(rdsrepl, pair, "a"):
        insert(pair, 100)

        def is_in_step() -> bool:
            done = sync("sync", "--all")
            assert done.code == 0, done.err
            return bool(done.json[0]["follower_lsn"] == done.json[0]["leader_lsn"])

        wait_until(is_in_step, "the follower is in step")
    assert start is not None and (pair.confirmed(pair.standby, "a") or 0) > start
    follower, leader = pair.confirmed(pair.standby, "a"), pair.confirmed(pair.primary, "a")
    assert follower is not None and leader is not None and follower <= leader


def test_without_a_consumer_nothing_moves_unless_the_leader_is_named(rdsrepl: Program, pair: Pair, sync: Any) -> None:
    create(rdsrepl, pair, "a")
    insert(pair, 10)
    pair.run(pair.primary, "SELECT pg_catalog.pg_replication_slot_advance('a', pg_catalog.pg_current_wal_lsn())")
    pair.wait_until_replayed()
    start = pair.confirmed(pair.standby, "a")
    looked = sync("sync", "a")
    assert "no consumer reads the leader" in looked.json[0]["reason"]
    assert pair.confirmed(pair.standby, "a") == start
    assert sync("sync", "a", "--dry-run").json[0]["follower_lsn"] == looked.json[0]["follower_lsn"]
    assert sync("sync", "a", "--leader", "here", "--check").code == 7
    assert pair.confirmed(pair.standby, "a") == start
    assert sync("sync", "a", "--leader", "here").code == 0
    assert pair.confirmed(pair.standby, "a") == pair.confirmed(pair.primary, "a")


def test_missing_followers_are_a_plan_and_a_nudge_makes_them_ready(rdsrepl: Program, pair: Pair, sync: Any) -> None:
    assert rdsrepl("slot", "create", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    found = sync("sync", "--all")
    assert (found.code, states(found)) == (9, {"a": "missing"})
    refused = sync("sync", "--all", "--create")
    assert (refused.code, refused.error["error"]) == (4, "not_confirmed")
    assert pair.confirmed(pair.standby, "a") is None
    plan = sync("sync", "--all", "--create", "--dry-run").json
    assert "pg_log_standby_snapshot" in plan["steps"][0]["meanwhile"]
    assert pair.confirmed(pair.standby, "a") is None
    done = sync("sync", "--all", "--create", "--yes")
    assert (done.code, states(done)) == (8, {"a": "pending"})
    with consumer(rdsrepl, pair, "a"):
        ready = sync("sync", "a", "--nudge")
    assert (ready.code, states(ready)) == (0, {"a": "ready"})


def test_a_transaction_that_blocks_the_creation_is_named_and_nothing_is_left(
    rdsrepl: Program, pair: Pair, sync: Any
) -> None:
    assert rdsrepl("slot", "create", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    with closing(pair.primary.connect()) as blocker:
        blocker.execute("BEGIN")
        blocker.execute("INSERT INTO public.t VALUES (1, 'open')")
        failed = sync("sync", "a", "--create", "--yes", "--timeout", "1500ms")
        pid = blocker.info.backend_pid
    assert failed.code == 1, failed.err
    assert f"PID {pid} on the primary" in failed.error["message"]
    assert pair.confirmed(pair.standby, "a") is None
    in_creation = "SELECT FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical'"
    assert not pair.run(pair.standby, in_creation)


def test_a_follower_that_is_in_use_stays(rdsrepl: Program, pair: Pair, sync: Any) -> None:
    create(rdsrepl, pair, "a")
    process = rdsrepl.start(
        "-q", "slot", "tail", "a", "--publication", "p", dsn=pair.standby.dsn(), stdout=subprocess.DEVNULL
    )
    in_use = "SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = 'a'"
    wait_until(lambda: pair.run(pair.standby, in_use)[0][0], "the follower is in use")
    found = sync("sync", "a")
    process.terminate()
    process.wait(timeout=30)
    assert (found.code, states(found)) == (9, {"a": "broken"})
    assert f"PID {pair.run(pair.standby, in_use) and ''}" in found.json[0]["reason"]
    assert "--leader" in found.json[0]["reason"]


def test_a_standby_that_does_not_replay_is_named(rdsrepl: Program, pair: Pair, sync: Any) -> None:
    create(rdsrepl, pair, "a")
    pair.wait_until_replayed()
    pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_pause()")
    try:
        insert(pair, 100)
        pair.run(pair.primary, "SELECT pg_catalog.pg_replication_slot_advance('a', pg_catalog.pg_current_wal_lsn())")
        found = sync("sync", "a", "--leader", "here", "--max-repeat", "1kB")
        assert (found.code, states(found)) == (8, {"a": "behind"})
        assert "has replayed only" in found.json[0]["reason"]
    finally:
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_resume()")


@pytest.mark.parametrize("verb", ["sync", "pairs"])
def test_servers_that_are_no_pair_are_refused(rdsrepl: Program, pair: Pair, servers: Servers, verb: str) -> None:
    words = ("-o", "json", "slot", verb, *(("--all",) if verb == "sync" else ()), "--with")
    same = rdsrepl(*words, pair.primary.dsn(), dsn=pair.primary.dsn())
    assert (same.code, "are the same server" in same.error["message"]) == (4, True)
    other = rdsrepl(*words, servers.get(18).dsn(), dsn=pair.primary.dsn())
    assert (other.code, "different database systems" in other.error["message"]) == (4, True)


def test_a_role_without_the_right_is_named(rdsrepl: Program, pair: Pair, sync: Any) -> None:
    create(rdsrepl, pair, "a")
    denied = sync("sync", "a", dsn=pair.primary.dsn(user="reader"), env={"PGPASSWORD": "reader"})
    assert (denied.code, denied.error["error"]) == (5, "denied")
    assert f"127.0.0.1:{pair.primary.port}: role reader may not use replication slots" in denied.error["message"]


def test_a_plain_replication_role_can_make_and_keep_a_pair(rdsrepl: Program, pair: Pair) -> None:
    """It may not call pg_log_standby_snapshot(); the pair is made without it."""
    primary = pair.primary.dsn(user="plain")
    words = ("slot", "create", "a", "--pair", pair.standby.dsn(user="plain"), "--yes")
    process = rdsrepl.start(*words, dsn=primary, env={"PGPASSWORD": "plain"}, stdout=subprocess.DEVNULL)

    def is_made() -> bool:
        pair.run(pair.primary, "CHECKPOINT")  # it logs a snapshot; the background writer does so every 15 seconds
        return process.poll() is not None

    wait_until(is_made, "the pair is made")
    assert process.returncode == 0
    looked = rdsrepl(
        "slot", "pairs", "--check", "--with", pair.standby.dsn(user="plain"), dsn=primary, env={"PGPASSWORD": "plain"}
    )
    assert looked.code == 0, looked.out


def test_a_missing_slot_is_named(sync: Any) -> None:
    missing = sync("sync", "nope")
    assert (missing.code, "no replication slot nope on" in missing.error["message"]) == (3, True)


def test_the_nagios_line(rdsrepl: Program, pair: Pair) -> None:
    create(rdsrepl, pair, "a")
    words = ("slot", "pairs", "--nagios", "--with")
    good = rdsrepl(*words, pair.standby.dsn(), dsn=pair.primary.dsn())
    assert good.code == 0
    assert re.fullmatch(r"PAIRS OK - 1 pair: 1 ready \| 'a_repeat'=\d+B\n", good.out)
    bad = rdsrepl(*words, pair.primary.dsn(), dsn=pair.primary.dsn())
    assert (bad.code, bad.out.startswith("PAIRS CRITICAL - ")) == (2, True)


def test_a_pair_is_made_follower_first(rdsrepl: Program, pair: Pair) -> None:
    plan = rdsrepl(
        "-o", "json", "slot", "create", "a", "--pair", pair.standby.dsn(), "--dry-run", dsn=pair.primary.dsn()
    ).json
    assert [bool(step.get("server")) for step in plan["steps"]] == [True, False]
    create(rdsrepl, pair, "a")
    follower, leader = pair.confirmed(pair.standby, "a"), pair.confirmed(pair.primary, "a")
    assert follower is not None and leader is not None and follower <= leader
    again = rdsrepl("slot", "create", "a", "--pair", pair.standby.dsn(), "--yes", dsn=pair.primary.dsn())
    assert again.code == 0 and "already exist" in again.out


def test_a_slot_that_another_consumer_reads_is_not_taken_for_a_follower(
    rdsrepl: Program, pair: Pair, sync: Any
) -> None:
    create(rdsrepl, pair, "a")
    insert(pair, 10)
    pair.wait_until_replayed()
    read = rdsrepl("slot", "tail", "a", "--publication", "p", "--until-now", dsn=pair.standby.dsn())
    assert len(read.lines) == 10
    counted = "SELECT total_bytes FROM pg_catalog.pg_stat_replication_slots WHERE slot_name = 'a'"
    wait_until(lambda: pair.run(pair.standby, counted)[0][0], "the statistics say so")
    at = pair.confirmed(pair.standby, "a")
    with consumer(rdsrepl, pair, "a"):
        found = sync("sync", "a")
        assert (found.code, states(found)) == (9, {"a": "broken"})
        assert "another consumer" in found.json[0]["reason"]
    assert pair.confirmed(pair.standby, "a") == at
    assert rdsrepl("slot", "drop", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    words = ("-o", "json", "slot", "create", "a", "--pair", pair.standby.dsn(), "--yes")
    refused = rdsrepl(*words, dsn=pair.primary.dsn())
    assert (refused.code, refused.error["error"]) == (4, "already_exists")
    assert pair.confirmed(pair.primary, "a") is None


def test_a_pair_with_only_its_leader_is_not_completed_by_create(rdsrepl: Program, pair: Pair) -> None:
    """The follower would start after the leader: that is for slot sync, which says so."""
    assert rdsrepl("slot", "create", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    refused = rdsrepl("slot", "create", "a", "--pair", pair.standby.dsn(), "--yes", dsn=pair.primary.dsn())
    assert refused.code == 4 and "slot sync a" in refused.err
    assert pair.confirmed(pair.standby, "a") is None


def test_followers_are_retired_by_a_plan(rdsrepl: Program, pair: Pair, sync: Any) -> None:
    create(rdsrepl, pair, "a", "b")
    refused = sync("sync", "--all", "--retire")
    assert (refused.code, refused.error["error"]) == (4, "not_confirmed")
    done = sync("sync", "--all", "--retire", "--yes")
    assert (done.code, done.json["counts"]["drop"]) == (0, 2)
    assert pair.confirmed(pair.standby, "a") is None and pair.confirmed(pair.standby, "b") is None
    assert pair.confirmed(pair.primary, "a") is not None
    assert sync("sync", "--all", "--retire").json["status"] == "unchanged"


def test_the_service_waits_out_a_standby_that_vanishes(rdsrepl: Program, pair: Pair) -> None:
    create(rdsrepl, pair, "a")
    words = ("slot", "sync", "--all", "--with", pair.standby.dsn(), "--every", "200ms", "--log-format", "json")
    process = rdsrepl.start(*words, "--metrics-port", "0", dsn=pair.primary.dsn(), stderr=subprocess.PIPE)
    assert process.stderr is not None
    seen = ""

    def reads(text: str) -> bool:
        nonlocal seen
        assert process.stderr is not None
        while text not in seen:
            line = process.stderr.readline().decode()
            assert line, seen
            seen += line
        return True

    assert reads("pair a: ready")
    pair.standby.stop("immediate")
    assert reads("trying again every")
    pair.standby.start()
    with consumer(rdsrepl, pair, "a"):
        insert(pair, 10)
        wait_until(
            lambda: (pair.confirmed(pair.standby, "a") or 0) == pair.confirmed(pair.primary, "a"),
            "the follower is in step again",
        )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    process.stderr.close()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("a", "--all"),
        ("--all", "--retire", "--create"),
        ("--all", "--metrics-port", "0"),
        ("--all", "--every", "1ms"),
        ("--all", "--leader", "nowhere"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(rdsrepl: Program, words: tuple[str, ...]) -> None:
    assert rdsrepl("slot", "sync", *words, "--with", "host=/nowhere", dsn="host=/nowhere").code == 2
