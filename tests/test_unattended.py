"""What runs without anybody at it, and what is stopped half way: interrupted, killed, run again."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rdsrepl import apply, errors
from rdsrepl.plan import AwsCall, Plan, Wait
from tests.conftest import Cloud, Database, Program
from tests.test_runbook_engine import Person
from tests.test_tail_delivery import until

# Ctrl-C.


def interrupt(*_: object) -> Any:
    raise KeyboardInterrupt


def test_ctrl_c_at_a_prompt_changes_nothing(rdsrepl: Program, db18: Database) -> None:
    for words, question in (((), "Apply this plan"), (("-o", "json"), "Apply this plan")):
        person = Person(rdsrepl, "--dsn", db18.dsn, "slot", "create", db18.name, *words)
        person.wait_for(question)
        person.process.send_signal(signal.SIGINT)
        assert person.leave() == 130
        assert "interrupted; nothing was changed" in person.seen
        if words:
            said = json.loads(person.seen.strip().splitlines()[-1])
            assert said == {
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

    def stop(*words: str) -> Any:
        process = rdsrepl.start(*words, "-o", "json", dsn=db18.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: db18.value(waiting) == 1, "the creation waits")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
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
        said = stop("slot", "create", name, "--yes")
        assert said["message"] == f"create replication slot {name}: interrupted; nothing was changed"
        said = stop("runbook", "run", str(page), "--yes")
        assert said["error"] == "interrupted" and "step 2 of 2, make-2, interrupted" in said["message"]
        assert (said["done"], said["not_done"]) == (["1. Make 1"], ["2. Make 2"])
        blocker.execute("ROLLBACK")
    assert db18.value(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'") == 0
    assert rdsrepl("runbook", "run", str(page), "--resume", "--yes", dsn=db18.dsn).code == 0


def test_ctrl_c_among_aws_calls_says_what_is_done_and_what_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rdsrepl.aws import session
    from rdsrepl.config import Aws, Target

    monkeypatch.setattr(session, "call", lambda *_: {})
    target = Target("here", None, aws=Aws())
    calls = [AwsCall(f"make {n}", "rds", "CreateDBInstance", {"DBInstanceIdentifier": n}) for n in ("a", "b")]
    wait = Wait("wait until b is there", interrupt, 60)

    def run(*steps: Any, pace: apply.Pace | None = None) -> errors.Interrupted:
        with pytest.raises(errors.Interrupted) as caught:
            apply.run(Plan("make", steps), target, done=lambda _: None, waiting=lambda *_: None, pace=pace)
        return caught.value

    # In a wait: what was done is done, the wait is not.
    stopped = run(*calls, wait)
    assert (stopped.done, stopped.not_done) == (["make a", "make b"], ["wait until b is there: interrupted"])
    assert stopped.hint is not None and "run the command again" in stopped.hint
    assert run(wait).message == "make: interrupted; nothing was changed"

    # In the pause before a call is made again: it is not made.
    def busy(*_: object) -> Any:
        raise errors.AwsError("in-progress management operation", aws_code="InvalidDBInstanceState")

    monkeypatch.setattr(session, "call", busy)
    assert run(calls[0], pace=apply.Pace(sleep=interrupt)).message == "make: interrupted; nothing was changed"
    # In the call itself nobody knows.
    monkeypatch.setattr(session, "call", interrupt)
    stopped = run(calls[0])
    assert stopped.not_done == ["make a: interrupted, and it is not known whether it was done"]
