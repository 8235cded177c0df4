"""``slot prune`` never drops a slot in use, and never reports a drop that did not happen."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rdsrepl import apply, config, errors
from rdsrepl.cli import confirm
from rdsrepl.cli.slot import drop_audit
from rdsrepl.lsn import Lsn
from rdsrepl.plan import Plan
from rdsrepl.postgres import connection, server_identity, slot_plans, slots, wal
from rdsrepl.postgres.slots import Slot
from rdsrepl.retention import assessment, idleness, prune_rules, server_state
from rdsrepl.retention.server_state import ServerState, SlotSampler
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.state import audit, slot_history
from rdsrepl.state.slot_history import Observation, SlotObservation
from tests.fixtures.builders import NOW, slot
from tests.fixtures.builders import wal as a_wal
from tests.fixtures.lone_server import Place, attached, is_new, silent, start, wait_until_idle
from tests.fixtures.postgres import find_binaries
from tests.fixtures.program import Program


def read_part_of_a_large_transaction(place: Place, name: str) -> None:
    """Decode a part of a transaction that does not fit into memory, then disconnect without a confirmation."""
    place.run(
        "CREATE TABLE IF NOT EXISTS large (x text)",
        "DROP PUBLICATION IF EXISTS large",
        "CREATE PUBLICATION large FOR TABLE large",
        "INSERT INTO large SELECT repeat('x', 1000) FROM generate_series(1, 60000)",
    )
    info = psycopg.conninfo.conninfo_to_dict(place.dsn, replication="database")
    consumer = psycopg.pq.PGconn.connect(psycopg.conninfo.make_conninfo("", **info).encode())
    consumer.send_query(
        f"START_REPLICATION SLOT {name} LOGICAL 0/0 (proto_version '1', publication_names 'large')".encode()
    )
    until(place, f"SELECT spill_count > 0 FROM pg_stat_replication_slots WHERE slot_name = '{name}'")
    consumer.finish()
    until(place, f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{name}'")


def until(place: Place, condition: str) -> None:
    deadline = time.monotonic() + 120
    while place.run(condition) != [(True,)]:
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


# Before 17 only uninterrupted samples prove that a slot is idle.


def test_any_activity_ends_the_idle_time(place: Place) -> None:
    """None of these changes ``total_bytes`` or the positions between the first and the last sample."""
    place.run("DROP PUBLICATION IF EXISTS none", "CREATE PUBLICATION none")

    def attach(name: str, watch: Callable[[], None]) -> None:
        with attached(place, name):
            watch()

    def replace_by_a_copy(name: str, watch: Callable[[], None]) -> None:
        del watch
        place.run(
            "SELECT pg_drop_replication_slot('replaced')",
            "SELECT pg_create_logical_replication_slot('replaced', 'pgoutput')",
        )

    ways: dict[str, Callable[[str, Callable[[], None]], Any]] = {
        "left": attach,
        "large": lambda name, watch: read_part_of_a_large_transaction(place, name),
        "reset": lambda name, watch: place.run(f"SELECT pg_stat_reset_replication_slot('{name}')"),
        "peeked": lambda name, watch: place.run(
            "SELECT pg_logical_emit_message(true, 'x', 'y')",
            f"SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{name}', NULL, NULL, 'proto_version', '1', "
            "'publication_names', 'none')",
        ),
        "replaced": replace_by_a_copy,
    }
    place.make("idle", *ways)
    for name, way in ways.items():
        seen, at, began = SlotSampler(), 0.0, datetime.now(UTC)
        with connection.open(place.target) as conn:

            def sample(seen: SlotSampler = seen, began: datetime = began, conn: connection.Connection = conn) -> None:
                nonlocal at
                now = replace(wal.get(conn), at=began + timedelta(seconds=at))
                seen.add(at, now, slots.ls(conn))
                at += 0.25

            for _ in range(4):
                sample()
            assert seen.idle_slots[name].samples == 4 and seen.idle_slots[name].seconds == 0.75
            way(name, sample)
            for _ in range(2):
                sample()
            # The sampling starts again with the next sample.
            assert seen.idle_slots[name].seconds == 0.25 and seen.idle_slots[name].samples == 2, name
            assert seen.idle_slots["idle"].seconds >= 1.25 and seen.interruptions == [], name


def test_prune_detects_activity_between_its_samples(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_new(place):
        place.make("used")
        place.run("DROP PUBLICATION IF EXISTS none", "CREATE PUBLICATION none")
        time.sleep(0.3)
        with attached(place, "used"):
            pass
        until(place, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'used'")
        done = place.prune("--slot", "used", "--inactive-for", "60s", "--yes")
        assert done.code == 4 and "inactive_since of the server" in done.err and place.names() == {"used"}
        return
    place.make("used")
    real = server_state.read

    def late(*words: Any, sampler: SlotSampler | None = None, **more: Any) -> ServerState:
        if sampler is not None:  # the last sample
            read_part_of_a_large_transaction(place, "used")
        return real(*words, sampler=sampler, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_state, "read", late)
        done = place.prune("--slot", "used", *wait_until_idle(place), "--yes")
    assert done.code == 4 and place.names() == {"used"}, done.err
    assert "slot used cannot be pruned" in done.err and "0.2s required" in done.err.replace("200ms", "0.2s")


@pytest.mark.parametrize("arrives", [True, False])
def test_the_proof_covers_the_time_of_the_prompt(place: Place, monkeypatch: pytest.MonkeyPatch, arrives: bool) -> None:
    """A consumer that connects before the confirmation and reads nothing changes no column."""
    if is_new(place):
        return  # the statement compares inactive_since
    place.make("used")
    place.run("DROP PUBLICATION IF EXISTS none", "CREATE PUBLICATION none")
    seen = threading.Event()
    real = SlotSampler.add

    def add(watch: SlotSampler, at: float, now: wal.Wal, rows: Sequence[Slot]) -> None:
        real(watch, at, now, rows)
        if any(one.active for one in rows):
            seen.set()

    def answer(_: str) -> bool:
        if arrives:
            with attached(place, "used"):
                assert seen.wait(120), "no sample was taken during the prompt"
            until(place, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'used'")
        return True

    monkeypatch.setattr(SlotSampler, "add", add)
    monkeypatch.setattr(confirm, "is_interactive", lambda: True)
    monkeypatch.setattr(confirm, "prompt_yes", answer)
    monkeypatch.setattr(server_state, "MAX_GAP_SECONDS", 20.0)
    monkeypatch.setattr(server_state, "CLOCK_STEP_SECONDS", 20.0)
    done = place.prune("--slot", "used", *wait_until_idle(place))
    if arrives:
        assert done.code == 4 and "since the plan was shown, it was used" in done.err, done.err
        assert place.names() == {"used"}
        assert "intent" not in done.err and not audit.audit_file().exists()
    else:
        assert done.code == 0 and place.names() == set(), done.err


def test_samples_of_separate_runs_prove_nothing_before_17(place: Place) -> None:
    place.make("away")
    place.rdsrepl("slot", "list", dsn=place.dsn)
    with connection.open(place.target) as conn:
        key = server_identity.history_key(conn)
        started = wal.get(conn).started_at
    (now,) = slot_history.history(key)
    earlier = max(started, now.at - timedelta(hours=2))
    slot_history.history_file(key).unlink()
    slot_history.record(key, replace(now, at=earlier))
    time.sleep(0.05)
    found = place.prune("--slot", "away", "--inactive-for", "10ms", "--dry-run", "-o", "json")
    if is_new(place):
        assert found.code == 0 and found.json["candidates"]
        return
    (kept,) = found.json["kept"]
    assert found.code == 4 and kept["idle_proof"] == "looks" and kept["idle_seconds"] >= 0.01
    assert "--observe" in kept["obstacles"][0]["reason"]
    (holding,) = place.rdsrepl("slot", "lag", "away", "-o", "json", dsn=place.dsn).json["holdings"]
    assert holding["idleness"]["proof"] == "looks" and holding["inactive_seconds"] >= kept["idle_seconds"]


@pytest.mark.parametrize(
    ("gap", "server_seconds", "other", "why"),
    [
        (0.3, 0.3, {}, None),
        (3.0, 3.0, {}, "3.0s passed between two samples"),
        (0.3, 7200.3, {}, "a clock was set"),
        (0.3, -60.0, {}, "a clock was set"),
        (0.3, 0.3, {"started_at": NOW}, "was restarted"),
        (0.3, 0.3, {"timeline": 2}, "was restarted"),
        (0.3, 0.3, {"in_recovery": True, "timeline": None}, "was restarted"),
    ],
)
def test_a_gap_a_clock_change_and_another_server_interrupt_the_sampling(
    gap: float, server_seconds: float, other: dict[str, Any], why: str | None
) -> None:
    one, here = slot(inactive_since=None), a_wal(version=15)
    seen = SlotSampler()
    seen.add(10.0, here, [one])
    seen.add(10.0 + gap, replace(here, at=here.at + timedelta(seconds=server_seconds), **other), [one])
    assert seen.idle_slots["old"].seconds == (0.0 if why else pytest.approx(gap))
    assert len(seen.interruptions) == bool(why) and (why or "") in "".join(seen.interruptions)


# The statement checks the slot again.


def plan(place: Place, name: str, verb: str = "drop") -> Plan:
    with connection.open(place.target) as conn:
        one, here = slots.get(conn, name), wal.get(conn)
        saved = slots.saved_at(conn, [name]).get(name)
    return (
        slot_plans.drop(one, server=here, saved=saved)
        if verb == "drop"
        else slot_plans.advance(one, None, server=here, saved=saved)
    )


def test_the_statement_refuses_a_slot_that_was_read_reset_or_copied(place: Place) -> None:
    place.make("large", "reset", "copied")
    place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
    if not is_new(place):
        os.utime(place.server.data_dir / "pg_replslot/copied/state", (1_700_000_000, 1_700_000_000))  # not this second
    before = place.run("SELECT restart_lsn, confirmed_flush_lsn, catalog_xmin, two_phase FROM pg_replication_slots "
                       "WHERE slot_name = 'copied'")  # fmt: skip
    made = {name: (plan(place, name), plan(place, name, "advance")) for name in ("large", "reset", "copied")}
    read_part_of_a_large_transaction(place, "large")
    place.run(
        "SELECT pg_stat_reset_replication_slot('reset')",
        "SELECT pg_copy_logical_replication_slot('copied', 'kept_aside')",
        "SELECT pg_drop_replication_slot('copied')",
        "SELECT pg_copy_logical_replication_slot('kept_aside', 'copied')",
        "SELECT pg_drop_replication_slot('kept_aside')",
    )
    assert before == place.run("SELECT restart_lsn, confirmed_flush_lsn, catalog_xmin, two_phase "
                               "FROM pg_replication_slots WHERE slot_name = 'copied'")  # fmt: skip
    for name, both in made.items():
        for one in both:
            with pytest.raises(errors.StalePlan):
                apply.run(one, place.target, **silent())
            assert name in place.names(), one.title
    for name in made:
        apply.run(plan(place, name), place.target, **silent())
    assert place.names() == set()


# Another server at the same address.


def test_a_restored_copy_proves_nothing_about_the_server(
    rdsrepl: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored snapshot has the same identifier and timeline: the absence of a slot on it proves nothing."""
    monkeypatch.setattr(prune_rules, "MIN_IDLE_SECONDS", 0.0)
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(rdsrepl.home / "state" / "rdsrepl"))
    first = start(tmp_path / "first", 18)
    programs = find_binaries(18)
    assert programs is not None
    second = PostgresServer(tmp_path / "second", programs, settings=dict(first.settings))
    try:
        place = Place(first, rdsrepl)
        place.make("a", "b")
        first.stop()
        subprocess.run(["cp", "-a", str(first.data_dir), str(second.data_dir)], check=True)
        first.start()
        second.start()
        copy = Place(second, rdsrepl)
        assert copy.run("SELECT system_identifier FROM pg_control_system()") == place.run(
            "SELECT system_identifier FROM pg_control_system()"
        )
        copy.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")

        # Samples of one server are not samples of the other: 300 MB more WAL, minutes later, give no rate.
        origin = rdsrepl("slot", "lag", "-o", "json", dsn=place.dsn).json
        copy.run("SELECT count(pg_logical_emit_message(true, 'x', repeat('y', 1000000))) FROM generate_series(1, 20)")
        time.sleep(1.05)
        copy.make("c")
        found = rdsrepl("slot", "lag", "-o", "json", "--free-space", "1GB", dsn=copy.dsn).json
        assert found["server"] == origin["server"] and found["wal_rate"] is None
        assert all(one["breaks"] == [] and one["growth"] is None for one in found["holdings"])
        copy.run("SELECT pg_drop_replication_slot('c')")

        one, two = (psycopg.conninfo.conninfo_to_dict(server.dsn()) for server in (first, second))
        both = {key: f"{one[key]},{two[key]}" for key in ("host", "port")}
        dsn = psycopg.conninfo.make_conninfo(place.dsn, **both)
        real = audit.append

        def fatal(entry: Any) -> str:
            line = real(entry)
            if entry["phase"] == "intent" and first.is_running():
                first.kill()
            return line

        monkeypatch.setattr(audit, "append", fatal)
        for words in (
            ("prune", "--slot", "a", "--inactive-for", "200ms"),
            ("drop", "a"),
            ("advance", "b", "--to-current"),
        ):
            place.run("SELECT pg_logical_emit_message(true, 'x', 'y')") if first.is_running() else first.start()
            until(place, "SELECT clock_timestamp() - max(inactive_since) > interval '250ms' FROM pg_replication_slots")
            done = rdsrepl("slot", *words, "--yes", "-o", "json", dsn=dsn)
            assert done.code == 6 and "whether the step was done is unknown" in done.error["message"], done.err
            outcomes = [each["outcome"] for each in place.audit() if each["phase"] == "outcome"]
            assert outcomes[-1] == "unknown"
        first.start()
        assert place.names() == {"a", "b"}, "nothing was done, as it was killed before"
    finally:
        for each in (first, second):
            each.stop("immediate")
            each.remove()


