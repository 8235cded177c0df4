"""``slot lag``, ``check`` and ``watch`` report no false value: retained WAL, unknown values, failures."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rdsrepl.lsn import Lsn
from rdsrepl.retention import assessment, server_state
from rdsrepl.retention.thresholds import Severity
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.builders import slot
from tests.fixtures.builders import wal as a_wal
from tests.fixtures.lone_server import Place, start
from tests.fixtures.program import Program

GIB = 1 << 30


@pytest.fixture(scope="module")
def server18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    made = start(tmp_path_factory.mktemp("figures") / "pg", 18)
    yield made
    made.stop("immediate")
    made.remove()


@pytest.fixture
def place(server18: PostgresServer, rdsrepl: Program) -> Iterator[Place]:
    made = Place(server18, rdsrepl)
    yield made
    made.run("ALTER SYSTEM RESET idle_replication_slot_timeout", "SELECT pg_reload_conf()")
    made.drop_slots()


def setting(place: Place, value: str) -> None:
    place.run(f"ALTER SYSTEM SET idle_replication_slot_timeout = '{value}'", "SELECT pg_reload_conf()")
    deadline = time.monotonic() + 120
    while place.run("SHOW idle_replication_slot_timeout") != [(value,)]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write(place: Place, megabytes: int) -> None:
    place.run(
        f"SELECT count(pg_logical_emit_message(true, 'x', repeat('y', 1048576))) FROM generate_series(1, {megabytes})"
    )


def test_an_invalidated_slot_retains_nothing_and_is_not_blamed(place: Place) -> None:
    place.make("timed_out")
    write(place, 20)
    setting(place, "1s")
    deadline = time.monotonic() + 120
    while place.run("SELECT invalidation_reason FROM pg_replication_slots") != [("idle_timeout",)]:
        assert time.monotonic() < deadline
        place.run("CHECKPOINT")
        time.sleep(0.1)
    setting(place, "0")
    place.make("holds")
    write(place, 2)
    ((shown,),) = place.run("SELECT restart_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'timed_out'")
    assert shown, "the server shows its position all the same"
    place.run("SELECT pg_switch_wal()", "CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT")
    ((oldest,),) = place.run(
        "SELECT min(name) > (SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots "
        "WHERE slot_name = 'timed_out') FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'"
    )
    assert oldest, "and has removed that WAL"
    found = place.rdsrepl("slot", "lag", "-o", "json", "--free-space", "1GB", dsn=place.dsn).json
    by_name = {one["slot"]["slot_name"]: one for one in found["holdings"]}
    assert found["blamed"] == "holds" and by_name["timed_out"]["retained_bytes"] == 0
    assert by_name["timed_out"]["freed_bytes"] == 0 and by_name["timed_out"]["xid_age"] is None
    assert by_name["holds"]["freed_bytes"] == by_name["holds"]["retained_bytes"] > 0
    assert by_name["holds"]["shared_with"] is None
    row = re.search(r"^timed_out .*$", place.rdsrepl("slot", "list", dsn=place.dsn).out, re.MULTILINE)
    assert row is not None and " 0 B " in row[0]
    dropped = place.rdsrepl("slot", "drop", "timed_out", "--dry-run", dsn=place.dsn)
    assert "retains 0 B of WAL" in dropped.err and "its changes are already gone" in dropped.err


def test_forecast_of_the_idle_timeout(place: Place) -> None:
    place.make("away")
    place.run("SELECT pg_create_physical_replication_slot('standby_1', true)")
    setting(place, "1h")
    for verb in (("lag",), ("check",), ("watch", "--limit-looks", "1")):
        done = place.rdsrepl("slot", *verb, "-o", "json", dsn=place.dsn)
        document = done.json
        for one in document["slots" if verb[0] == "watch" else "holdings"]:
            (item,) = one["breaks"]
            assert item["what"] == "slot_invalidated" and 3500 < item["seconds"] <= 3600, verb
            assert "idle_replication_slot_timeout is 1h00m" in item["reason"]
        assert document["wal"]["idle_timeout_seconds"] == 3600
    assert re.search(r"away +.*invalidated in (59m|1h00m)", place.rdsrepl("slot", "lag", dsn=place.dsn).out)
    setting(place, "0")
    assert place.rdsrepl("slot", "lag", "-o", "json", dsn=place.dsn).json["holdings"][0]["breaks"] == []


def test_the_idle_timeout_ignores_synced_slots_and_short_absences() -> None:
    here = a_wal(idle_timeout_seconds=20 * 86400)
    (one,) = assessment.assess(here, [slot()]).holdings  # idle for 10 of 20 days
    assert [item.seconds for item in one.breaks] == [10 * 86400.0]
    soon = a_wal(idle_timeout_seconds=10 * 86400 + 1800)
    (one,) = assessment.assess(soon, [slot()]).holdings
    assert one.severity is Severity.CRITICAL and "invalidated in 30m" in one.reasons[0].text
    short = a_wal(idle_timeout_seconds=1800)
    moment = slot(inactive_since=here.at)
    (one,) = assessment.assess(short, [moment]).holdings
    assert one.breaks and one.severity is Severity.OK
    active = slot(active=True, inactive_since=None)
    copy = slot(synced=True)
    never = slot(restart_lsn=None)
    for spared, where in ((active, soon), (copy, a_wal(idle_timeout_seconds=60, in_recovery=True)), (never, soon)):
        (one,) = assessment.assess(where, [spared]).holdings
        assert one.breaks == ()


@pytest.mark.parametrize(
    "lost", [{"wal_status": "lost"}, {"invalidation_reason": "idle_timeout"}, {"conflicting": True}]
)
def test_an_invalidated_slot_retains_nothing_for_any_reason(lost: dict[str, Any]) -> None:
    gone = slot("gone", restart_lsn=Lsn(GIB), **lost)
    holds = slot("holds")
    assert gone.held_lsn is None and holds.held_lsn == Lsn(9 * GIB)
    assert assessment.freed_by_dropping(["holds"], [gone, holds], a_wal()) == (GIB, None)
    assert assessment.freed_by_dropping(["gone"], [gone, holds], a_wal()) == (0, None)
    assert assessment.to_observation(a_wal(), [gone]).slots[0].restart_lsn is None


def test_a_physical_slot_has_no_lag(place: Place) -> None:
    place.run(
        "SELECT pg_create_physical_replication_slot('standby_1', true)",
        "SELECT pg_create_physical_replication_slot('never_used')",
    )
    write(place, 3)
    found = {one["slot_name"]: one for one in place.rdsrepl("slot", "list", "-o", "json", dsn=place.dsn).json}
    assert found["standby_1"]["lag_bytes"] is None and found["standby_1"]["retained_bytes"] > 3_000_000
    assert found["never_used"]["lag_bytes"] is None and found["never_used"]["retained_bytes"] is None
    plain = place.rdsrepl("slot", "list", dsn=place.dsn).out
    assert re.search(r"^standby_1 +\(physical\) .*no +3\.\d MB +- ", plain, re.MULTILINE), plain
    assert re.search(r"^never_used +\(physical\) .*no +- +- ", plain, re.MULTILINE), plain
    shown = place.rdsrepl("slot", "show", "standby_1", dsn=place.dsn).out
    assert re.search(r"^lag +-$", shown, re.MULTILINE), shown
    (lag,) = place.rdsrepl("slot", "lag", "standby_1", "-o", "json", dsn=place.dsn).json["holdings"]
    assert lag["undelivered_bytes"] is None and lag["retained_bytes"] > 3_000_000


BAD = "host=127.0.0.1 port=1 dbname=x"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dsn", BAD, "slot", "check", "--nagios", "--no-such-option"), "has no option"),
        (("--dsn", BAD, "slot", "check", "--nagios", "--warn"), "--warn"),
        (("--dsn", BAD, "slot", "check", "--nagios", "--warn", "nothing=1"), "is not a threshold"),
        (("--dsn", BAD, "slot", "check", "--nagios", "--free-space", "lots"), "is not a size"),
        (("--dsn", BAD, "slot", "check", "--nagios", "--prometheus"), "exclude each other"),
        (("--dsn", BAD, "slot", "check", "--nagios"), "127.0.0.1"),
        (("--dsn", BAD, "slot", "check", "some_slot", "--nagios"), "127.0.0.1"),
        (("--dsn", BAD, "slot", "chek", "--nagios"), "has no command"),
        (("--dsn", "", "slot", "check", "--nagios"), "empty"),
        (("--no-such", "slot", "check", "--nagios"), "has no option"),
        (("-t", "nowhere", "slot", "check", "--nagios"), "nowhere"),
        (("-o", "xml", "slot", "check", "--nagios"), "xml"),
        (("-o", "json", "slot", "check", "--nagios", "--namespace", "x"), "--put-metric"),
    ],
)
def test_every_failure_with_nagios_is_unknown(rdsrepl: Program, words: tuple[str, ...], said: str) -> None:
    done = rdsrepl(*words)
    assert done.code == 3, (done.code, done.out, done.err)
    (line,) = done.out.splitlines()
    assert line.startswith("SLOTS UNKNOWN - ") and said in line and "|" not in line
    assert "Traceback" not in done.err


def test_an_encoding_without_a_character_is_no_error(place: Place) -> None:
    """Monitoring agents and cron jobs often run without a UTF-8 locale."""
    env = {**place.rdsrepl.env, "PYTHONIOENCODING": "ascii"}
    words = [*place.rdsrepl.command, "--dsn", place.dsn]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, *more], env=env, capture_output=True, text=True, timeout=120, check=False)

    gone = run("slot", "check", "\u00e9\U0001f600", "--nagios")
    assert (gone.returncode, gone.stderr) == (2, "")
    assert gone.stdout == "SLOTS CRITICAL - no replication slot \\u00e9\\ud83d\\ude00 on this server\n"
    error = run("slot", "show", "\u00e9\U0001f600", "-o", "json")
    without = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh"]
    closed = subprocess.run([*without, *words, "slot", "check", "missing", "--nagios"], env=env, check=False)
    assert closed.returncode == 2
    assert error.returncode == 3 and "\u00e9\U0001f600" in json.loads(error.stderr)["message"]


def test_a_config_error_and_a_defect_are_unknown_with_nagios(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = place.rdsrepl.home / "config.yaml"
    broken.write_text("targets: [")
    done = place.rdsrepl("slot", "check", "--nagios", "-t", "x", env={"RDSREPL_CONFIG": str(broken)})
    assert done.code == 3 and done.out.startswith("SLOTS UNKNOWN - ") and len(done.out.splitlines()) == 1

    def fail(*_: object, **__: object) -> None:
        raise KeyError("a | defect\nof ours")

    monkeypatch.setattr(server_state, "read", fail)
    done = place.rdsrepl("slot", "check", "--nagios", dsn=place.dsn)
    assert done.code == 3 and done.out.startswith("SLOTS UNKNOWN - KeyError: ") and len(done.out.splitlines()) == 1
    assert "|" not in done.out and "Traceback" in done.err
    monkeypatch.undo()
    good = place.rdsrepl("slot", "check", "--nagios", dsn=place.dsn)
    assert good.code == 0 and good.out.startswith("SLOTS OK")
    gone = place.rdsrepl("slot", "check", "--nagios", "missing", dsn=place.dsn)
    assert gone.code == 2 and gone.out == "SLOTS CRITICAL - no replication slot missing on this server\n"
    elsewhere = place.rdsrepl("slot", "check", "--nagios", "missing", dsn=place.dsn + " dbname=nowhere")
    assert elsewhere.code == 3, "a database that is not there says nothing of the slot"
    assert place.rdsrepl("slot", "check", "--nagios", "--help").code == 0
