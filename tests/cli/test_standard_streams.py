"""Standard output and standard error that are closed, full, or not read to the end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fixtures.postgres import Database
from tests.fixtures.program import Program


def shell(rdsrepl: Program, line: str, **variables: str) -> tuple[int, str, str]:
    """Run a shell line that calls ``rdsrepl``; return the exit code of its first command, its output and its errors."""
    run = subprocess.run(
        ["bash", "-c", f'rdsrepl() {{ $PROGRAM "$@"; }}; {line}; exit "${{PIPESTATUS[0]}}"'],
        env={**rdsrepl.env, "PROGRAM": " ".join(rdsrepl.command), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr


def test_a_reader_that_ends_early_gets_no_message(rdsrepl: Program, db18: Database) -> None:
    db18.run("SELECT pg_create_logical_replication_slot('s_' || n, 'pgoutput') FROM generate_series(1, 3) n")
    for words in ("slot list", "-o json slot list", "--help"):
        assert shell(rdsrepl, f"rdsrepl {words} | true", RDSREPL_DSN=db18.dsn) == (141, "", ""), words
    # The answer of a monitoring plugin is its exit code.
    assert shell(rdsrepl, "rdsrepl slot check --nagios | true", RDSREPL_DSN="port=1 host=127.0.0.1")[0] == 3


def test_a_plan_is_applied_when_its_progress_is_not_read(rdsrepl: Program, db18: Database) -> None:
    db18.run("CREATE TABLE t (id int PRIMARY KEY)")
    line = "rdsrepl publication create p_{} --table t --yes"
    for number, end in enumerate(("2>&1 >/dev/null | true", "2>/dev/full", ">&- 2>&-", "| true")):
        code, _, err = shell(rdsrepl, f"{line.format(number)} {end}", RDSREPL_DSN=db18.dsn)
        assert (code, "rror" in err) == (141 if end == "| true" else 0, False), (end, err)
        assert db18.run(f"SELECT FROM pg_publication WHERE pubname = 'p_{number}'") == [()], end


def test_a_generated_password_that_is_not_read_is_not_lost_silently(rdsrepl: Program, db18: Database) -> None:
    role = f"r_{db18.name}"
    for end, code in (("| true", 141), (">/dev/full", 1)):
        line = f"rdsrepl role create {role}{code} --generate-password --yes {end}"
        found, out, err = shell(rdsrepl, line, RDSREPL_DSN=db18.dsn)
        assert (found, out) == (code, ""), err
        assert f"warning: create role {role}{code} is done, but the password could not be printed; set another" in err


def test_a_runbook_continues_when_its_output_is_not_read(rdsrepl: Program, db18: Database, tmp_path: Path) -> None:
    db18.run("CREATE TABLE t (id int PRIMARY KEY)")
    page = tmp_path / "book.md"
    steps = [f"### {n}. Make {n}\n\n```sh change\nrdsrepl publication create p{n} --table t\n```\n" for n in (1, 2)]
    page.write_text(
        "---\nwhen: now\n---\n# Book\n\n## Checks first\n\n## Steps\n\n"
        + "\n".join(steps)
        + "\n## Verify\n\n## Go back\n\nNothing.\n"
    )
    code, _, err = shell(rdsrepl, f"rdsrepl runbook run {page} --yes | true", RDSREPL_DSN=db18.dsn)
    assert code == 0, err
    assert err.count("warning: the reader closed standard output; the run continues") == 1
    assert db18.value("SELECT count(*) FROM pg_publication") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error(rdsrepl: Program) -> None:
    message = "could not write to standard output: No space left on device"
    code, _, err = shell(rdsrepl, "rdsrepl --help > /dev/full")
    assert (code, err.splitlines()[0]) == (1, f"error: {message}")
    code, _, err = shell(rdsrepl, "rdsrepl config path -o json > /dev/full")
    assert code == 1 and err.startswith('{"error": "sink_failed", "message": "' + message)