# Clocks.


def test_different_clocks_prove_nothing_and_give_a_warning(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's clock was set two hours ahead: a slot that became inactive 2 s ago must not be dropped."""
    place.make("left")
    time.sleep(0.3)
    words = ("--slot", "left", *(("--inactive-for", "200ms") if is_new(place) else wait_until_idle(place)))
    real = wal._now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wal, "_now", lambda: real() - timedelta(hours=2, seconds=30))
        done = place.prune(*words[:4], "--yes")
        assert done.code == 4 and place.names() == {"left"}
        assert "the server's clock is 2h00m ahead of this machine's" in done.err
        for noun in ("lag", "check"):
            assert "2h00m ahead" in place.rdsrepl("slot", noun, dsn=place.dsn).err
        # Samples by this machine's monotonic clock still prove it.
        sampled = place.prune(*words[:4], "--observe", "200ms", "--dry-run", "-o", "json").json
        assert [one["idle_proof"] for one in sampled["candidates"]] == ["observed"]
    back = place.prune("--slot", "left", "--inactive-for", "60s", "--dry-run")
    assert back.code == 4 and "the clock of the server or of this machine was set by" in back.err


def test_idle_time_begins_after_a_clock_change() -> None:
    hours = timedelta(hours=1)
    mine = {"started_at": a_wal().started_at, "timeline": 1}
    still = SlotObservation("old", False, Lsn(9 << 30), Lsn(9 << 30), 1)

    def at(moment: datetime, skew: float) -> Observation:
        return Observation(moment, lsn=Lsn(9 << 30), next_xid=900, slots=(still,), clock_skew_seconds=skew, **mine)  # type: ignore[arg-type]

    # The clock was two hours behind when the slot became inactive, and was corrected 20 minutes ago.
    history = (at(NOW - 3 * hours, -7200.0), at(NOW - hours / 3, 0.0), at(NOW - hours / 6, 0.0))
    for one in (slot(inactive_since=NOW - 2 * hours), slot(inactive_since=None)):
        found = idleness.assess_idleness(one, history, a_wal())
        assert found.seconds == 1200, found
    assert "a clock was set" in idleness.assess_idleness(slot(inactive_since=NOW - 2 * hours), history, a_wal()).text
    (rated,) = assessment.assess(a_wal(lsn=Lsn(10 << 30)), [slot()], history[:1]).holdings
    assert rated.growth is None and rated.delivery is None


