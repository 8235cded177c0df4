"""``failover run``: it proves before it promotes, stops where it cannot, and continues where it was killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rdsrepl import apply
from rdsrepl.failover.readiness import Readiness
from rdsrepl.plan import Plan, Step
from rdsrepl.switchover import planner
from tests.fixtures.postgres import Database, Servers
from tests.fixtures.program import Program, Result
from tests.fixtures.splits import Split, split
from tests.fixtures.waiting import wait_until


@dataclass(frozen=True)
class Place:
    """A primary of PostgreSQL 18 and its standby, with a failover slot that a tail reads."""

    servers: Split
    program: Program
    tail: subprocess.Popen[bytes]

    def run(self, *words: str, dsn: str | None = None) -> Result:
        old, new = self.servers.before.dsn, self.servers.after.dsn
        return self.program("failover", "run", "--to", new, *words, dsn=old if dsn is None else dsn)

    def is_promoted(self) -> bool:
        return not self.servers.after.value("SELECT pg_is_in_recovery()")


@pytest.fixture(scope="module")
def place(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A pair that no test promotes: the tests share it, in any order."""
    with made_place(servers, tmp_path_factory.mktemp("switchover")) as made:
        yield made


@pytest.fixture
def promoted(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A pair of its own for a test that promotes the standby."""
    with made_place(servers, tmp_path_factory.mktemp("promoted")) as made:
        yield made


@contextmanager
def made_place(servers: Servers, directory: Path) -> Iterator[Place]:
    program = Program(directory)
    program.env["RDSREPL_POLL_INTERVAL"] = "100ms"
    settings = {"hot_standby_feedback": "on", "wal_receiver_status_interval": "1s", "max_prepared_transactions": "2"}
    with split(servers.get(18).binaries, directory, **settings) as made:
        made.before.run("CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE t")
        assert program("slot", "create", "orders", "--failover", "--yes", dsn=made.before.dsn).code == 0
        words = [sys.executable, "-m", "rdsrepl", "-q", "--dsn", made.before.dsn, "slot", "tail", "orders"]
        with (directory / "out").open("wb") as out:
            tail = subprocess.Popen(words, stdout=out, env=program.env)
        try:
            yield Place(made, program, tail)
        finally:
            tail.terminate()
            tail.wait()


def ready(place: Place) -> None:
    """Wait until the check has no critical finding; the primary's slot has to advance for that."""
    old = place.servers.before

    def is_ready() -> bool:
        old.run("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t", "SELECT pg_log_standby_snapshot()")
        check = place.program("failover", "check", "--to", place.servers.after.dsn, dsn=old.dsn)
        return check.code in (0, 8)

    wait_until(is_ready, "the standby is ready")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "how the writers are stopped is not given"),
        (("--idle", "--fence", "true"), "exclude each other"),
        (("--unplanned", "--idle"), "belong to a planned switchover"),
        (("--fence", " "), "--fence is empty"),
    ],
)
def test_how_the_writers_are_stopped_must_be_clear(place: Place, words: tuple[str, ...], message: str) -> None:
    done = place.run(*words, "--yes")
    assert done.code == 2
    assert message in done.err


def test_only_a_standby_of_the_primary_is_promoted(place: Place, db18: Database) -> None:
    refused = place.run("--idle", "--yes", dsn=db18.dsn)
    assert refused.code == 4 and "is a standby of another primary" in refused.err
    swapped = place.program(
        "failover", "run", "--to", place.servers.before.dsn, "--idle", "--yes", dsn=place.servers.after.dsn
    )
    assert swapped.code == 4, swapped.err


def test_a_critical_finding_stops_it_before_anything_is_changed(place: Place, tmp_path: Path) -> None:
    ready(place)
    old = place.servers.before
    old.run("SELECT pg_create_logical_replication_slot('unprotected', 'pgoutput')")
    fenced = tmp_path / "fenced"
    done = place.run("--fence", f"touch {fenced}", "--yes")
    old.run("SELECT pg_drop_replication_slot('unprotected')")
    assert done.code == 4
    assert "1 critical finding: unprotected: unprotected" in done.err
    assert not fenced.exists() and not place.is_promoted()


def test_what_cannot_be_recorded_stops_it_before_the_writers_are_stopped(place: Place, tmp_path: Path) -> None:
    ready(place)
    fenced, new = tmp_path / "fenced", place.servers.after.dsn
    words = ("failover", "run", "--to", new, "--fence", f"touch {fenced}", "--yes")
    done = place.program(*words, dsn=place.servers.before.dsn, env={"RDSREPL_STATE_DIR": "/dev/null/x"})
    assert done.code == 4 and "nothing is promoted without it" in done.err, done.err
    assert not fenced.exists()


def test_a_fence_that_fails_stops_it(place: Place) -> None:
    ready(place)
    done = place.run("--fence", "echo no >&2; exit 3", "--yes")
    assert done.code == 1
    assert "the command ended with code 3" in done.err
    assert not place.is_promoted()


