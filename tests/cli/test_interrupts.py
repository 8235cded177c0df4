"""Ctrl-C and SIGTERM: what the program says, and that a second one ends it at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest
from psycopg import sql

from rdsrepl import apply, config, errors
from rdsrepl.plan import Plan, Statement
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.terminal import Terminal
from tests.fixtures.waiting import wait_until

_WAITS = """
import sys, time
from rdsrepl.cli import interrupts
interrupts.install(ctrl_c=True)
try:
    print(flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print(flush=True)
    time.sleep(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("seconds", "signals", "code"),
    [
        (60, (signal.SIGINT, signal.SIGINT), 130),
        (60, (signal.SIGTERM, signal.SIGINT), 130),
        # `timeout` sends SIGTERM to the process and to its group: one request.
        (2, (signal.SIGTERM, signal.SIGTERM), 0),
    ],
)
def test_a_second_interrupt_ends_the_program_at_once(seconds: int, signals: tuple[int, int], code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _WAITS, str(seconds)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for number in signals:
            process.stdout.readline()
            process.send_signal(number)
        assert process.wait(timeout=30) == code


def test_a_password_prompt(rdsrepl: Program, db18: Database) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        person = Terminal(rdsrepl, "--dsn", db18.dsn, "role", "create", f"r_{db18.name}")
        person.wait_for(f"Password for role r_{db18.name}: ")
        person.process.send_signal(number)
        assert person.wait() == 130
        assert "error: interrupted; nothing was changed" in person.seen.splitlines()[-1]
        assert person.seen.startswith("\n")  # not behind the question


def mark(number: int) -> Statement:
    text = "INSERT INTO public.marks SELECT {0} FROM (SELECT pg_catalog.pg_advisory_xact_lock({0})) one"
    return Statement(f"mark {number}", sql.SQL(text).format(sql.Literal(number)), effect="change")


def test_between_two_steps(db18: Database) -> None:
    """The interrupt comes while the result of a step is printed."""
    db18.run("CREATE TABLE marks (n int)")

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    def run(*steps: Statement) -> errors.Interrupted:
        with pytest.raises(errors.Interrupted) as caught:
            target = config.Target("here", db18.dsn)
            apply.run(Plan("mark", steps), target, done=interrupt, waiting=lambda *_: None)
        assert db18.run("DELETE FROM marks RETURNING n") == [(1,)]
        return caught.value

    assert (run(mark(1), mark(2)).done, run(mark(1), mark(2)).not_done) == (["mark 1"], ["mark 2: not started"])
    assert "all steps are done" in run(mark(1)).message


def test_a_statement_that_was_committed_before_it_could_be_cancelled(db18: Database) -> None:
    """The steps after it are not started; after the last step the exit code still stops a script."""
    db18.run("CREATE TABLE marks (n int)")

    def run(*steps: Statement) -> errors.Interrupted:
        with closing(db18.connect()) as holder:
            holder.execute("SELECT pg_advisory_lock(1)")

            def interrupt_too_late(*_: Any) -> None:
                holder.execute("SELECT pg_advisory_unlock(1)")
                wait_until(lambda: db18.value("SELECT count(*) FROM marks") == 1, "the statement is committed")
                raise KeyboardInterrupt

            with pytest.raises(errors.Interrupted) as caught:
                apply.run(
                    Plan("mark", steps),
                    config.Target("here", db18.dsn),
                    done=lambda _: None,
                    waiting=interrupt_too_late,
                )
        assert db18.run("DELETE FROM marks RETURNING n") == [(1,)]
        return caught.value

    last = run(mark(1))
    assert "done before it could be cancelled; all steps are done" in last.message
    assert (last.done, last.not_done, int(last.exit_code)) == (["mark 1"], [], 130)
    first = run(mark(1), mark(2))
    assert (first.done, first.not_done) == (["mark 1"], ["mark 2: not started"])


def test_a_cancelled_statement_is_checked_where_it_can_have_worked(db18: Database) -> None:
    """The drop of a slot is not part of a transaction: it can be done although the statement was cancelled."""
    slot = f"s_{db18.name}"
    db18.run(f"SELECT pg_create_physical_replication_slot('{slot}')")
    is_gone = f"SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}')"
    drop = f"SELECT pg_catalog.pg_drop_replication_slot('{slot}'), pg_catalog.pg_sleep(60)"

    def run(text: str) -> errors.Interrupted:
        def interrupt(*_: object) -> None:
            wait_until(lambda: db18.value(is_gone) == (text == drop), "it sleeps")
            raise KeyboardInterrupt

        step = Statement("drop it", sql.SQL(text), done_if=sql.SQL(is_gone), effect="drop")  # type: ignore[arg-type]
        with pytest.raises(errors.Interrupted) as caught:
            target = config.Target("here", db18.dsn)
            apply.run(Plan("drop", (step,)), target, done=lambda _: None, waiting=interrupt)
        return caught.value

    assert run("SELECT pg_catalog.pg_sleep(60)").message.endswith("the statement was cancelled, nothing was changed")
    assert run(drop).done == ["drop it"]