# The history.


def test_thinning_keeps_every_change_and_bounds_the_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(slot_history, "_MAX_BYTES", 100_000)
    names = [f"s{number}" for number in range(50)]

    def look(minute: int, used: set[str]) -> Observation:
        seen = tuple(
            SlotObservation(name, name in used, Lsn(4096), Lsn(4096), 1, "PID 7 (user cdc)" if name in used else None)
            for name in names
        )
        return Observation(NOW + timedelta(minutes=minute), NOW, 1, Lsn(8192 + minute), 900, seen)

    for minute in range(300):
        used = {"s7"} if minute == 11 else {"s9"} if minute == 40 else set()
        assert slot_history.record("one", look(minute, used))
    assert slot_history.history_file("one").stat().st_size <= 100_000
    kept = slot_history.history("one")
    assert [one.at for one in kept] == sorted(one.at for one in kept) and len(kept) < 300
    here = a_wal(at=NOW + timedelta(minutes=300), started_at=NOW)
    for name, minute in (("s7", 11), ("s9", 40)):
        assert f"{NOW + timedelta(minutes=minute):%H:%M:%S}" in (prune_rules.last_consumer(name, kept) or "")
        late = slot(name, inactive_since=NOW)
        assert idleness.assess_idleness(late, kept, here).seconds == (300 - minute) * 60
        # Before 17 the idle time begins at that sample, also if samples were thinned out.
        old = slot(name, inactive_since=None, restart_lsn=Lsn(4096), confirmed_flush_lsn=Lsn(4096))
        assert 0 < idleness.assess_idleness(old, kept, here).seconds < (300 - minute) * 60
    # All slots change in every sample: the last use of each slot is kept, and the size is still bounded.
    for minute in range(300, 600):
        slot_history.record("one", look(minute, set(names) if minute % 2 and minute < 400 else set()))
    assert slot_history.history_file("one").stat().st_size <= 100_000
    kept = slot_history.history("one")
    for name in names:
        assert "PID 7" in (prune_rules.last_consumer(name, kept) or ""), name
        assert (
            idleness.assess_idleness(
                slot(name, inactive_since=NOW), kept, a_wal(at=NOW + timedelta(minutes=600), started_at=NOW)
            ).seconds
            == (600 - 399) * 60
        )


