"""A tail under load through failovers: every committed row is delivered, in order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.sandbox import Cloud

CLUSTER = "loaded"
FAILOVERS = 3
ROWS = 3
WORKERS = 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded(running_cloud: Cloud) -> Iterator[Cloud]:
    """A cluster for one test, with logical replication enabled."""
    cloud = running_cloud
    cloud.faults()
    words = ("--class", "db.r6gd.large", "--storage", "100", "--engine-version", "15", "--dbname", "app")
    for step in (
        ("param-group", "create", CLUSTER, "--family", "postgres15", "--kind", "cluster", "--yes"),
        ("cluster", "create", CLUSTER, *words, "--param-group", CLUSTER, "--yes"),
    ):
        done = cloud(*step)
        assert done.code == 0, done.err
    yield cloud
    done = cloud("cluster", "delete", CLUSTER, "--skip-final-snapshot", "--confirm", CLUSTER)
    assert done.code == 0, done.err
    assert cloud("param-group", "delete", CLUSTER, "--yes").code == 0


class Load:
    """Clients that commit small transactions as fast as they can, and remember what the server acknowledged."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self.acknowledged: list[tuple[float, int]] = []
        self._connect = connect
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(WORKERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _work(self, worker: int) -> None:
        number = 0
        while not self._done.is_set():
            with suppress(psycopg.Error), closing(self._connect()) as conn:
                while not self._done.is_set():
                    number += 1
                    key = worker * 10_000_000 + number
                    with conn.transaction():
                        conn.execute(
                            "INSERT INTO load SELECT %s, part FROM generate_series(1, %s) AS part", (key, ROWS)
                        )
                    self.acknowledged.append((time.monotonic(), key))
            self._done.wait(0.05)


def test_three_failovers_under_load_lose_nothing(
    loaded: Cloud, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    cloud = loaded
    password = json.loads(
        cloud.client("secretsmanager").get_secret_value(
            SecretId=cloud("cluster", "show", CLUSTER, "-o", "json").json["cluster"]["master_secret"]
        )["SecretString"]
    )["password"]
    endpoint = cloud("cluster", "show", CLUSTER, "-o", "json").json["cluster"]

    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=endpoint["endpoint"], port=endpoint["port"], user="dbadmin", password=password, dbname="app",
            autocommit=True, connect_timeout=3, keepalives_idle=2,
        )  # fmt: skip

    with closing(connect()) as conn:
        conn.execute("CREATE TABLE load (id bigint, part int, PRIMARY KEY (id, part))")
        conn.execute("CREATE PUBLICATION load FOR TABLE load")
    assert cloud("slot", "create", "load", "--cluster", CLUSTER, "--yes").code == 0
    out = tmp_path / "out.jsonl"
    words = ("slot", "tail", "load", "--publication", "load", "--cluster", CLUSTER)
    with out.open("wb") as file, (tmp_path / "err").open("wb") as err:
        tail = cloud.program.start(*words, stdout=file, stderr=err)
        try:
            with Load(connect) as load:
                # The tail waits through a failover only after it has streamed the slot.
                _wait(lambda: out.stat().st_size > 0, lambda: (tmp_path / "err").read_text())

                def more() -> None:
                    goal = len(load.acknowledged) + 500
                    _wait(lambda: len(load.acknowledged) >= goal, lambda: "no load")

                more()
                for _ in range(FAILOVERS):
                    done = cloud("cluster", "failover", CLUSTER, "--yes", "-o", "json")
                    assert done.code == 0, done.err
                    proof = done.json["steps"][-1]["returned"]
                    assert set(proof) == {"load"}, "the slot is proven to be there"
                    more()
            with closing(connect()) as conn:
                expected = {
                    row[0] for row in conn.execute("SELECT id FROM load GROUP BY id HAVING count(*) = %s", (ROWS,))
                }
            keys = {key for _, key in load.acknowledged}
            assert keys <= expected, "the server kept what it acknowledged"
            _wait(lambda: expected <= _ids(out), lambda: f"{len(expected - _ids(out))} rows have not come")
        finally:
            tail.terminate()
            assert tail.wait(120) == 0, (tmp_path / "err").read_text()
    changes = [json.loads(line) for line in out.read_text().splitlines()]
    _check_order(changes)
    times = sorted({datetime.fromisoformat(change["commit_time"]).timestamp() for change in changes})
    # The last change before each failover, and the first after.
    gaps = sorted((after - before for before, after in pairwise(times)), reverse=True)[:FAILOVERS]
    rate = len(keys) / (times[-1] - times[0] - sum(gaps))
    repeats = len(changes) - len({(change["after"]["id"], change["after"]["part"]) for change in changes})
    pauses = ", ".join(f"{gap:.2f}" for gap in gaps)
    said = f"{rate:.0f} transactions/s, gaps {pauses} s, {len(changes)} changes, {repeats} of them repeats"
    record_property("failover", said)
    print(said)


def test_a_password_rotated_under_the_tail_is_transient(loaded: Cloud, tmp_path: Path) -> None:
    """The server has the new password before the secret, and the connection is lost in between."""
    cloud = loaded
    manager = cloud.client("secretsmanager")
    manager.create_secret(Name="cdc-login", SecretString=json.dumps({"username": "cdc", "password": "before-it"}))

    def sql(*statements: str) -> None:
        words = [word for statement in statements for word in ("-c", statement)]
        done = cloud("psql", "--cluster", CLUSTER, "--", "-q", "-v", "ON_ERROR_STOP=1", *words)
        assert done.code == 0, done.err

    sql(
        "CREATE ROLE cdc LOGIN PASSWORD 'before-it'",
        "GRANT rds_replication TO cdc",
        "CREATE TABLE rotated (id int PRIMARY KEY)",
        "CREATE PUBLICATION rotated FOR TABLE rotated",
    )
    assert cloud("slot", "create", "rotated", "--cluster", CLUSTER, "--yes").code == 0
    config = tmp_path / "config.yaml"
    config.write_text(f"targets:\n  cdc:\n    cluster: {CLUSTER}\n    secret: cdc-login\n    dbname: app\n")
    out, err = tmp_path / "out.jsonl", tmp_path / "err"
    with out.open("wb") as file, err.open("wb") as talk:
        words = ("-t", "cdc", "slot", "tail", "rotated", "--publication", "rotated")
        tail = cloud.program.start(*words, stdout=file, stderr=talk, env={"RDSREPL_CONFIG": str(config)})
        try:
            sql("INSERT INTO rotated VALUES (1)")
            _wait(lambda: '"id":1' in out.read_text(), err.read_text)
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'cdc'"
            sql("ALTER ROLE cdc PASSWORD 'after-it'", end, "INSERT INTO rotated VALUES (2)")
            _wait(lambda: "password authentication failed" in err.read_text(), err.read_text)
            login = json.dumps({"username": "cdc", "password": "after-it"})
            manager.put_secret_value(SecretId="cdc-login", SecretString=login)
            _wait(lambda: '"id":2' in out.read_text(), err.read_text)
        finally:
            tail.terminate()
            assert tail.wait(120) == 0, err.read_text()
    assert "-it" not in out.read_text() + err.read_text(), "the password is nowhere"
    assert cloud("slot", "drop", "rotated", "--cluster", CLUSTER, "--yes").code == 0
    manager.delete_secret(SecretId="cdc-login", ForceDeleteWithoutRecovery=True)


def test_a_slot_whose_consumer_is_away_for_the_failover_is_no_candidate_for_pruning(
    loaded: Cloud, tmp_path: Path
) -> None:
    cloud = loaded
    place = ("--cluster", CLUSTER)
    prune = ("slot", "prune", "--slot", "away", "--inactive-for", "10m", "--dry-run", "-o", "json", *place)
    assert cloud("psql", *place, "--", "-qc", "CREATE TABLE away (); CREATE PUBLICATION away FOR TABLE away").code == 0
    assert cloud("slot", "create", "away", "--yes", *place).code == 0

    def state() -> str:
        """Return why prune keeps the slot."""
        result = cloud(*prune)
        assert result.code == 4 and result.json["candidates"] == [], result
        (kept,) = (one for one in result.json["kept"] if one["slot_name"] == "away")
        assert kept["idle_seconds"] < 600
        return str(kept["obstacles"][0]["rule"])

    with (tmp_path / "err").open("wb") as err:
        words = ("slot", "tail", "away", "--publication", "away", *place)
        tail = cloud.program.start(*words, stdout=err, stderr=err)
        try:
            _wait(lambda: state() == "active", lambda: "never active")
            tail.kill()
            tail.wait(120)
            assert cloud("cluster", "failover", CLUSTER, "--yes").code == 0
            for _ in range(5):
                assert state() == "not_idle"
                time.sleep(0.5)
            tail = cloud.program.start(*words, stdout=err, stderr=err)
            _wait(lambda: state() == "active", lambda: "never active again")
        finally:
            tail.kill()
            tail.wait(120)
    _wait(lambda: cloud("slot", "drop", "away", "--yes", *place).code == 0, lambda: "not dropped")


def _ids(path: Path) -> set[int]:
    found: dict[int, set[int]] = {}
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)["after"]
            found.setdefault(row["id"], set()).add(row["part"])
    return {key for key, parts in found.items() if len(parts) == ROWS}


def _check_order(changes: list[Any]) -> None:
    """Check that first arrivals are in commit order, and each transaction's rows in their order."""
    seen: dict[tuple[int, int], int] = {}
    for position, change in enumerate(changes):
        seen.setdefault((change["after"]["id"], change["after"]["part"]), position)
    for (key, part), position in seen.items():
        if part > 1:
            assert seen[key, part - 1] < position
    for worker in range(WORKERS):
        # Each client waits for its commit before it begins the next transaction.
        own = sorted(key for key, part in seen if part == 1 and key // 10_000_000 == worker)
        firsts = [seen[key, 1] for key in own]
        assert firsts == sorted(firsts)


def _wait(condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.2)