def test_an_open_transaction_that_writes_stops_it_and_is_named(place: Place) -> None:
    ready(place)
    with closing(place.servers.before.connect()) as conn:
        conn.execute("BEGIN; INSERT INTO t VALUES (-1)")
        pid = conn.info.backend_pid
        done = place.run("--idle", "--timeout", "1s", "--yes")
        conn.execute("ROLLBACK")
    assert done.code == 1
    assert f"still writing: PID {pid} (" in done.err
    assert not place.is_promoted()


def test_an_unplanned_promotion_shows_what_it_would_lose(place: Place) -> None:
    ready(place)
    plan = place.run("--unplanned", "--dry-run", "-o", "json").json
    assert any(warning.startswith("slot orders: ") for warning in plan["warnings"])
    assert any("all WAL of" in warning or "never got" in warning for warning in plan["warnings"])
    gone = place.run("--unplanned", "--dry-run", "-o", "json", dsn="host=127.0.0.1 port=1").json
    assert "does not answer: what it committed after" in gone["warnings"][0]
    planned = place.run("--idle", "--yes", dsn="host=127.0.0.1 port=1")
    assert planned.code == 5 and "--unplanned" in planned.err


def test_a_saved_plan_is_for_both_servers(place: Place, tmp_path: Path) -> None:
    """The plan promotes the one server; the command's own server is the other one, and must be the same again."""
    ready(place)
    old, new, path = place.servers.old.keywords(), place.servers.after.dsn, str(tmp_path / "plan.json")
    own = {f"PG{name}": str(old[key]) for name, key in (("HOST", "host"), ("PORT", "port"), ("USER", "user"))}
    own["PGDATABASE"] = place.servers.name
    saved = place.program("failover", "run", "--to", new, "--idle", "--out", path, env=own)
    assert saved.code == 0, saved.err
    seen = place.program("apply", path, "--check", "-o", "json", env=own)
    assert seen.code == 7 and seen.json["title"].startswith("switch over"), seen.err
    swapped = place.program("apply", path, "--yes", env={**own, "PGPORT": str(place.servers.new.keywords()["port"])})
    assert swapped.code == 4 and "is for another server: port" in swapped.err, swapped.err


class Killed(BaseException):
    """The process ended here."""


class KillAfter:
    """A recorder that ends the run after a number of steps, as kill -9 does."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def before(self, step: Step) -> None:
        pass

    def after(self, step: Step, failure: BaseException | None) -> None:  # noqa: ARG002
        self._left -= 1
        if not self._left:
            raise Killed


def apply_until_killed(plan: Plan, place: Place, steps: int) -> None:
    def nothing(*given: Any) -> None:
        pass

    timing = apply.RetryTiming(poll=0.1)
    with pytest.raises(Killed):
        apply.run(
            plan, place.servers.after.target, done=nothing, waiting=nothing, recorder=KillAfter(steps), timing=timing
        )


def test_killed_after_each_step_and_run_again_it_converges(promoted: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place = promoted
    monkeypatch.setenv("XDG_STATE_HOME", place.program.env["XDG_STATE_HOME"])
    ready(place)
    old, new = place.servers.before, place.servers.after
    old_target, new_target = replace(old.target, label="--dsn"), replace(new.target, label="--to")
    where = new.server.keywords()
    servers = planner.Servers(old_target, new_target, "old", f"{where['host']}:{where['port']}")
    ready_now = Readiness("old", ("new",), None, True, (), ())
    steps = planner.planned(servers, planner.Options(fence="true"), ready_now).steps
    promotion = next(n for n, step in enumerate(steps, 1) if step.summary.startswith("promote"))
    for number in range(1, promotion + 1):
        options = planner.Options(fence="true", timeout_seconds=120, quiet_seconds=0.1)
        plan = planner.planned(servers, options, ready_now)
        apply_until_killed(plan, place, number)
        assert place.is_promoted() is (number == promotion), number
    finished = place.run("--idle", "--yes", "-o", "json")
    assert finished.code == 0, finished.err
    assert finished.json["title"].startswith("finish the switchover")
    assert "no record" not in finished.err
    count = old.value("SELECT count(*) FROM t")
    assert new.value("SELECT count(*) FROM t") == count
    # Nothing comes again: the slot of the new primary is where the consumer was.
    rest = place.program("slot", "tail", "orders", "--until-now", "--no-confirm", dsn=new.dsn)
    assert rest.lines == [], rest.err
    diff = ("failover", "diff", "--old", old.dsn, "--new", new.dsn, "-o", "json")
    lost = place.program(*diff)
    assert lost.code == 4 and "in use by" in lost.err  # its consumer still reads the old primary
    place.tail.terminate()
    place.tail.wait()
    # The consumer may have confirmed records beyond the fork that belong to no transaction.
    old.run("SELECT pg_replication_slot_advance('orders', pg_current_wal_lsn())")
    proven = place.program(*diff)
    assert proven.code == 0 and proven.json["transactions"] == [], proven.err
    old.run("INSERT INTO t VALUES (-2)", "SELECT pg_replication_slot_advance('orders', pg_current_wal_lsn())")
    hidden = place.program(*diff)
    assert hidden.code == 8 and not hidden.json["complete"], hidden.err
