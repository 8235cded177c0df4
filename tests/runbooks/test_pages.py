"""Run every runbook of docs/runbooks on the sandbox."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.program import Program, Result, read_json_lines
from tests.fixtures.sandbox import Cloud
from tests.fixtures.steps import steps_in_process
from tests.fixtures.waiting import wait_until

NEW = ("--engine-version", "16", "--dbname", "app", "--yes")
IDLE = "60s"
# The manual steps of each page, which the tests do in another way or skip.
MANUAL = {
    "add-a-table-to-a-stream": ("prepare-the-consumer",),
    "rebuild-a-consumer": ("empty-the-tables-of-the-consumer",),
    "abandoned-slot": ("find-its-owner",),
    "after-an-unplanned-failover": (
        "isolate-the-old-primary",
        "save-the-changes",
        "replay-what-is-needed",
        "correct-the-consumers",
    ),
    "consumer-fell-behind": ("fix-the-consumer",),
    "disk-is-filling": ("add-storage", "start-the-consumer"),
    "enable-logical-replication": (),
    "first-stream-to-kinesis": ("start-the-service",),
    "major-upgrade": (
        "stop-the-writers",
        "let-the-consumer-catch-up-then-stop-it",
        "upgrade",
        "start-the-consumer-then-the-writers",
    ),
    "planned-failover": ("the-consumers-are-back",),
    "planned-switchover": ("point-consumers-and-writers-to-the-new-primary",),
    "protect-slots-for-failover": ("keep-the-followers-in-step",),
    "rotate-password": ("who-else-uses-the-password", "restart-one-of-them"),
    "tear-down": ("stop-the-consumer",),
    "unplanned-failover": ("copy-the-tables-again", "bring-the-consumer-back"),
}


def skips(name: str) -> list[str]:
    return [word for step in MANUAL[name] for word in ("--skip-manual", step)]


def runbook(cloud: Cloud, name: str, *words: str, code: int = 0) -> list[Any]:
    """Run a page to its end; return the result of each step."""
    with steps_in_process():
        done = cloud("runbook", "run", name, *words, *skips(name), "--yes", "-o", "json")
    assert done.code == code, "\n".join((*done.out.splitlines()[-1:], *done.err.splitlines()[-1:]))
    return done.lines


def status(steps: list[Any]) -> dict[str, str]:
    return {step["step"]: step["status"] for step in steps}


def ok(done: Result) -> Result:
    assert done.code == 0, done.out + done.err
    return done


def sql(cloud: Cloud, cluster: str, statement: str) -> str:
    return ok(cloud("psql", "--cluster", cluster, "--", "-Atqc", statement)).out


@pytest.fixture(scope="module")
def cluster(running_cloud: Cloud) -> Iterator[str]:
    """A Multi-AZ DB cluster in which its runbook has enabled logical replication, with a table."""
    cloud, name = running_cloud, "books"
    storage = ("--storage", "100", "--storage-type", "io1", "--iops", "1000")
    ok(cloud("cluster", "create", name, "--class", "db.r6gd.large", *storage, *NEW))
    steps = runbook(
        cloud, "enable-logical-replication", "--cluster", name, "--var", "group=books-logical", "--var", "slots=8"
    )
    assert status(steps)["attach-it-to-the-instance-and-reboot"] == "passed_over"
    sql(cloud, name, "CREATE TABLE orders (id int PRIMARY KEY, item text)")
    ok(cloud("publication", "create", "books", "--table", "orders", "--cluster", name, "--yes"))
    yield name
    ok(cloud("cluster", "delete", name, "--skip-final-snapshot", "--confirm", name))
    ok(cloud("param-group", "delete", "books-logical", "--yes"))


@pytest.fixture(scope="module", autouse=True)
def abandoned(running_cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A running runbook for an abandoned slot, on Aurora: to prove that a slot is idle takes a minute."""
    cloud, name = running_cloud, "idle-books"
    ok(
        cloud(
            "cluster",
            "create",
            name,
            "--engine",
            "aurora-postgresql",
            "--instances",
            "1",
            "--class",
            "db.r6g.large",
            *NEW,
        )
    )
    steps = runbook(cloud, "enable-logical-replication", "--cluster", name, "--var", "group=idle-logical")
    assert status(steps)["attach-it-to-the-cluster-and-reboot"] == "done"
    ok(cloud("slot", "create", "old_cdc", "--cluster", name, "--yes"))
    words = (
        "--cluster",
        name,
        "--var",
        "slot=old_cdc",
        "--var",
        f"idle={IDLE}",
        *skips("abandoned-slot"),
        "--yes",
        "-o",
        "json",
    )
    out = tmp_path_factory.mktemp("abandoned")
    with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr:
        process = cloud.program.start("runbook", "run", "abandoned-slot", *words, stdout=stdout, stderr=stderr)
    process.out = out  # type: ignore[attr-defined]
    yield process
    process.kill()
    process.wait()
    ok(cloud("cluster", "delete", name, "--skip-final-snapshot", "--confirm", name))
    ok(cloud("param-group", "delete", "idle-logical", "--yes"))