def test_samples_before_a_restart_are_not_compared() -> None:
    one = slot()
    seen = assessment.to_observation(replace(a_wal(), at=NOW - timedelta(seconds=60), lsn=Lsn(9 << 30)), [one])
    assert assessment.assess(a_wal(), [one], [seen]).wal_rate is not None
    for other in ({"started_at": NOW - timedelta(days=1)}, {"timeline": None}, {"clock_skew_seconds": 60.0}):
        found = assessment.assess(a_wal(), [one], [replace(seen, **other)])  # type: ignore[arg-type]
        assert found.wal_rate is None and found.holdings[0].growth is None


def test_a_cluster_is_protected_whichever_option_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(
        "protect: [everywhere]\ntargets:\n  prod: {cluster: orders, protect: [orders_*]}\n  other: {cluster: stock}\n"
    )
    monkeypatch.setenv("RDSREPL_CONFIG", str(tmp_path / "config.yaml"))
    for cluster, patterns in (("orders", ("everywhere", "orders_*")), ("stock", ("everywhere",))):
        named = config.resolve(dsn=None, target=None, aws=config.Aws(cluster=cluster))
        assert drop_audit.protected_patterns(named) == patterns
    assert drop_audit.protected_patterns(config.resolve(dsn="dbname=x", target=None)) == ("everywhere",)


