"""Rows copied into a stream under load: what a new consumer then has, by our rules and by those of other products.

Four writers change the table; of five changes, four leave the large value alone. The same recording of one stream is
merged with chunks by each rule. Ours is the program itself. Before that, the model of the rules runs at length.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import own_server
from tests.fixtures.postgres import Database
from tests.workloads import changing_rows, stream_consumer
from tests.workloads.hooked_stream import run as run_hooked
from tests.workloads.prototype_chunks import (
    ANCHORED,
    BY_SNAPSHOT,
    DROPS,
    Prototype,
    Rule,
    evaluate,
)
from tests.workloads.snapshot_model import OURS, OURS_FROM_STANDBY, WRONG
from tests.workloads.snapshot_model import run as run_model
from tests.workloads.snapshot_tail import SnapshotTail
from tests.workloads.stream_consumer import Consumer, Difference, compare, source_rows

ROUNDS = 3
SITUATIONS = ("quiet", "delayed", "standby")
MODEL_RUNS = 10_000
_ROWS = 3_000
_KEYS = {"items": ("id",), "places": ("area", "name")}


def report(rounds: int = ROUNDS, model_runs: int = MODEL_RUNS) -> None:
    """Print for each rule what is missing, extra, lost or stale."""
    _model(model_runs)
    _servers(rounds)


def _model(model_runs: int) -> None:
    print(f"\nThe rules of snapshots in a model, {model_runs:,} random runs each: runs with a wrong result")
    for rules in (OURS, OURS_FROM_STANDBY, *WRONG):
        is_ours = rules in (OURS, OURS_FROM_STANDBY)
        runs = model_runs if is_ours else model_runs // 5
        wrong = sum(not run_model(seed, rules).is_right for seed in range(runs))
        print(f"  {rules.name:44} {wrong:6} of {runs:,}", flush=True)
        assert (wrong == 0) is is_ours
    for from_standby in (False, True):
        wrong = sum(not run_hooked(seed, from_standby=from_standby).is_right for seed in range(model_runs))
        name = f"the program's side of the stream{', from a standby' if from_standby else ''}"
        print(f"  {name:44} {wrong:6} of {model_runs:,}", flush=True)
        assert wrong == 0


def _servers(rounds: int) -> None:
    print(f"\nRows copied into a stream beside 4 writers, {rounds} rounds each: what a new consumer has")
    found: dict[str, list[Difference]] = {}
    with own_server(synchronous_commit="on") as server, tempfile.TemporaryDirectory(prefix="rdsrepl-rules-") as name:
        directory = Path(name)
        standby = server.clone(directory / "standby", slot="standby")
        try:
            standby.start()
            for number in range(rounds):
                for situation in SITUATIONS:
                    _round(server, standby, situation, directory / f"{situation}{number}", found)
        finally:
            standby.stop("immediate")
            standby.remove()
    for name, differences in found.items():
        total = [sum(len(getattr(one, kind)) for one in differences) for kind in ("missing", "extra", "lost", "stale")]
        print(f"  {name:72} missing {total[0]:4}  extra {total[1]:4}  lost {total[2]:4}  stale {total[3]:4}")
    for name, differences in found.items():
        if name.startswith("ours: "):
            assert not any(differences), name
    for rule, situation in (
        (ANCHORED, "delayed"),
        (DROPS, "quiet"),
        (DROPS, "delayed"),
        (BY_SNAPSHOT, "standby"),
    ):
        assert any(found[f"{rule.name}, {situation}"]), f"{rule.name}, {situation}: the load finds nothing"


def _round(
    server: PostgresServer,
    standby: PostgresServer,
    situation: str,
    directory: Path,
    found: dict[str, list[Difference]],
) -> None:
    """Copy the rows once in a situation, by all rules."""
    name = directory.name
    with closing(server.connect(dbname="postgres")) as conn:
        conn.execute(f"CREATE DATABASE {name}".encode())
    source = Database(server, name)
    changing_rows.create(source, _ROWS)
    source.run(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    replica = Database(standby, name)
    tail = SnapshotTail(source, name, directory, targets={"replica": replica.dsn})
    tail.start()
    rules: Sequence[Rule] = (BY_SNAPSHOT,) if situation == "standby" else (ANCHORED, DROPS)
    prototype = Prototype(source, standby if situation == "standby" else None, name)
    with ExitStack() as stack:
        hold_seconds = 0.1 if situation == "standby" else 0.0
        load = stack.enter_context(changing_rows.writers(source, _ROWS, pause_seconds=0.005, hold_seconds=hold_seconds))
        if situation == "delayed":
            stack.enter_context(changing_rows.delayed_commits(server, directory / "wal"))
        if situation == "standby":
            stack.enter_context(changing_rows.paused_replay(standby))
        thread = threading.Thread(target=prototype.read)
        tail.request("ours", 100, "replica" if situation == "standby" else None)
        thread.start()
        tail.wait_until_done("ours")
        thread.join()
    state = tail.snapshot("ours") or {}
    tail.wait_until_confirmed()
    tail.stop()
    events = stream_consumer.read(tail.out)
    consumer = Consumer().fold(events)
    differences = [compare(consumer.tables[table], source_rows(source, table, key)) for table, key in _KEYS.items()]
    assert not consumer.out_of_order and not consumer.repeats
    found.setdefault(f"ours: rdsrepl, {situation}", []).extend(differences)
    truth = source_rows(source, "items", ("id",))
    for rule in rules:
        difference = compare(evaluate(rule, prototype, events), truth)
        found.setdefault(f"{rule.name}, {situation}", []).append(difference)
    conflicts = sum(table["conflicts"] for table in state["tables"])
    chunks = sum(table["chunks"] for table in state["tables"])
    changes = len(events) - consumer.copied
    print(
        f"  {name:12} transactions {load.transactions:6,}  changes {changes:7,}  chunks {chunks:4}"
        f"  rows of chunks that changed meanwhile {conflicts:5,}  ours: {differences[0]}; {differences[1]}",
        flush=True,
    )
    source.run(f"SELECT pg_drop_replication_slot('{name}')")