@pytest.fixture
def slot(cloud: Cloud, cluster: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A slot that only this test uses; it leaves the tables as they were."""
    name = request.node.name.removeprefix("test_")[:60]
    ok(cloud("slot", "create", name, "--cluster", cluster, "--yes"))
    yield name
    cloud("slot", "drop", name, "--cluster", cluster, "--yes")
    sql(cloud, cluster, "DROP TABLE IF EXISTS added; TRUNCATE orders")


def test_first_stream(cloud: Cloud, cluster: str) -> None:
    sql(cloud, cluster, "CREATE TABLE parcels (id int PRIMARY KEY)")
    words = ("table=parcels", "slot=first_cdc", "publication=first", "role=first", "secret=books/first", "stream=first")
    variables = [word for each in words for word in ("--var", each)]
    steps = runbook(cloud, "first-stream-to-kinesis", "--cluster", cluster, *variables, code=6)
    assert status(steps)["start-the-service"] == "passed_over"
    assert status(steps)["the-stream-is-equal-to-the-table"] == "failed", "the service does not run"
    tail = ("slot", "tail", "first_cdc", "--publication", "first", "--to", "kinesis:first", "--cluster", cluster)
    service = cloud.program.start(*tail, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        sql(cloud, cluster, "INSERT INTO parcels VALUES (7)")
        streams = "SELECT active FROM pg_replication_slots WHERE slot_name = 'first_cdc'"
        wait_until(lambda: sql(cloud, cluster, streams) == "t\n", "the service streams")
        read = ("stream", "tail", "first", "--from", "trim-horizon", "--limit", "1")
        assert '"id":7' in ok(cloud(*read)).out
        again = runbook(
            cloud, "first-stream-to-kinesis", "--cluster", cluster, "--from", "the-changes-arrive", *variables
        )
    finally:
        service.terminate()
        service.wait()
    assert '"id":7' in again[0]["output"].replace(" ", "").replace("\\", "")
    assert "public.parcels" in again[1]["output"]

    gone = ("slot=first_cdc", "publication=first", "role=first", "stream=first")
    steps = runbook(cloud, "tear-down", "--cluster", cluster, *(word for each in gone for word in ("--var", each)))
    assert status(steps) == {
        "what-is-there": "done",
        "stop-the-consumer": "passed_over",
        "drop-the-slot": "done",
        "drop-the-publication": "done",
        "drop-the-role": "done",
        "delete-the-stream": "done",
        "delete-the-cluster": "passed_over",
        "delete-the-instance": "passed_over",
        "delete-the-parameter-group": "passed_over",
        "is-the-cluster-deleted": "done",
        "is-the-instance-deleted": "passed_over",
    }
    assert cloud("slot", "show", "first_cdc", "--cluster", cluster).code == 3


def test_a_table_is_added_and_the_consumer_rebuilt(cloud: Cloud, cluster: str, slot: str, tmp_path: Path) -> None:
    """A process streams the slot into a file; the pages write rows into it, and compare the file with the tables."""
    sql(cloud, cluster, "CREATE TABLE added (id int PRIMARY KEY, v text)")
    sql(cloud, cluster, "INSERT INTO added SELECT n, 'v' FROM generate_series(1, 100) n; INSERT INTO orders VALUES (1)")
    out = tmp_path / "out.jsonl"
    words = ("--publication", "books", "-f", "json", "--to", f"file:{out}", "--cluster", cluster, "--quiet")
    process = cloud.program.start("slot", "tail", slot, *words)
    given = ("--cluster", cluster, "--var", f"slot={slot}", "--var", "publication=books", "--var", f"output={out}")
    try:
        wait_until(lambda: cloud("slot", "show", slot, "--cluster", cluster, "-o", "json").json["active"], "it streams")
        steps = status(runbook(cloud, "add-a-table-to-a-stream", *given, "--var", "table=added"))
        assert steps["let-the-role-read-the-table"] == "passed_over"
        assert steps["the-output-has-every-row"] == "done"
        assert status(runbook(cloud, "rebuild-a-consumer", *given))["the-output-has-every-row"] == "done"
    finally:
        process.terminate()
        process.wait()
    rows = [row for row in read_json_lines(out) if row["op"] == "r"]
    counts = Counter((row["snapshot"]["id"], row["table"]) for row in rows)
    assert counts == {("add-a-table", "added"): 100, ("rebuild", "added"): 100, ("rebuild", "orders"): 1}


def test_disk_is_filling(cloud: Cloud, cluster: str, slot: str) -> None:
    limit = sql(cloud, cluster, "SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'").strip()
    looked = runbook(cloud, "disk-is-filling", "--cluster", cluster)
    assert status(looked)["drop-the-slot"] == "passed_over"
    assert slot in looked[1]["output"]
    words = ("--var", f"slot={slot}", "--var", "group=books-logical", "--var", "keep_mb=4 GB")
    completed = status(runbook(cloud, "disk-is-filling", "--cluster", cluster, *words, "--from", "drop-the-slot"))
    assert completed["drop-the-slot"] == completed["limit-what-a-slot-may-hold"] == "done"
    assert sql(cloud, cluster, "SHOW max_slot_wal_keep_size") == "4GB\n"
    # With this limit, `slot check` would forecast for another test that its slot is invalidated.
    ok(cloud("param-group", "set", "books-logical", f"max_slot_wal_keep_size={limit}", "--yes"))


def test_consumer_fell_behind(cloud: Cloud, cluster: str, slot: str) -> None:
    sql(cloud, cluster, "INSERT INTO orders SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) n")
    words = ("--cluster", cluster, "--var", f"slot={slot}")
    behind = runbook(cloud, "consumer-fell-behind", *words)
    assert status(behind)["give-up-the-backlog"] == "passed_over"
    runbook(cloud, "consumer-fell-behind", *words, "--var", "give_up_backlog=yes", "--from", "4")
    assert cloud("slot", "show", slot, "--cluster", cluster, "-o", "json").json["lag_bytes"] < 1_000_000


def test_planned_failover(cloud: Cloud, cluster: str, slot: str) -> None:
    before = writer(cloud, cluster)
    steps = runbook(cloud, "planned-failover", "--cluster", cluster, "--var", f"copy={before}")
    assert status(steps)["fail-over-the-instance"] == "passed_over"
    assert writer(cloud, cluster) != before
    assert (status(steps)["the-copy-is-equal"], status(steps)["the-stream-is-equal"]) == ("done", "passed_over")
    assert slot in next(step["output"] for step in steps if step["step"] == "the-slots-are-there")


def test_unplanned_failover(cloud: Cloud, cluster: str, slot: str) -> None:
    before = writer(cloud, cluster)
    cloud._request("POST", "crash", {"instance": before})
    wait_for_failover(cloud, cluster, other_than=before)
    words = ("--cluster", cluster, "--var", f"slot={slot}", "--var", "publication=books")
    steps = status(runbook(cloud, "unplanned-failover", *words))
    assert steps["create-the-slot-again"] == "passed_over"
    ok(cloud("slot", "drop", slot, "--cluster", cluster, "--yes"))
    steps = status(runbook(cloud, "unplanned-failover", *words, "--var", "recreate=yes", "--from", "4"))
    assert steps["create-the-slot-again"] == "done"


def test_major_upgrade(cloud: Cloud, cluster: str, slot: str) -> None:
    words = ("--var", f"slot={slot}", "--var", "publication=books", "--var", "version=16")
    steps = status(runbook(cloud, "major-upgrade", "--cluster", cluster, *words))
    assert steps["upgrade"] == "passed_over"
    assert steps["create-the-slot-again"] == "done"
    # A slot with an undelivered change is not dropped.
    sql(cloud, cluster, "INSERT INTO orders VALUES (-1, 'not delivered')")
    stopped = runbook(cloud, "major-upgrade", "--cluster", cluster, *words, code=1)
    assert stopped[-1]["step"] == "is-there-anything-left-in-the-slot"
    assert stopped[-1]["reason"].startswith("expected line is missing in the output")
    assert cloud("slot", "show", slot, "--cluster", cluster).code == 0


def test_rotate_password(cloud: Cloud, cluster: str) -> None:
    ok(cloud("role", "create", "rotated", "--no-password", "--cluster", cluster, "--yes"))
    shown = ok(cloud("cluster", "show", cluster, "-o", "json")).json["cluster"]
    config = Path(cloud.program.env["XDG_CONFIG_HOME"]) / "rdsrepl" / "config.yaml"
    before = config.read_text()
    login = {
        "host": shown["endpoint"], "port": str(shown["port"]), "dbname": "app", "user": "rotated", "sslmode": "disable",
        "secret": "books/rotated", "region": cloud.program.env["AWS_REGION"],
    }  # fmt: skip
    config.write_text(before + "  rotated:\n" + "".join(f"    {key}: '{value}'\n" for key, value in login.items()))
    words = ("--cluster", cluster, "--var", "role=rotated", "--var", "secret=books/rotated", "--var", "login=rotated")

    def read(stage: str = "AWSCURRENT") -> Any:
        answer = cloud.client("secretsmanager").get_secret_value(SecretId="books/rotated", VersionStage=stage)
        return json.loads(answer["SecretString"])

    try:
        runbook(cloud, "rotate-password", *words)
        first = read()
        assert first["username"] == "rotated"
        steps = runbook(cloud, "rotate-password", *words)
        second = read()
        assert status(steps)["it-logs-in"] == "done"
        assert second == {**first, "password": second["password"]} != first
        assert read("AWSPREVIOUS") == first
        journals = "".join(path.read_text() for path in journal_files(cloud.program))
        assert first["password"] not in journals and second["password"] not in journals
        # The secrets of another role and of RDS are not changed.
        ok(cloud("role", "create", "other", "--no-password", "--cluster", cluster, "--yes"))
        for secret in ("books/rotated", "rds!cluster-x"):
            refused = cloud(
                "role", "password", "other", "--generate-password", "--secret", secret, "--cluster", cluster, "--yes"
            )
            assert refused.code == 4, refused.err
    finally:
        config.write_text(before)
        for role in ("rotated", "other"):
            cloud("role", "drop", role, "--cluster", cluster, "--yes")


def test_instance_from_nothing_to_nothing(cloud: Cloud) -> None:
    ok(cloud("instance", "create", "book", "--class", "db.r6g.large", "--storage", "100", "--multi-az", *NEW))
    place = ("--instance", "book")
    steps = status(runbook(cloud, "enable-logical-replication", *place, "--var", "group=book-logical"))
    assert steps["attach-it-to-the-instance-and-reboot"] == "done"
    assert steps["attach-it-to-the-cluster-and-reboot"] == "passed_over"
    ok(cloud("slot", "create", "book_cdc", *place, "--yes"))
    assert status(runbook(cloud, "planned-failover", *place))["fail-over-the-instance"] == "done"
    words = ("slot=book_cdc", "delete_server=book", "snapshot=book-final", "group=book-logical")
    steps = status(runbook(cloud, "tear-down", *place, *(word for each in words for word in ("--var", each))))
    assert steps["delete-the-instance"] == steps["delete-the-parameter-group"] == "done"
    assert cloud("instance", "show", "book").code == 3
    cloud.client("rds").delete_db_snapshot(DBSnapshotIdentifier="book-final")


def test_abandoned_slot(cloud: Cloud, abandoned: subprocess.Popen[bytes]) -> None:
    code = abandoned.wait(timeout=120)
    out: Path = abandoned.out  # type: ignore[attr-defined]
    assert code == 0, (out / "stdout").read_text() + (out / "stderr").read_text()
    steps = status([json.loads(line) for line in (out / "stdout").read_text().splitlines()])
    assert steps.pop("find-its-owner") == "passed_over"
    assert set(steps.values()) == {"done"}
    assert cloud("slot", "show", "old_cdc", "--cluster", "idle-books").code == 3


def writer(cloud: Cloud, cluster: str) -> str:
    members = ok(cloud("cluster", "show", cluster, "-o", "json")).json["members"]
    found: str = next(member["instance_id"] for member in members if member["role"] == "writer")
    return found


def wait_for_failover(cloud: Cloud, cluster: str, *, other_than: str) -> None:
    """Wait until another member is the writer, and every member is available."""
    import time

    deadline = time.monotonic() + 120
    while True:
        shown = ok(cloud("cluster", "show", cluster, "-o", "json")).json
        states = {shown["cluster"]["status"], *(member["status"] for member in shown["members"])}
        if states == {"available"} and writer(cloud, cluster) != other_than:
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.2)


def journal_files(program: Program) -> list[Path]:
    return sorted((Path(program.env["XDG_STATE_HOME"]) / "rdsrepl" / "runbooks").glob("*.jsonl"))


def test_a_replica_of_an_instance_is_protected_promoted_and_compared(
    cloud: Cloud, own_password: tuple[str, str]
) -> None:
    """The three pages about read replicas, one after the other, with failover slots."""
    name, replica = "shop", "shop-r"
    single = ("--class", "db.r6g.large", "--yes")
    group = ("--family", "postgres18", "--kind", "instance", "--set", "rds.logical_replication=1", "--yes")
    ok(cloud("param-group", "create", name, *group))
    made = ("--storage", "20", "--engine-version", "18", "--dbname", "app", "--param-group", name)
    ok(cloud("instance", "create", name, *single, *made, *own_password))
    ok(cloud("instance", "create", replica, *single, "--replica-of", name, "--param-group", name))
    own = ("--instance", name, "--var", f"replica={replica}")

    def run(statement: str) -> None:
        ok(cloud("psql", "--instance", name, "--", "-Atqc", statement))

    try:
        run("CREATE TABLE t (id int PRIMARY KEY)")
        ok(cloud("publication", "create", "p", "--table", "t", "--instance", name, "--yes"))
        ok(cloud("slot", "create", "shop", "--instance", name, "--yes"))
        more = ("--var", "slot=shop", "--var", f"group={name}", "--var", "failover_slot=yes")
        steps = status(runbook(cloud, "protect-slots-for-failover", *own, *more))
        assert steps["make-the-slot-a-failover-slot"] == "done"
        assert steps["create-a-follower-on-the-replica"] == "passed_over"

        def is_protected() -> bool:
            run("INSERT INTO t SELECT count(*) FROM t")
            ok(cloud("slot", "tail", "shop", "--until-now", "--instance", name))
            cloud.log_standby_snapshot(name)
            return cloud("failover", "check", "--to", replica, "--instance", name).code in (0, 8)

        wait_until(is_protected, "the slot has a copy", seconds=120)
        switched = runbook(cloud, "planned-switchover", *own, "--var", "fence=true")
        assert status(switched)["switch-over"] == "done"
        assert cloud("instance", "show", replica, "-o", "json").json["instance"]["replica_of"] is None
        run("INSERT INTO t VALUES (-1)")  # the old primary goes on running
        compared = {step["step"]: step for step in runbook(cloud, "after-an-unplanned-failover", *own)}
        assert "lost 1 transaction, 1 change" in " ".join(compared["what-was-lost"]["output"].split())
    finally:
        for each in (replica, name):
            ok(cloud("instance", "delete", each, "--skip-final-snapshot", "--confirm", each))
        ok(cloud("param-group", "delete", name, "--yes"))
