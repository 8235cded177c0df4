"""Commands that run unattended, and commands that are interrupted or killed and run again."""

from __future__ import annotations

import json
import pty
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rdsrepl import apply, errors
from rdsrepl.plan import AwsCall, Plan, Wait
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.sandbox import Cloud
from tests.fixtures.terminal import Terminal
from tests.fixtures.waiting import wait_until


def test_a_question_needs_a_terminal(rdsrepl: Program, db18: Database) -> None:
    """The refusal names the stream that is not a terminal."""
    command = [*rdsrepl.command, "--dsn", db18.dsn, "slot", "create", db18.name]
    ours, theirs = pty.openpty()
    with open(ours, "rb"), open(theirs, "rb") as terminal:  # noqa: PTH123
        for stdin, stream in ((subprocess.DEVNULL, "stdin"), (terminal, "stderr")):
            done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, env=rdsrepl.env, check=False)
            assert done.returncode == 4 and f"but {stream} is not a terminal; nothing was changed" in done.stderr


# Ctrl-C.


def interrupt(*_: object) -> Any:
    raise KeyboardInterrupt


def test_ctrl_c_at_a_prompt_changes_nothing(rdsrepl: Program, db18: Database) -> None:
    for words, question in (((), "Apply this plan"), (("-o", "json"), "Apply this plan")):
        person = Terminal(rdsrepl, "--dsn", db18.dsn, "slot", "create", db18.name, *words)
        person.wait_for(question)
        person.interrupt()
        assert person.wait() == 130
        assert "interrupted; nothing was changed" in person.seen
        if words:
            answer = json.loads(person.seen.strip().splitlines()[-1])
            assert answer == {
                "error": "interrupted",
                "message": "interrupted; nothing was changed",
                "hint": None,
                "exit_code": 130,
                "done": [],
                "not_done": [],
            }
    assert db18.value(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{db18.name}'") == 0


def test_ctrl_c_in_a_statement_and_between_the_steps_of_a_runbook(
    rdsrepl: Program, db18: Database, tmp_path: Path
) -> None:
    name = db18.name
    waiting = (
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock' "
        "AND query LIKE '%create_logical%'"
    )

    def stop(*words: str, number: int = signal.SIGINT) -> Any:
        process = rdsrepl.start(*words, "-o", "json", dsn=db18.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda: db18.value(waiting) == 1, "the creation waits")
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        return json.loads(err.splitlines()[-1])

    db18.run("CREATE TABLE public.t (id int PRIMARY KEY)")
    page = tmp_path / "two.md"
    make = "### {n}. Make {n}\n\n```sh change\nrdsrepl {what} --yes\n```\n".replace(" --yes", "")
    page.write_text(
        "---\nwhen: now\n---\n# Two\n\n## Checks first\n\n## Steps\n\n"
        + make.format(n=1, what="publication create p --table public.t")
        + make.format(n=2, what=f"slot create {name}")
        + "\n## Verify\n\n## Go back\n\nNothing.\n"
    )
    with closing(db18.connect()) as blocker:
        blocker.execute("BEGIN")
        blocker.execute("INSERT INTO t VALUES (1)")
        for number in (signal.SIGINT, signal.SIGTERM):
            answer = stop("slot", "create", name, "--yes", number=number)
            cancelled = "interrupted; the statement was cancelled, nothing was changed"
            assert answer["message"] == f"create replication slot {name}: {cancelled}", answer
        answer = stop("runbook", "run", str(page), "--yes")
        assert answer["error"] == "interrupted" and "step 2 of 2, make-2, interrupted" in answer["message"]
        assert (answer["done"], answer["not_done"]) == (["1. Make 1"], ["2. Make 2"])
        blocker.execute("ROLLBACK")
    assert db18.value(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'") == 0
    assert rdsrepl("runbook", "run", str(page), "--resume", "--yes", dsn=db18.dsn).code == 0


def test_ctrl_c_during_aws_calls_reports_what_is_done_and_what_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rdsrepl.aws import session
    from rdsrepl.config import Aws, Target

    monkeypatch.setattr(session, "call", lambda *_: {})
    target = Target("here", None, aws=Aws())
    calls = [
        AwsCall(f"make {n}", "rds", "CreateDBInstance", {"DBInstanceIdentifier": n}, effect="create")
        for n in ("a", "b")
    ]
    wait = Wait("wait until b is there", interrupt, 60)

    def run(*steps: Any, timing: apply.RetryTiming | None = None) -> errors.Interrupted:
        with pytest.raises(errors.Interrupted) as caught:
            apply.run(Plan("make", steps), target, done=lambda _: None, waiting=lambda *_: None, timing=timing)
        return caught.value

    # In a wait: the call was made, the wait has not ended.
    stopped = run(*calls, wait)
    continues = "wait until b is there: interrupted; AWS continues without this command"
    assert (stopped.done, stopped.not_done) == (["make a", "make b"], [continues])
    assert stopped.hint == apply.RUN_AGAIN
    # The same call again would reboot again.
    reboot = AwsCall("reboot b", "rds", "RebootDBInstance", {"DBInstanceIdentifier": "b"}, effect="change")
    assert run(reboot, wait).hint == "only waits are missing; to see the state: rdsrepl instance show b"
    assert run(wait).message == "make: interrupted; nothing was changed"

    # In the pause before a retry: the call is not made.
    def busy(*_: object) -> Any:
        raise errors.AwsError("in-progress management operation", aws_code="InvalidDBInstanceState")

    monkeypatch.setattr(session, "call", busy)
    assert run(calls[0], timing=apply.RetryTiming(sleep=interrupt)).message == "make: interrupted; nothing was changed"
    # During the call itself, the result is unknown.
    monkeypatch.setattr(session, "call", interrupt)
    stopped = run(calls[0])
    assert stopped.not_done == ["make a: interrupted; whether it was done is unknown"]


# Run again.


def killed_after(steps: int, words: tuple[str, ...], program: Program, **where: Any) -> None:
    """Run a command in a process that is killed at the start of the step after that many steps."""
    code = (
        "import os, signal, sys\n"
        "from rdsrepl.apply import runner\n"
        "real, begun = runner._step, []\n"
        "def step(*words):\n"
        "    begun.append(1)\n"
        f"    if len(begun) > {steps}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*words)\n"
        "runner._step = step\n"
        "sys.argv[:] = ['rdsrepl', *sys.argv[1:]]\n"
        "from rdsrepl.__main__ import run; run()\n"
    )
    env = {**program.env, **({"RDSREPL_DSN": where["dsn"]} if "dsn" in where else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_sql_commands_converge_after_a_kill(rdsrepl: Program, db18: Database) -> None:
    name = db18.name
    db18.run(
        "CREATE TABLE public.t (id int PRIMARY KEY, v int)",
        "CREATE SCHEMA s",
        "CREATE TABLE s.u (id int PRIMARY KEY)",
        "DO $$ BEGIN CREATE ROLE rds_replication; EXCEPTION WHEN duplicate_object THEN END $$",
    )

    def run(*words: str) -> Any:
        return rdsrepl(*words, "--yes", "-o", "json", dsn=db18.dsn)

    def differs(text: str, *words: str) -> None:
        done = run(*words)
        assert (done.code, done.error["error"]) == (4, "already_exists"), done.err
        assert text in done.error["message"]

    try:
        role = ("role", "create", name, "--generate-password", "--schema", "s")
        planned = len(rdsrepl(*role, "--dry-run", "-o", "json", dsn=db18.dsn).json["steps"])
        for steps in range(1, planned):
            killed_after(steps, (*role, "--yes"), rdsrepl, dsn=db18.dsn)
            again = run(*role)
            assert again.code == 0, again.err
            assert again.json["status"] == "applied" and "password" not in again.json
            assert "its password does not change" in again.json["warnings"][0]
            assert len(again.json["steps"]) == planned - steps
            assert run(*role).json["status"] == "unchanged"
            assert run("role", "drop", name).code == 0
        assert len(run(*role).json["password"]) == 32

        for words, others in (
            (
                ("publication", "create", "p", "--table", "public.t", "--columns", "public.t=id"),
                {
                    "public.t is in it with columns id": ("--table", "public.t"),
                    "without s.u": ("--table", "s.u"),
                    "with 1 more": ("--schema", "s"),
                    "all tables is False, not True": ("--all-tables",),
                    "publish is insert, update, delete, truncate, not insert": (
                        "--table", "public.t", "--columns", "public.t=id", "--publish", "insert",
                    ),
                },
            ),
            (
                ("publication", "create", "w", "--table", "s.u", "--where", "s.u: id > 1"),
                {"rows WHERE": ("--table", "s.u")},
            ),
            (("publication", "create", "every", "--all-tables"), {"all tables is True": ("--schema", "s")}),
            (("publication", "create", "schema", "--schema", "s"), {"schemas is s, not none": ("--table", "s.u")}),
            (
                ("slot", "create", name),
                {"two_phase is False, not True": ("--two-phase",), "failover is False, not True": ("--failover",)},
            ),
        ):  # fmt: skip
            assert run(*words).json["status"] == "applied"
            assert run(*words).json["status"] == "unchanged"
            for text, other in others.items():
                differs(text, *words[:3], *other)

        # A slot that is active is not the one that this command would create.
        with closing(psycopg.connect(f"{db18.dsn} replication=database")) as reader:
            start = f"START_REPLICATION SLOT {name} LOGICAL 0/0 (proto_version '1', publication_names 'p')"
            reader.pgconn.send_query(start.encode())
            wait_until(
                lambda: db18.value(f"SELECT active FROM pg_replication_slots WHERE slot_name = '{name}'"),
                "the slot is active",
            )
            differs("state is in use by PID", "slot", "create", name)
    finally:
        wait_until(lambda: rdsrepl("slot", "drop", name, "--yes", dsn=db18.dsn).code in (0, 3), "its reader is gone")
        run("role", "drop", name)


def test_aws_commands_converge_after_a_kill(cloud: Cloud, own_password: tuple[str, str]) -> None:
    cloud.delays()
    single = ("db.r6g.large", "--engine-version", "16")

    def run(*words: str) -> Any:
        return cloud(*words, "--yes", "-o", "json")

    def converges(words: tuple[str, ...], kill_after: tuple[int, ...], **others: tuple[str, ...]) -> None:
        for steps in kill_after:
            killed_after(steps, (*words, "--yes"), cloud.program)
            again = run(*words)
            assert again.code == 0, again.err
            assert again.json["status"] in ("applied", "unchanged")
            assert run(*words).json["status"] == "unchanged"
        for attribute, other in others.items():
            taken = run(*words, *other)
            assert (taken.code, taken.error["error"]) == (4, "already_exists"), taken.err
            assert f"{attribute.replace('_', ' ')} is " in taken.error["message"]

    try:
        converges(("stream", "create", "again"), (1,), mode=("--shards", "3"), record_size=("--record-size", "2048"))
        found = cloud("cluster", "show", "sandbox", "-o", "json").json["cluster"]
        cluster = ("cluster", "create", "sandbox", "--class", found["instance_class"])
        cluster += ("--storage", str(found["allocated_storage_gib"]), "--storage-type", found["storage_type"])
        cluster += ("--iops", str(found["iops"])) if found["iops"] else ()
        cluster += ("--master-user", found["master_user"])
        others = {"master_user": ("--master-user", "other"), "version": ("--engine-version", "12")}
        converges(cluster, (), **others, first_database=("--dbname", "other"))
        assert run(*cluster).json["status"] == "unchanged"
        source = ("instance", "create", "again-1x", "--class", *single, "--storage", "20", *own_password)
        converges(source, (1,), **{"class": ("--class", "db.r6g.xlarge")}, storage=("--storage", "30"))
        cloud.client("rds").create_db_parameter_group(
            DBParameterGroupName="again-group", DBParameterGroupFamily="postgres16", Description="empty: no reboot"
        )
        replica = ("instance", "create", "again-r", "--class", "db.r6g.large", "--replica-of", "again-1x")
        converges((*replica, "--param-group", "again-group"), (3,), source=("--replica-of", "again"))
    finally:
        cloud("stream", "delete", "again", "--confirm", "again")
        for name in ("again-r", "again-1x"):
            cloud("instance", "delete", name, "--skip-final-snapshot", "--confirm", name)
        cloud("param-group", "delete", "again-group", "--yes")


# Go back.


def test_go_back_lists_only_what_the_run_made(rdsrepl: Program, db18: Database, tmp_path: Path) -> None:
    name = db18.name
    db18.run("CREATE TABLE public.t (id int PRIMARY KEY)")
    page = tmp_path / "mine.md"

    def write(undoes: str = "make-the-slot") -> str:
        page.write_text(
            "---\nwhen: now\nvariables:\n  other: {help: a slot, type: slot, default: missing}\n---\n# Mine\n\n"
            "## Checks first\n\n## Steps\n\n"
            "### 1. Make the publication\n\n```sh change\nrdsrepl publication create p --table public.t\n```\n\n"
            f"### 2. Make the slot\n\n```sh change\nrdsrepl slot create {name}\n```\n\n"
            "## Verify\n\n### 3. See\n\n```sh check\nrdsrepl slot show \"$OTHER\"\n```\n\n"
            "## Go back\n\nStop it.\n\n"
            f"```sh made={undoes}\nrdsrepl slot drop {name}\n```\n\n"
            "```sh made=make-the-publication\nrdsrepl publication drop p\n```\n\nTell a colleague.\n"
        )  # fmt: skip
        return str(page)

    bad = rdsrepl("runbook", "show", write("make-it"))
    assert bad.code == 2 and "mine.md:36: made=make-it: the step does not exist" in bad.err
    assert rdsrepl("publication", "create", "p", "--table", "public.t", "--yes", dsn=db18.dsn).code == 0
    run = ("runbook", "run", write(), "--yes")
    stopped = rdsrepl(*run, dsn=db18.dsn)
    assert stopped.code == 6
    back = stopped.err[stopped.err.index("Go back:") :]
    assert f" slot drop {name}" in back and "publication drop" not in back
    assert "Stop it." in back and "Tell a colleague." in back
    # The resumed run created nothing; what the previous run created is still listed.
    resumed = rdsrepl(*run, "--resume", dsn=db18.dsn)
    assert resumed.code == 6 and f" slot drop {name}" in resumed.err
    # For a new run, everything exists already.
    assert "Go back:" not in rdsrepl(*run, dsn=db18.dsn).err
