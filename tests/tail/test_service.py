"""The tail as a service: metrics and health over HTTP, JSON logs, heartbeats, credentials that change, Lambda."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rdsrepl import aws_lambda
from rdsrepl.errors import BadValue, NotFound
from rdsrepl.tail.metrics import Health
from tests import ROOT
from tests.fixtures.kinesis import AWS, STREAM, confirmed, events, is_before, slot_of, wal_end, words
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.service import base_url, health, scrape, tailing
from tests.fixtures.waiting import wait_until
from tests.workloads.kinesis_server import KinesisServer

# Health.


def test_health_is_bad_only_when_the_lag_grew_and_nothing_was_confirmed() -> None:
    one = Health(60)
    one.observe(100, 0, 0.0)
    one.observe(100, 0, 100.0)
    assert one.stuck_seconds(100.0) is None, "nothing to do is no fault"
    one.observe(100, 50, 110.0)
    assert one.stuck_seconds(110.0) == 110.0
    one.observe(101, 60, 120.0)
    assert one.stuck_seconds(150.0) is None, "it moved, however large the lag"
    one.observe(101, 60, 200.0)
    assert one.stuck_seconds(200.0) is None, "the lag did not grow"
    one.observe(101, None, 300.0)
    assert one.stuck_seconds(300.0) is None, "a server that cannot be asked says nothing"
    one.observe(101, 61, 301.0)
    assert one.stuck_seconds(301.0) == 181.0


def test_health_starts_with_the_first_known_lag() -> None:
    one = Health(10)
    one.observe(0, None, 0.0)
    one.observe(0, 500, 5.0)
    assert one.stuck_seconds(60.0) is None
    one.observe(0, 501, 61.0)
    assert one.stuck_seconds(61.0) == 61.0


# Metrics.


def test_metrics_and_health_while_kinesis_is_down_and_after(
    rdsrepl: Program, source: Database, kinesis: KinesisServer
) -> None:
    line = words(source, "--metrics-port", "0", "--unhealthy-after", "1s")
    with tailing(rdsrepl, *line, dsn=source.dsn, **AWS, AWS_ENDPOINT_URL=kinesis.url) as (process, log):
        url = base_url(log)
        source.run("INSERT INTO t SELECT n, 0, 'x' FROM generate_series(1, 100) n")
        wait_until(lambda: scrape(url).get("records_total") == 100)
        wait_until(lambda: "lag_bytes" in scrape(url))
        now = scrape(url)
        assert now["changes_total"] == 100 and now["connected"] == 1 and now["healthy"] == 1
        assert now["received_lsn"] >= now["confirmed_lsn"] > 0 and now["throttles_total"] == 0
        assert health(url)[0] == 200
        kinesis.faults.down = True
        source.run("INSERT INTO t SELECT n, 0, repeat('x', 500) FROM generate_series(101, 2000) n")
        _, said = wait_until(lambda: found if (found := health(url))[0] == 503 else None)
        assert said["healthy"] is False and said["lag_bytes"] > 0 and said["stuck_seconds"] >= 1
        stuck = scrape(url)
        assert stuck["healthy"] == 0 and stuck["retries_total"] > 0
        assert stuck["oldest_undelivered_seconds"] > 0.5 and stuck["pending_bytes"] > 100_000
        kinesis.faults.down = False
        wait_until(lambda: health(url)[0] == 200)
        after = wait_until(lambda: found if (found := scrape(url))["records_total"] == 2000 else None)
        assert after["pending_bytes"] == 0
        wait_until(lambda: scrape(url)["oldest_undelivered_seconds"] == 0)
        with pytest.raises(urllib.error.HTTPError, match="404") as missing:
            urllib.request.urlopen(f"{url}/else", timeout=60)
        missing.value.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert len(events(kinesis)) >= 2000


def test_a_port_in_use_is_reported_before_the_stream(rdsrepl: Program, source: Database) -> None:
    import socket

    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = rdsrepl("slot", "tail", slot_of(source), "--metrics-port", str(port), dsn=source.dsn)
    assert done.code == 2 and f"--metrics-port {port}: could not listen on 127.0.0.1" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metrics-host", "0.0.0.0"], "--metrics-host requires --metrics-port"),
        (["--unhealthy-after", "1m"], "--unhealthy-after requires --metrics-port"),
        (["--heartbeat-table", "beats"], "--heartbeat-table requires --heartbeat"),
        (["--heartbeat", "1ms"], "too short"),
        (["--heartbeat", "10s", "--heartbeat-table", "a..b"], "a..b"),
        (["--metrics-port", "70000"], "--metrics-port"),
    ],
)
def test_options_that_are_refused(rdsrepl: Program, options: list[str], said: str) -> None:
    done = rdsrepl("slot", "tail", "any", *options, dsn="host=127.0.0.1 port=1 dbname=x")
    assert done.code == 2 and said in done.err, done.err


# Logs.


def test_every_line_of_a_json_log_is_an_object(rdsrepl: Program, source: Database) -> None:
    source.run("INSERT INTO t VALUES (1, 0, 'x')")
    done = rdsrepl("slot", "tail", slot_of(source), "--until-now", "--log-format", "json", dsn=source.dsn)
    assert done.code == 0 and len(done.lines) == 1
    logged = [json.loads(line) for line in done.err.splitlines()]
    assert [line["event"] for line in logged] == ["note", "stopped"]
    last = logged[-1]
    assert last["level"] == "info" and last["changes"] == 1 and last["slot"] == slot_of(source)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", last["time"]) and re.fullmatch(
        r"[0-9A-F]+/[0-9A-F]+", last["confirmed_lsn"]
    )


def test_an_error_in_a_json_log_is_an_object(rdsrepl: Program, source: Database) -> None:
    done = rdsrepl("slot", "tail", "no_such", "--log-format", "json", dsn=source.dsn)
    (line,) = [json.loads(line) for line in done.err.splitlines()]
    assert done.code == 3 and line["level"] == "error" and line["error"] == "not_found" and line["exit_code"] == 3
    assert "no_such" in line["message"] and line["hint"]


# The heartbeat.


def test_a_heartbeat_moves_the_slot_and_is_not_in_the_stream(rdsrepl: Program, server: Any, make_database: Any) -> None:
    database = make_database(server)
    database.run(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE PUBLICATION p FOR TABLE t",
        f"SELECT pg_create_logical_replication_slot('{slot_of(database)}', 'pgoutput')",
    )
    before = confirmed(database)
    done = rdsrepl(
        *("slot", "tail", slot_of(database), "--heartbeat", "200ms", "--duration", "2s", "--format", "json"),
        dsn=database.dsn,
    )
    assert done.code == 0 and done.out == "", done.err
    assert database.value(f"SELECT '{confirmed(database)}'::pg_lsn > '{before}'")
    peeked = database.run(
        "SELECT pg_logical_emit_message(true, 'mine', 'x')",
        f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot_of(database)}' AND NOT active",
    )
    assert peeked[0][0] == 1
    done = rdsrepl("slot", "tail", slot_of(database), "--until-now", "--format", "json", dsn=database.dsn)
    assert [line["op"] for line in done.lines] == ["m"], "the messages of others are passed on"


def test_a_heartbeat_with_wal2json(rdsrepl: Program, db15: Database) -> None:
    db15.run(f"SELECT pg_create_logical_replication_slot('{slot_of(db15)}', 'wal2json')")
    line = ("slot", "tail", slot_of(db15), "--heartbeat", "200ms", "--duration", "1s", "--format", "json")
    done = rdsrepl(*line, dsn=db15.dsn)
    assert done.code == 0 and done.out == "", done.err


def test_a_heartbeat_table(rdsrepl: Program, source: Database) -> None:
    line = ("slot", "tail", slot_of(source), "--heartbeat", "100ms", "--heartbeat-table", "ops.beats")
    missing = rdsrepl(*line, dsn=source.dsn)
    assert missing.code == 3 and "ops" in missing.err
    assert "CREATE TABLE ops.beats (slot_name text PRIMARY KEY, beat_at timestamptz NOT NULL)" in missing.err
    source.run("CREATE SCHEMA ops", "CREATE TABLE ops.beats (slot_name text, beat_at timestamptz NOT NULL)")
    wrong = rdsrepl(*line, dsn=source.dsn)
    assert wrong.code == 4 and "ON CONFLICT" in wrong.err
    source.run("ALTER TABLE ops.beats ADD PRIMARY KEY (slot_name)", "ALTER PUBLICATION p ADD TABLE ops.beats")
    done = rdsrepl(*line, "--limit", "3", "--format", "json", dsn=source.dsn)
    assert done.code == 0, done.err
    assert [(one["op"], one["table"]) for one in done.lines] == [("c", "beats"), ("u", "beats"), ("u", "beats")]
    assert source.value("SELECT slot_name FROM ops.beats") == slot_of(source)


# The end of a run.


def test_a_drain_timeout_ends_a_run_that_kinesis_blocks(
    rdsrepl: Program, source: Database, kinesis: KinesisServer
) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t SELECT n, 0, 'x' FROM generate_series(1, 50) n")
    kinesis.faults.partial = 1.0
    env = {**AWS, "AWS_ENDPOINT_URL": kinesis.url}
    with tailing(rdsrepl, *words(source, "--drain-timeout", "1s"), dsn=source.dsn, **env) as (process, log):
        wait_until(lambda: kinesis.requests > 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        said = log.read_text()
    assert "delivery timed out after 1s" in said and is_before(source, before)
    kinesis.faults.partial = 0.0
    done = rdsrepl(*words(source, "--until-now"), dsn=source.dsn, env=env)
    assert done.code == 0 and {row["after"]["id"] for _, row in events(kinesis)} == set(range(1, 51))


# Credentials that expire.


def test_credentials_that_expire_under_the_tail_are_renewed(
    rdsrepl: Program, source: Database, kinesis: KinesisServer, tmp_path: Path
) -> None:
    # botocore renews credentials in their last fifteen minutes; so it renews these after two seconds.
    script = tmp_path / "login.py"
    script.write_text(
        textwrap.dedent("""\
            import datetime, json, pathlib, sys
            count = pathlib.Path(sys.argv[1])
            number = int(count.read_text() or 0) + 1 if count.exists() else 1
            count.write_text(str(number))
            end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=15, seconds=2)
            print(json.dumps({"Version": 1, "AccessKeyId": f"AKIA{number}", "SecretAccessKey": "secret",
                              "SessionToken": "token", "Expiration": end.isoformat()}))
            """)
    )
    config = tmp_path / "config"
    config.write_text(
        f"[profile short]\nregion = eu-west-1\ncredential_process = {sys.executable} {script} {tmp_path / 'count'}\n"
    )
    env = {
        "AWS_CONFIG_FILE": str(config),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": kinesis.url,
    }
    with tailing(rdsrepl, "--profile", "short", *words(source), dsn=source.dsn, **env) as (process, _):
        source.run("INSERT INTO t VALUES (1, 0, 'before')")
        wait_until(lambda: len(events(kinesis)) == 1)
        first = set(kinesis.access_keys)
        kinesis.faults.expired_keys = frozenset(first)
        time.sleep(2.5)
        source.run("INSERT INTO t VALUES (2, 0, 'after')")
        wait_until(lambda: len(events(kinesis)) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert "AKIA1" in first and set(kinesis.access_keys) > first


# Lambda.


@dataclass
class Context:
    """The context that Lambda passes, with a timeout."""

    ends_at: float

    def get_remaining_time_in_millis(self) -> int:
        return int((self.ends_at - time.monotonic()) * 1000)


@pytest.fixture
def invoke(
    source: Database, kinesis: KinesisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    """Call the handler like Lambda, with an event, the environment and a timeout."""
    from rdsrepl.aws import session

    for name in [name for name in os.environ if name.startswith(("RDSREPL_", "PG", "AWS_"))]:
        monkeypatch.delenv(name)
    for name, value in {**AWS, "AWS_ENDPOINT_URL": kinesis.url, "RDSREPL_CONFIG": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    from psycopg.conninfo import conninfo_to_dict

    for name, value in conninfo_to_dict(source.dsn).items():
        if name in aws_lambda.KEYS:
            monkeypatch.setenv(f"RDSREPL_{name.upper()}", str(value))
    monkeypatch.setenv("RDSREPL_SLOT", slot_of(source))
    session._client.cache_clear()
    session._session.cache_clear()

    def call(seconds: float = 5.0, **event: Any) -> Any:
        event = {"to": f"kinesis:{STREAM}", "margin": "1s", **event}
        return aws_lambda.handler(event, Context(time.monotonic() + seconds))

    return call


def test_lambda_streams_until_shortly_before_its_timeout(
    invoke: Any, source: Database, kinesis: KinesisServer, capfd: pytest.CaptureFixture[str]
) -> None:
    source.run("INSERT INTO t SELECT n, 0, 'x' FROM generate_series(1, 200) n")
    before = confirmed(source)
    result = invoke(4.0)
    assert result == {
        "status": "done",
        "slot": slot_of(source),
        "reason": "reached --duration",
        "changes": 200,
        "records": 200,
        "retries": 0,
        "throttles": 0,
        "received_bytes": result["received_bytes"],
        "confirmed_lsn": confirmed(source),
        "undelivered": False,
        "reconnects": 0,
        "seconds": result["seconds"],
    }
    assert source.value(f"SELECT '{confirmed(source)}'::pg_lsn > '{before}'")
    assert len(events(kinesis)) == 200
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert logged[-1]["event"] == "result" and logged[-1]["changes"] == 200
    json.dumps(result)


def test_lambda_ends_early_without_changes(invoke: Any, source: Database) -> None:
    source.run("INSERT INTO t VALUES (1, 0, 'x')")
    result = invoke(60.0, idle_exit="500ms", aggregate="true", publications="p", partition_by="table")
    assert result["reason"] == "no change for --idle-exit" and result["changes"] == 1


def test_lambda_confirms_only_acknowledged_changes_and_the_next_run_delivers_the_rest(
    invoke: Any, source: Database, kinesis: KinesisServer
) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t SELECT n, 0, 'x' FROM generate_series(1, 100) n")
    kinesis.faults.partial = 1.0
    result = invoke(4.0)
    assert result["status"] == "done" and result["undelivered"] and result["records"] == 0 and result["retries"] > 0
    assert is_before(source, before)
    kinesis.faults.partial = 0.0
    assert invoke(60.0, idle_exit="500ms")["records"] == 100
    assert {row["after"]["id"] for _, row in events(kinesis)} == set(range(1, 101))


def test_a_second_lambda_finds_the_slot_busy(
    invoke: Any, rdsrepl: Program, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_lambda, "_ACTIVE_WAIT_SECONDS", 0.5)
    with tailing(rdsrepl, "slot", "tail", slot_of(source), dsn=source.dsn):
        active = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot_of(source)}'"
        wait_until(lambda: source.value(active))
        result = invoke(20.0)
    assert result["status"] == "busy" and "is in use by PID" in result["reason"]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"slots": "x"}, "unknown key 'slots'"),
        ({"password": "secret"}, "unknown key 'password'"),
        ({"slot": ""}, "slot is missing"),
        ({"to": "-"}, "no standard output"),
        ({"to": "s3:bucket"}, "to (RDSREPL_TO) s3:bucket is not a sink"),
        ({"format": "xml"}, "format (RDSREPL_FORMAT) 'xml' is not a format"),
        ({"format": "raw"}, "raw is not supported with partition_by (RDSREPL_PARTITION_BY) key"),
        ({"aggregate": "perhaps"}, "is not a boolean"),
        ({"requests": 0}, "between 1 and 64"),
        ({"oversize": "cut"}, "oversize"),
        ({"linger": "soon"}, "linger (RDSREPL_LINGER): 'soon' is not a duration"),
        ({"format": "RAW"}, "raw is not supported with partition_by (RDSREPL_PARTITION_BY) key"),
        ({"margin": "1h"}, "the function may run for"),
        ({"tables": {"a": 1}}, "is not a string"),
    ],
)
def test_an_event_that_is_wrong(invoke: Any, event: dict[str, Any], said: str) -> None:
    with pytest.raises(BadValue, match=re.escape(said)):
        invoke(5.0, **event)


def test_lambda_fails_when_no_retry_helps(invoke: Any) -> None:
    with pytest.raises(NotFound, match="no replication slot nowhere"):
        invoke(5.0, slot="nowhere")
    with pytest.raises(NotFound, match="missing"):
        invoke(5.0, to="kinesis:missing")


# The documentation.

PAGE = (ROOT / "docs" / "service.md").read_text()


def without_a_database(rdsrepl: Program, line: list[str]) -> Any:
    """Run a command line of the page without a database: after its options, it fails as unreachable."""
    config = rdsrepl.home / "config.yaml"
    config.write_text("targets:\n  orders: {host: 127.0.0.1, port: 1, region: eu-west-1}\n")
    env = {**AWS, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1", "RDSREPL_CONFIG": str(config)}
    return rdsrepl(*line, env=env)


def test_the_systemd_unit_of_the_page_runs(rdsrepl: Program) -> None:
    found = re.search(r"^ExecStart=/opt/rdsrepl/bin/rdsrepl (.*?[^\\])$", PAGE, re.M | re.S)
    assert found is not None
    done = without_a_database(rdsrepl, found[1].replace("\\\n", " ").split())
    assert done.code == 5, done.err


def test_the_task_definition_of_the_page_is_valid_and_its_command_runs(rdsrepl: Program) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    found = re.search(r"^```json ecs\n(.*?)^```", PAGE, re.M | re.S)
    assert found is not None
    task = json.loads(found[1])
    model = botocore.session.get_session().get_service_model("ecs")
    report = ParamValidator().validate(task, model.operation_model("RegisterTaskDefinition").input_shape)
    assert not report.has_errors(), report.generate_report()
    done = without_a_database(rdsrepl, task["containerDefinitions"][0]["command"])
    assert done.code == 5, done.err


def test_the_event_and_the_result_of_the_page(invoke: Any, source: Database, kinesis: KinesisServer) -> None:
    event, result = (json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S))
    assert set(event) <= set(aws_lambda.KEYS)
    assert all(f"`{key}`" in PAGE for key in aws_lambda.KEYS)
    assert set(invoke(60.0, idle_exit="300ms")) == set(result)