# An advance is written to the audit file, and a named slot is never skipped silently.


def test_an_advance_is_audited(place: Place) -> None:
    place.make("behind")
    place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
    done = place.rdsrepl("slot", "advance", "behind", "--to-current", "--yes", dsn=place.dsn)
    assert done.code == 0, done.err
    intent, outcome = place.audit()
    assert (intent["event"], intent["phase"], intent["command"]) == ("slot_advance", "intent", "slot advance")
    assert outcome["outcome"] == "advanced" and outcome["slot"]["confirmed_flush_lsn"] in outcome["summary"]
    again = place.rdsrepl("slot", "advance", "behind", "--to-current", "--yes", dsn=place.dsn)
    assert again.code == 0 and len(place.audit()) in (2, 4)
    trail = place.rdsrepl.home / "state/rdsrepl/audit.jsonl"
    trail.unlink()
    trail.mkdir()
    place.run("SELECT pg_logical_emit_message(true, 'x', 'y')")
    before = place.run("SELECT confirmed_flush_lsn FROM pg_replication_slots")
    refused = place.rdsrepl("slot", "advance", "behind", "--to-current", "--yes", dsn=place.dsn)
    assert refused.code == 4 and place.run("SELECT confirmed_flush_lsn FROM pg_replication_slots") == before


