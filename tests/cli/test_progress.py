"""What a command shows while it waits."""

from __future__ import annotations

import io
import re
import subprocess
import threading
from contextlib import closing

import pytest
from typer import Context
from typer.main import get_command

from rdsrepl.apply import Blocker
from rdsrepl.cli.context import GlobalOptions
from rdsrepl.cli.main import app
from rdsrepl.cli.progress import StateLines, wait_rows
from rdsrepl.cli.slot.tail_progress import ProgressReporter
from rdsrepl.config import Target
from rdsrepl.lsn import Lsn
from rdsrepl.tail.progress import Progress
from rdsrepl.tail.wal_position import WalPositionPoller
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.terminal import Terminal

SESSION = Blocker("PID 4711", "app", "psql", "idle in transaction", 182, "INSERT INTO orders\n  SELECT 1, 2, 3")
LONG = Blocker(
    "PID 2147483647", "u" * 63, "日本語" * 10, "idle in transaction (aborted)", 1e6, "SELECT '\x1b[2J" + "1, " * 300
)


def test_the_rows_of_a_wait() -> None:
    assert wait_rows("create slot orders", 12, [SESSION], (80, 24)) == [
        "create slot orders: waiting (12.0s) for:",
        "  PID 4711, user app, application psql, idle in transaction, transaction",
        "  3m02s old: INSERT INTO orders SELECT 1, 2, 3",
    ]
    assert wait_rows("wait until orders is available", 61, ["modifying"], (80, 24)) == [
        "wait until orders is available: modifying (1m01s)"
    ]
    state = "writer modifying, 1 of 3 members in-sync, orders-2 rebooting"
    assert wait_rows("wait until cluster orders is available", 61, [state], (80, 24)) == [
        "wait until cluster orders is available (1m01s)",
        f"  {state}",
    ]
    assert wait_rows("sampling the slots", 3, [], (80, 24)) == ["sampling the slots (3.0s)"]


def test_a_note_of_another_thread_does_not_stand_in_the_rows_of_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

        def flush(self) -> None:
            if not started.is_set():
                started.set()
                thread.start()  # the heartbeat's, for example, while the rows are drawn
                thread.join(0.1)

    ctx = Context(get_command(app))
    ctx.obj = GlobalOptions(no_color=True)
    screen, started = Screen(), threading.Event()
    monkeypatch.setattr("sys.stderr", screen)
    watch = WalPositionPoller(Target(label="db"))
    watch.stop()
    reporter = ProgressReporter(ctx, watch)
    monkeypatch.setattr(reporter, "_interval_seconds", 0.0)
    thread = threading.Thread(target=reporter.note, args=("heartbeat: refused; retrying",))
    reporter.progress(Progress(1, 1, Lsn(1), Lsn(1), 1.0, 0))
    thread.join()
    drawn, _, rest = screen.getvalue().rpartition("\x1b[J")
    assert "1 change," in drawn, "the rows are erased before the note"
    assert rest == "heartbeat: refused; retrying\n"


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_row_is_cut_or_wider_than_the_terminal(columns: int) -> None:
    from rich.cells import cell_len

    rows = wait_rows("create slot " + "s" * 63, 12, [LONG, SESSION], (columns, 24))
    assert all(cell_len(row) <= columns - 3 for row in rows)
    text = re.sub(r"\s", "", "".join(rows))
    for part in (LONG.about, SESSION.about, "s" * 63):
        assert re.sub(r"\s", "", part) in text
    assert "\x1b" not in text and r"SELECT'\x1b[2J1,1" in text and "..." in text
    # No more rows than the screen has: the cursor is in the last one.
    crowd = wait_rows("create slot orders", 12, [SESSION] * 50, (columns, 10))
    assert len(crowd) <= 9 and re.fullmatch(r"  and \d\d more", crowd[-1])


def test_lines_without_a_terminal() -> None:
    """At most one every 30 seconds, with what changed since the line before; an age that grows is no change."""

    def printed(*states: str | Blocker) -> list[str]:
        lines = StateLines()
        found = [lines.line("wait", second, [state]) for second, state in enumerate(states, 1)]
        return [line for line in found if line is not None]

    assert printed(*["a", "b"] * 30) == ["wait: a (1.0s)", "wait: b; then a (31.0s)"]
    ages = [Blocker("PID 1", age_seconds=age) for age in range(45)]
    assert printed(*ages) == [
        "wait: waiting for PID 1, transaction 0.0s old (1.0s)",
        "wait: waiting for PID 1, transaction 30.0s old (31.0s)",
    ]
    assert printed("a", *["b"] * 5, *["c"] * 30) == ["wait: a (1.0s)", "wait: b; then c (31.0s)"]
    assert printed(*[f"{n}%" for n in range(31)])[1] == "wait: 28%; then 29%; then 30% (31.0s)"


def test_a_blocker_on_a_terminal(rdsrepl: Program, db18: Database) -> None:
    db18.run("CREATE TABLE t (v text)")
    with closing(db18.connect()) as holder:
        pid = holder.info.backend_pid
        holder.execute("SET application_name = 'a long application name of a batch job in the shop'")
        holder.execute("BEGIN")
        holder.execute("INSERT INTO t VALUES ('some text that is long enough to be shortened at its end')")
        person = Terminal(rdsrepl, "--dsn", db18.dsn, "slot", "create", db18.name, "--yes", columns=80)
        person.wait_for(f"create logical replication slot {db18.name} (pgoutput): waiting (")
        shown = person.wait_for("\x1b[J")  # until it is drawn again
        person.interrupt()
        assert person.wait() == 130
    rows = shown.split("\x1b[")[0].split("\n")
    assert len(rows) == int(shown.split("\x1b[")[-2].removesuffix("A")) + 1, "the cursor returns to the first row"
    assert all(len(row) < 80 for row in rows[1:])
    text = " ".join(shown.split())
    assert f"for: PID {pid}, user " in text and "transaction, transaction " in text
    assert "application a long application name of a batch job in the shop, idle in" in text
    assert re.search(r"old:? INSERT INTO t VALUES", text)
    assert "waiting" not in person.seen.split("\x1b[J")[-1], "the rows are removed before the error"


def test_every_statement_names_the_locks_that_it_waits_for(rdsrepl: Program, db18: Database) -> None:
    db18.run("CREATE TABLE t (v text)")
    with closing(db18.connect()) as holder:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        process = rdsrepl.start(
            "publication", "create", "p", "--table", "t", "--yes", dsn=db18.dsn, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        wanted = f"waiting for PID {holder.info.backend_pid}, user "
        assert any(wanted in line.decode() and "LOCK TABLE t" in line.decode() for line in process.stderr)
        holder.execute("COMMIT")
        process.stderr.read()
        process.stderr.close()
    assert process.wait(timeout=60) == 0
