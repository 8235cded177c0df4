"""``slot lag`` and ``slot check``: their output, their findings, and the formats for monitoring."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rdsrepl.cli.slot.check import check as check_command
from rdsrepl.errors import BadValue
from rdsrepl.retention import thresholds
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests import ROOT
from tests.fixtures.lone_server import Place
from tests.fixtures.program import Program


@pytest.fixture
def place(shared_server: PostgresServer, rdsrepl: Program) -> Iterator[Place]:
    made = Place(shared_server, rdsrepl)
    yield made
    made.drop_slots()


def write(place: Place, kilobytes: int) -> None:
    place.run(
        f"SELECT count(pg_logical_emit_message(true, 'x', repeat('y', 1024))) FROM generate_series(1, {kilobytes})"
    )


def lag(place: Place, *words: str, **more: Any) -> Any:
    return place.rdsrepl("slot", "lag", *words, dsn=place.dsn, **more)


def check(place: Place, *words: str, **more: Any) -> Any:
    return place.rdsrepl("slot", "check", *words, dsn=place.dsn, **more)


# Thresholds.


def test_a_given_threshold_removes_both_defaults_of_its_measure() -> None:
    warn, critical = thresholds.parse(["retained=200GB"], ["inactive=1d"])
    assert warn.retained_bytes == 200 << 30 and critical.retained_bytes is None
    assert warn.inactive_seconds is None and critical.inactive_seconds == 86400
    assert (
        critical.xid_age == thresholds.DEFAULT_CRITICAL.xid_age
        and warn.breaks_seconds == thresholds.DEFAULT_WARNING.breaks_seconds
    )


def test_several_thresholds_in_one_value_and_aliases() -> None:
    warn, critical = thresholds.parse(["retained=1GB, time-to-full=6h"], ["wal-status=lost,wal-status=unreserved"])
    assert warn.retained_bytes == 1 << 30 and warn.breaks_seconds == 6 * 3600
    assert critical.wal_status == {"lost", "unreserved"} and warn.wal_status == frozenset()


@pytest.mark.parametrize(
    ("warn", "critical", "said"),
    [
        (["retained"], [], "is not a threshold"),
        (["size=1GB"], [], "measures: retained"),
        (["retained=much"], [], "--warn retained: 'much' is not a size"),
        ([], ["time-to-break=soon"], "--critical time-to-break: 'soon' is not a duration"),
        ([], ["xid-age=1GB"], "is not a number of transactions"),
        ([], ["wal-status=gone"], "is not a wal_status"),
        (["retained=2GB"], ["retained=1GB"], "critical at 1.0 GB is reached before the warning at 2.0 GB"),
        (["time-to-break=1h"], ["time-to-full=2h"], "critical at 2h00m is reached before the warning at 1h00m"),
        (["retained=1GB", "retained=2GB"], [], "given twice"),
    ],
)
def test_invalid_thresholds(warn: list[str], critical: list[str], said: str) -> None:
    with pytest.raises(BadValue) as caught:
        thresholds.parse(warn, critical)
    assert said in f"{caught.value.message}; {caught.value.hint}"


def test_the_help_and_the_page_name_the_default_thresholds() -> None:
    """The defaults are in ``thresholds``; the help of ``slot check`` and docs/retention.md quote them."""
    rows = [row for row in (ROOT / "docs" / "retention.md").read_text().splitlines() if row.startswith("| `")]
    documented = {cells[1].split()[0].strip("`"): cells[2:4] for cells in (row.split("|") for row in rows)}
    help_text = " ".join((check_command.__doc__ or "").split())
    for measure, texts, words in (
        ("retained", ("10 GB", "100 GB"), "10 GB and 100 GB of WAL retained"),
        ("time-to-break", ("1 day", "1 hour"), "a failure forecast within a day and within an hour"),
        ("inactive", ("1 hour", ""), "inactive for an hour (warning only)"),
        ("xid-age", ("500,000,000", "1,000,000,000"), "held back by 500 million and by one billion transactions"),
    ):
        assert words in help_text
        field = thresholds.MEASURES[measure]
        for cell, text, defaults in zip(
            documented[measure], texts, (thresholds.DEFAULT_WARNING, thresholds.DEFAULT_CRITICAL), strict=True
        ):
            assert cell.strip() == text
            value = re.sub(r"[ ,]|(?<= [a-z])[a-z]+", "", text) or None
            assert getattr(defaults, field.field) == (None if value is None else field.parse(value))


# slot lag.


def test_retained_and_undelivered_wal_with_rates_and_forecasts(place: Place) -> None:
    place.make("behind")
    write(place, 2000)
    place.make("newer")
    first = lag(place)
    assert first.code == 0 and "no rate and no forecast yet" in first.err
    time.sleep(1.1)
    write(place, 500)
    done = lag(place, "-o", "json", "--free-space", "1GB")
    found = done.json
    behind = next(one for one in found["holdings"] if one["slot"]["slot_name"] == "behind")
    assert found["blamed"] == "behind" and found["wal_rate"]["source"] == "observed"
    assert behind["retained_bytes"] >= behind["undelivered_bytes"] > 2_000_000
    assert behind["shared_with"] == "newer" and 2_000_000 < behind["freed_bytes"] < behind["retained_bytes"]
    assert behind["growth"]["per_second"] > 10_000 and behind["delivery"]["per_second"] == 0
    (full,) = (item for item in behind["breaks"] if item["what"] == "storage_full")
    assert 0 < full["seconds"] < 1e6 and "--free-space" in full["reason"]
    assert found["recent"]["behind"][-1] == behind["retained_bytes"]
    table = lag(place)
    assert re.search(r"SLOT +RETAINED +UNDELIVERED +BEHIND +GROWS +BREAKS +LAST HOUR", table.out)
    assert (
        "behind retains the most: dropping it alone would free about" in table.out
        and "newer retains the rest" in table.out
    )
    one = lag(place, "behind", "--free-space", "1GB")
    for said in ("undelivered", "growth rate", "delivery rate", "disk full in", "if it is dropped", "none"):
        assert said in one.out, one.out


def test_pictures_and_pages(place: Place, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "lag.html"
    page.parent.mkdir()
    place.make("held")
    first = lag(place, "held", "--plot")
    assert first.code == 0 and "no history yet" in first.out and "run the command again later" in first.out
    write(place, 500)
    drawn = lag(place, "--plot", "--free-space", "50MB")
    assert "held: " in drawn.out and "retained" in drawn.out and "UTC" in drawn.out and "disk full at" in drawn.out
    assert max(map(len, drawn.out.splitlines())) <= 80 and "\x1b" not in drawn.out
    assert "⠤⠤ retained" in drawn.out and lag(place, "--plot", env={"LC_ALL": "C"}).out.isascii()
    done = lag(place, "--html", str(page))
    assert done.code == 0 and "RETAINED" in done.out and f"wrote {page}" in done.err
    assert page.stat().st_mode & 0o777 == 0o600 and "<svg" in page.read_text()
    page.chmod(0o644)
    assert lag(place, "held", "--html", str(page), "-o", "json").json["holdings"]
    assert page.stat().st_mode & 0o777 == 0o644 and list(page.parent.iterdir()) == [page]
    for name in ("b", "c", "d"):
        place.make(name)
    assert "1 more slot: rdsrepl " in lag(place, "--plot").out
    assert lag(place, "--html", "-", "--filter", "slot=held").out.count("<svg") == 1
    only = lag(place, "--html", "-")
    assert only.out.startswith("<!DOCTYPE html>") and only.out.endswith("</html>\n") and "held" in only.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html", "."], "is a directory"),
        (["--html", "/dev/null"], "is not a regular file"),
        (["--html", "no/such/file"], "does not exist"),
        (["--html", ""], "is a directory"),
        (["--html", "-", "-o", "json"], "both write to stdout"),
        (["--html", "-", "--watch"], "exclude each other"),
        (["--plot", "-o", "yaml"], "exclude each other"),
        (["--plot", "--query", "holdings"], "exclude each other"),
        (["--since", "1h"], "needs --plot or --html"),
        (["--plot", "--since", "0s"], "must be longer"),
    ],
)
def test_pictures_that_are_refused_before_a_connection(rdsrepl: Program, words: list[str], said: str) -> None:
    done = rdsrepl("slot", "lag", *words, dsn="host=192.0.2.1 connect_timeout=1")
    assert done.code == 2 and said in done.err, done.err


def test_a_slot_that_does_not_exist(place: Place) -> None:
    place.make("there")
    assert lag(place, "nowhere").code == 3
    assert check(place, "there", "nowhere").code == 3
    empty = lag(place, "there", "--interval", "1ms")
    assert empty.code == 2 and "too short" in empty.err


def test_watch_in_a_pipe_prints_repeatedly(place: Place) -> None:
    place.make("watched")
    process = place.rdsrepl.start(
        *("slot", "lag", "--watch", "--interval", "500ms"),
        dsn=place.dsn,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(8)]
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert sum(b"watched" in line for line in seen) >= 2 and b"Traceback" not in err + rest


def test_watch_on_a_terminal_refreshes_in_place(place: Place) -> None:
    place.make("watched")
    leader, follower = pty.openpty()
    env = {key: value for key, value in place.rdsrepl.env.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [*place.rdsrepl.command, "--dsn", place.dsn, "slot", "lag", "--watch", "--interval", "500ms"],
        stdin=follower, stdout=follower, stderr=follower, env={**env, "COLUMNS": "80"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        deadline = time.monotonic() + 120
        while shown.count(b"watched") < 3:
            assert time.monotonic() < deadline, shown
            shown += os.read(leader, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()
        os.close(leader)
    assert b"\x1b[1A" in shown or b"\x1b[2K" in shown, "drawn over, not below"


def test_the_number_of_statements_does_not_depend_on_the_slots(place: Place) -> None:
    place.run(
        "SELECT count(pg_create_logical_replication_slot('many_' || n, 'pgoutput')) FROM generate_series(1, 200) n"
    )
    real = psycopg.Connection.execute
    for words in (("list",), ("lag",), ("check",)):
        seen: list[str] = []

        def counted(self: Any, query: Any, *rest: Any, seen: list[str] = seen, **more: Any) -> Any:
            seen.append(str(query))
            return real(self, query, *rest, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(psycopg.Connection, "execute", counted)
            done = place.rdsrepl("slot", *words, dsn=place.dsn)
        assert done.code in (0, 8, 9) and 0 < len(seen) <= 5, (words, seen)


def test_slot_list_adds_a_sample(place: Place) -> None:
    place.make("seen")
    assert place.rdsrepl("slot", "list", dsn=place.dsn).code == 0
    (file,) = (place.rdsrepl.home / "state/rdsrepl/observations").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [row[0] for row in json.loads(file.read_text())["slots"]] == ["seen"]


def test_a_state_directory_that_is_not_writable_loses_only_the_history(place: Place, tmp_path: Path) -> None:
    place.make("seen")
    (tmp_path / "file").write_text("")
    for words in (("list",), ("lag",), ("check",)):
        done = place.rdsrepl("slot", *words, dsn=place.dsn, env={"RDSREPL_STATE_DIR": str(tmp_path / "file")})
        assert done.code == 0, done.err


# slot check.


def test_exit_codes_and_findings(place: Place) -> None:
    place.make("idle")
    assert check(place).code == 0
    write(place, 2000)
    warned = check(place, "--warn", "retained=1MB", "-o", "json")
    assert warned.code == 8 and warned.json["severity"] == "warning"
    (finding,) = warned.json["findings"]
    assert finding["slot_name"] == "idle" and finding["measure"] == "retained" and finding["severity"] == "warning"
    assert "of WAL retained" in finding["text"]
    bad = check(place, "--warn", "retained=1kB", "--critical", "retained=1MB", "idle")
    assert bad.code == 9 and re.search(r"idle +critical", bad.out)
    place.make("fresh")
    assert check(place, "fresh", "--critical", "retained=1MB").code == 0, "only what is named"


@pytest.mark.parametrize(
    "words",
    [
        ("--warn", "retained=2GB", "--critical", "retained=1GB"),
        ("--warn", "retained=2 parsecs"),
        ("--nagios", "--prometheus"),
        ("--namespace", "x"),
        ("--put-metric",),
        ("--nagios", "--warn", "nothing=1"),
    ],
)
def test_invalid_options_change_nothing(rdsrepl: Program, words: tuple[str, ...]) -> None:
    done = rdsrepl("slot", "check", *words, dsn="host=127.0.0.1 port=1 dbname=x")
    assert done.code == (3 if "--nagios" in words else 2), done.err


def test_nagios(place: Place) -> None:
    place.make("idle")
    good = check(place, "--nagios")
    assert good.code == 0 and good.out.startswith("SLOTS OK - 1 slot checked, all OK | 'idle_retained'=")
    write(place, 2000)
    bad = check(place, "--nagios", "--warn", "retained=1kB", "--critical", "retained=1MB")
    assert bad.code == 2 and bad.out.startswith("SLOTS CRITICAL - idle: ") and len(bad.out.splitlines()) == 1
    assert re.search(r"'idle_retained'=\d+B;1024;1048576;0", bad.out)
    assert check(place, "--nagios", "--warn", "retained=1MB").code == 1
    gone = check(place, "--nagios", "missing")
    assert gone.code == 2 and "SLOTS CRITICAL - no replication slot missing" in gone.out
    unknown = place.rdsrepl("slot", "check", "--nagios", dsn="host=127.0.0.1 port=1 dbname=x")
    assert unknown.code == 3 and unknown.out.startswith("SLOTS UNKNOWN - ") and "Traceback" not in unknown.err


def test_prometheus(place: Place) -> None:
    place.make("idle")
    write(place, 2000)
    done = check(place, "--prometheus", "--warn", "retained=1MB")
    assert done.code == 8
    samples = [sample for family in text_string_to_metric_families(done.out) for sample in family.samples]
    values = {sample.name: sample.value for sample in samples if sample.labels.get("slot") == "idle"}
    assert values["rdsrepl_slot_retained_bytes"] > 2_000_000 and values["rdsrepl_slot_active"] == 0
    assert values["rdsrepl_slot_severity"] == 1
    assert {tuple(sorted(sample.labels)) for sample in samples if sample.name == "rdsrepl_slot_active"} == {
        ("database", "plugin", "slot")
    }