def test_a_named_slot_that_may_not_be_dropped_exits_with_4(place: Place) -> None:
    place.make("prod_a", "old")
    config = place.rdsrepl.home / "config.yaml"
    info = psycopg.conninfo.conninfo_to_dict(place.dsn)
    config.write_text(
        f"targets:\n  here:\n    host: {info['host']}\n    port: {info['port']}\n    user: {info['user']}\n"
        "    dbname: postgres\n    protect: ['prod_*']\n  bare:\n    dsn: '" + place.dsn + "'\n"
    )
    env = {"RDSREPL_CONFIG": str(config)}
    idle = wait_until_idle(place)

    def prune(*words: str) -> Any:
        return place.rdsrepl("-t", "here", "slot", "prune", *idle, *words, env=env)

    drop = place.rdsrepl("-t", "here", "slot", "drop", "prod_a", "--yes", env=env)
    assert drop.code == 4 and "slot prod_a is protected (prod_*" in drop.err
    both = prune("--slot", "prod_a", "--slot", "old", "--yes", "-o", "json")
    assert both.code == 4 and both.error["error"] == "refused" and "nothing was changed" in both.error["hint"]
    assert "protected by the config file: prod_*" in both.error["message"] and place.names() == {"prod_a", "old"}
    for mode in ("--dry-run", "--check"):
        review = prune("--slot", "prod_a", "--slot", "old", mode, "-o", "json")
        assert review.code == 4 and [one["slot_name"] for one in review.json["candidates"]] == ["old"]
    assert prune("--slot", "prod_*", "--yes").code == 0, "a pattern means those that may go"
    assert prune("--slot", "old", "--retaining-over", "1TB", "--yes").code == 0, "it does not meet what was asked for"
    assert prune("--slot", "old", "--lost", "--yes").code == 0 and place.names() == {"prod_a", "old"}
    gone = prune("--slot", "prod_a", "--unprotect", "prod_a", "--slot", "old", "--yes")
    assert gone.code == 0 and place.names() == set(), gone.err
    place.make("prod_b")
    bare = place.rdsrepl("-t", "bare", "slot", "drop", "prod_b", "--yes", env=env)
    assert bare.code == 0, "another target protects nothing"


def test_a_promotion_limits_the_idle_time_in_lag_and_check() -> None:
    one = slot(inactive_since=NOW - timedelta(days=10))
    here = a_wal(timeline=2)
    found = assessment.assess(here, [one], promoted_at=NOW - timedelta(minutes=5))
    (holding,) = found.holdings
    assert holding.inactive_seconds == 300 and "inactive" not in {reason.measure for reason in holding.reasons}
    (decision,) = prune_rules.evaluate(found, [one], (), prune_rules.Criteria())
    assert decision.idleness is holding.idleness and {each.rule for each in decision.blockers} == {"not_idle"}


def test_an_entry_of_the_audit_file_is_json(place: Place) -> None:
    place.make("old")
    assert place.rdsrepl("slot", "drop", "old", "--yes", dsn=place.dsn).code == 0
    lines = (place.rdsrepl.home / "state/rdsrepl/audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["summary"] for line in lines] == ["drop replication slot old"] * 2


def test_slot_state_identifies_the_slot() -> None:
    one: Slot = slot(spill_count=0, total_bytes=0)
    for other in (
        {"spill_count": 1},
        {"stream_bytes": 5},
        {"total_bytes": 1},
        {"stats_reset": NOW},
        {"two_phase": True},
        {"catalog_xmin": "701"},
        {"inactive_since": None},
    ):
        assert replace(one, **other).state != one.state  # type: ignore[arg-type]
    assert replace(one, retained_bytes=5, wal_status="unreserved").state == one.state, "time alone changes these"
