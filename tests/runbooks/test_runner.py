"""Runbooks: the format of a page, a run, and how a stopped run is resumed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.main import app
from rdsrepl.errors import BadPage
from rdsrepl.runbooks import commands, model, pages, parser
from rdsrepl.runbooks.model import StepKind
from rdsrepl.runbooks.run_request import RunTarget
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program, Result
from tests.fixtures.steps import steps_in_process
from tests.fixtures.terminal import Terminal
from tests.fixtures.waiting import wait_until

HEAD = """---
when: now
variables:
  slot: {help: the slot, type: slot}
  other: {help: any words, default: ""}
---
# A page

## Checks first

### 1. Look

Which slots there are.

```sh check
rdsrepl slot list
```

## Steps
"""
TAIL = """
## Verify

### {n}. See it

```sh check
rdsrepl slot show "$SLOT"
```

```text expect
slot_name $SLOT
```

## Go back

Drop "$SLOT".
"""
MAKE = """
### {n}. Make it

```sh change
rdsrepl slot create "$SLOT" --plugin pgoutput
```
"""
NEED = """
### {n}. Needs another

```sh check
rdsrepl slot show needed
```
"""


def page(*steps: str) -> str:
    return HEAD + "".join(step.replace("{n}", str(number)) for number, step in enumerate((*steps, TAIL), 2))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a page; return its path."""

    def write(*steps: str) -> str:
        path = tmp_path / "mine.md"
        path.write_text(page(*steps))
        return str(path)

    return write


@pytest.fixture
def in_process() -> Iterator[None]:
    """Run the steps in this process, in tests that are about their order."""
    with steps_in_process():
        yield


@pytest.fixture
def name(db18: Database) -> str:
    return f"s_{db18.name}"


def journals(program: Program) -> list[list[Any]]:
    found = sorted((Path(program.env["XDG_STATE_HOME"]) / "rdsrepl" / "runbooks").glob("*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in found]


def ended(done: Result) -> dict[str, str]:
    return {line["step"]: line["status"] for line in done.lines}


# The format of a page.


def replaced(old: str, new: str) -> str:
    text = page(MAKE)
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("# No front matter\n", 1, "the front matter is missing"),
        (replaced("when: now", "when: [a"), 3, "not YAML"),
        (replaced("when: now\n", ""), 1, "the key when is missing"),
        (replaced("when: now", "when: now\nwhat: else"), 3, "unknown key 'what'"),
        (replaced("when: now", "when: now\nneeds: luck"), 3, "needs"),
        (replaced("type: slot", "type: snot"), 4, "unknown type 'snot'"),
        (replaced("help: the slot, ", ""), 4, "the key help is missing"),
        (replaced('default: ""', 'default: "-v"'), 5, "default"),
        (replaced("{help: the slot, type: slot}", "[]"), 4, "not a mapping"),
        (replaced("# A page", "A page"), 41, "the title is missing"),
        (replaced("## Checks first", "## Firstly"), 9, "Firstly"),
        (replaced("## Verify", "## Check"), 27, "Check"),
        (replaced("### 2. Make it", "### 3. Make it"), 21, "is not a step"),
        (replaced("```sh check\n", "```sh look\n"), 15, "unknown kind of step"),
        (replaced("```sh change", "```sh change exit=x"), 23, "exit=x"),
        (replaced("```sh change", "```sh change only=aurora"), 23, "only=aurora"),
        (replaced("```sh change", "```sh change with=more"), 23, "with=more"),
        (replaced("```sh change", "```bash"), 23, "unknown block 'bash'"),
        (replaced("rdsrepl slot list", "psql -c x"), 16, "another program"),
        (replaced("rdsrepl slot list", "rdsrepl slot list | tail -1"), 16, "| requires a shell"),
        (replaced("rdsrepl slot list", "rdsrepl slot list > out"), 16, "> requires a shell"),
        (replaced("rdsrepl slot list", "rdsrepl slot show $(id)"), 16, "requires quotes"),
        (replaced("rdsrepl slot list", 'rdsrepl slot show "$(id)"'), 16, "is not a variable"),
        (replaced("rdsrepl slot list", "rdsrepl slot show `id`"), 16, "requires a shell"),
        (replaced("rdsrepl slot list", "rdsrepl slot show $SLOT"), 16, 'write "$NAME"'),
        (replaced("rdsrepl slot list", 'rdsrepl slot show "$SLOD"'), 16, "$SLOD"),
        (
            replaced("rdsrepl slot list", 'rdsrepl cluster show "$RDSREPL_CLUSTER"'),
            15,
            "in a step that can run without a cluster",
        ),
        (replaced("rdsrepl slot list", "rdsrepl slot list\nrdsrepl slot list"), 16, "only one command"),
        (replaced("rdsrepl slot list", "rdsrepl 'slot list"), 16, "unterminated quote"),
        (replaced("rdsrepl slot list", "rdsrepl slot \\\n  list \\\n  --a; b"), 18, "; requires a shell"),
        (page(MAKE, MAKE), 27, "a second step make-it"),
        (page("\n### {n}. Nothing\n"), 21, "without a command"),
        (page("\n```sh check\nrdsrepl slot list\n```\n"), 21, "outside of a step"),
        (replaced('Drop "$SLOT".', ""), 41, "the section ## Go back is missing or empty"),
        (page(MAKE) + "\n```sh\nopen", 43, "unterminated block"),
    ],
)
def test_an_error_of_a_page_names_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "wrong.md"
    with pytest.raises(BadPage) as caught:
        parser.parse(path, text)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert caught.value.hint


VALUES = st.text(st.characters(codec="utf-8"), max_size=20)


@given(VALUES)
@example("a b; rm -rf / | $(id) `id` \"$SLOT\" 'x' \\ \n *")
def test_a_value_is_always_one_word(value: str) -> None:
    words = commands.parse('rdsrepl slot show "$SLOT" \'a b\' --to "kinesis:${SLOT}" "\\$x" c\\ d')
    assert commands.substitute(words, {"SLOT": value}) == (
        "rdsrepl", "slot", "show", value, "a b", "--to", f"kinesis:{value}", "$x", "c d",
    )  # fmt: skip
    # A shell parses the shown command as the command that runs.
    assert shlex.split(commands.substitute_text('x "$SLOT"', {"SLOT": value})) == ["x", value]


def test_expected_lines_come_in_order() -> None:
    def missing(output: str, *lines: str) -> str | None:
        expectation = commands.Expectation(lines, {"SLOT": "a.b"})
        for line in output.splitlines():
            expectation.see(line)
        return expectation.missing

    output = "slot_name    a.b\nwal_status   reserved\n  retained  56 B\n"
    assert missing(output, "slot_name $SLOT", "retained …") is None
    assert missing(output, "… a.b", "…reserved", "… B") is None
    assert missing(output, "retained …", "slot_name $SLOT") == "slot_name a.b"
    assert missing(output, "slot_name axb") == "slot_name axb"
    assert missing(output, "retained") == "retained"


def leaves() -> Iterator[tuple[str, Any]]:
    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        for child, below in getattr(command, "commands", {}).items():
            yield from walk(f"{words} {child}".strip(), below)
        if not hasattr(command, "commands"):
            yield words, command

    yield from walk("", typer.main.get_command(app))


COMMANDS = dict(leaves())


@pytest.mark.parametrize("name", pages.names())
def test_the_kind_of_each_step_matches_its_command(name: str) -> None:
    for step in pages.load(name).steps:
        if step.kind is StepKind.manual:
            continue
        words = [part for word in step.command for part in word[:1] if len(word) == 1 and isinstance(part, str)]
        words = [word for word in words if not word.startswith("-")]
        command = COMMANDS.get(" ".join(words[:2])) or COMMANDS[words[0]]
        # A change has a plan; a check has none, or only shows it. That of verify is for --repair.
        only_reads = words[0] == "verify" or ("--dry-run",) in step.command
        has_plan = isinstance(command, WriteCommand) and not only_reads
        assert has_plan == (step.kind is StepKind.change), step.name


def test_list_and_show(rdsrepl: Program) -> None:
    listed = rdsrepl("runbook", "list", "-o", "json").json
    assert [row["name"] for row in listed] == [
        "abandoned-slot", "add-a-table-to-a-stream", "after-an-unplanned-failover", "consumer-fell-behind",
        "disk-is-filling", "enable-logical-replication", "first-stream-to-kinesis", "major-upgrade", "planned-failover",
        "planned-switchover", "protect-slots-for-failover", "rebuild-a-consumer", "rotate-password", "tear-down",
        "unplanned-failover",
    ]  # fmt: skip
    assert all(row["when"] and row["title"] and row["steps"] for row in listed)
    shown = rdsrepl("runbook", "show", "abandoned-slot")
    assert shown.out == (model.directory() / "abandoned-slot.md").read_text()
    document = rdsrepl("runbook", "show", "abandoned-slot", "-o", "json").json
    assert document["variables"][0] == {
        "name": "slot", "help": "the slot", "type": "slot", "required": True, "default": None,
    }  # fmt: skip
    assert document["steps"][0]["command"] == 'rdsrepl slot show "$SLOT"'
    assert document["go_back"]


# Errors before the first step.


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("abandoned-slob", "--var", "slot=x"), 3, "did you mean abandoned-slot?"),
        (("./none.md",), 3, "does not exist"),
        (("abandoned-slot",), 2, "missing variables: slot"),
        (("abandoned-slot", "--var", "slot"), 2, "is not NAME=VALUE"),
        (("abandoned-slot", "--var", "slod=x"), 2, "did you mean slot?"),
        (("abandoned-slot", "--var", "slot=x", "--var", "slot=y"), 2, "twice"),
        (("abandoned-slot", "--var", "slot=X"), 2, "is not valid"),
        (("abandoned-slot", "--var", "slot=x;id"), 2, "is not valid"),
        (("abandoned-slot", "--var", "slot=--yes"), 2, "is not valid"),
        (("abandoned-slot", "--var", "slot="), 2, "is not valid"),
        (("abandoned-slot", "--var", "slot=x", "--var", "idle=soon"), 2, "is not valid"),
        (("disk-is-filling", "--var", "keep_mb=10s"), 2, "give a size such as 10GB, or a number of MB"),
        (("disk-is-filling", "--var", "keep_mb=1500kB"), 2, "is not valid"),
        (("first-stream-to-kinesis", "--var", "role=a\nb"), 2, "is not valid"),
        (("rotate-password", "--var", "role=-c", "--var", "secret=s"), 2, "is not valid"),
        (("abandoned-slot", "--var", "slot=x", "--from", "drop-itt"), 2, "no step 'drop-itt'"),
        (("abandoned-slot", "--var", "slot=x", "--from", "99"), 2, "no step '99'"),
        (("abandoned-slot", "--from", "1", "--resume"), 3, "nothing to resume"),
        (("abandoned-slot", "--var", "slot=x", "--yes", "--skip-manual", "find-it"), 2, "no step 'find-it'"),
        (("abandoned-slot", "--var", "slot=x", "--yes", "--skip-manual", "1"), 2, "is not a manual step"),
        (("abandoned-slot", "--var", "slot=x", "--yes"), 4, "--yes cannot do the manual steps: 3. Find its owner"),
        (("abandoned-slot", "--resume"), 3, "nothing to resume"),
        (("planned-failover",), 2, "requires a cluster or an instance"),
        (("abandoned-slot", "--var", "slot=x"), 4, "confirmation required but stdin is not a terminal"),
    ],
)
def test_invalid_input_runs_nothing(rdsrepl: Program, words: tuple[str, ...], code: int, message: str) -> None:
    done = rdsrepl("runbook", "run", *words, dsn="host=/nowhere")
    assert done.code == code
    assert message in done.err
    assert journals(rdsrepl) == []
    assert rdsrepl("runbook", "run", *words, "-o", "json", dsn="host=/nowhere").error["exit_code"] == code


def test_a_dry_run_runs_nothing(rdsrepl: Program, db18: Database, write: Any, name: str) -> None:
    words = ("runbook", "run", write(MAKE, NEED), "--var", f"slot={name}", "--dry-run")
    shown = rdsrepl(*words, dsn=f"{db18.dsn} password=hidden")
    assert shown.code == 0, shown.err
    assert f"slot create {name} --plugin pgoutput" in shown.out
    assert "hidden" not in shown.out + shown.err
    lines = rdsrepl(*words, "-o", "json", dsn=db18.dsn).lines
    assert [line["status"] for line in lines] == ["planned"] * 4
    assert db18.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = " + f"'{name}'") == 0
    assert journals(rdsrepl) == []


def test_a_value_with_a_command_in_it_runs_nothing(rdsrepl: Program, db18: Database, tmp_path: Path) -> None:
    path, trap = tmp_path / "mine.md", tmp_path / "trap"
    path.write_text(page().replace("type: slot", "type: text"))
    value = f'x"; touch {trap}; $(touch {trap}) `touch {trap}` #'
    done = rdsrepl("runbook", "run", str(path), "--var", f"slot={value}", "--yes", "-o", "json", dsn=db18.dsn)
    assert done.code == 1
    assert done.lines[-1]["exit_code"] == 3
    assert value in done.lines[-1]["output"]
    assert not trap.exists()


# Runs.


def test_a_complete_run_and_its_journal(rdsrepl: Program, db18: Database, write: Any, name: str) -> None:
    dsn = f"{db18.dsn} password=hidden"
    done = rdsrepl("runbook", "run", write(MAKE), "--var", f"slot={name}", "--yes", dsn=dsn)
    assert done.code == 0, done.err
    assert f"slot_name            {name}" in done.out
    (journal,) = journals(rdsrepl)
    begin, *rows, end = journal
    steps = [row for row in rows if row["event"] != "applied"]
    (applied,) = [row for row in rows if row["event"] == "applied"]
    assert applied["step"] == "make-it" and applied["makes"] and f"slot {name}" in applied["summary"]
    assert begin["runbook"] == "mine" and begin["variables"] == {"slot": name, "other": ""} and "@" in begin["who"]
    assert end == {**end, "event": "end", "status": "done", "exit_code": 0}
    assert [(row["event"], row["step"]) for row in steps] == [
        (event, step) for step in ("look", "make-it", "see-it") for event in ("step_begin", "step_end")
    ]
    made = steps[3]
    assert made["changed"] and made["exit_code"] == 0 and made["at"] > begin["at"]
    assert made["command"].endswith(f"slot create {name} --plugin pgoutput")
    text = json.dumps(journal)
    assert "hidden" not in text and "********" in text
    (file,) = (Path(rdsrepl.env["XDG_STATE_HOME"]) / "rdsrepl" / "runbooks").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    again = rdsrepl("runbook", "run", write(MAKE), "--resume", "--yes", dsn=dsn)
    assert again.code == 3 and "is complete" in again.err


def test_a_check_that_fails_stops_before_anything_is_changed(
    rdsrepl: Program, db18: Database, write: Any, name: str
) -> None:
    done = rdsrepl("runbook", "run", write(NEED, MAKE), "--var", f"slot={name}", "--yes", "-o", "json", dsn=db18.dsn)
    assert done.code == 1
    assert ended(done) == {"look": "done", "needs-another": "failed"}
    assert done.lines[-1]["reason"] == "exit 3, expected 0"
    assert done.error["error"] == "step_failed" and "nothing was changed" in done.error["message"]
    assert "--resume" in done.error["hint"] and "Go back" in done.error["hint"]
    assert journals(rdsrepl)[0][-1] == {**journals(rdsrepl)[0][-1], "status": "failed", "exit_code": 1}


@pytest.mark.usefixtures("in_process")
def test_a_step_that_fails_after_a_change_and_resume(rdsrepl: Program, db18: Database, write: Any, name: str) -> None:
    path = write(MAKE, NEED.replace("needed", f"{name}_2"))
    words = ("runbook", "run", path, "--yes")
    stopped = rdsrepl(*words, "--var", f"slot={name}", dsn=db18.dsn)
    assert stopped.code == 6
    for said in (
        "done: 2. Make it",
        "not done: 3. Needs another",
        f"Go back:\nThis run applied: create logical replication slot {name} (pgoutput).\n\nDrop {name}.",
        "--resume (add --from STEP",
    ):
        assert said in stopped.err
    # A new run mentions it; a run on another target does not.
    noted = rdsrepl("runbook", "run", path, "--yes", "--var", f"slot={name}", dsn=db18.dsn)
    assert "stopped at needs-another; to resume it:" in noted.err
    # The slot exists: nothing is changed, and Go back lists no drop.
    assert noted.code == 1 and "nothing was changed" in noted.err and "Go back:" not in noted.err
    elsewhere = rdsrepl(*words, "--resume", dsn=f"{db18.dsn} application_name=x")
    assert elsewhere.code == 3 and "it has no earlier run on this target" in elsewhere.err

    from_3 = rdsrepl(*words, "--var", f"slot={name}", "--from", "3", "-o", "json", dsn=db18.dsn)
    assert ended(from_3) == {"needs-another": "failed"} and from_3.code == 1
    other = rdsrepl(*words, "--resume", "--var", "slot=other", dsn=db18.dsn)
    assert other.code == 2 and "the run to resume has" in other.err
    assert rdsrepl("slot", "create", f"{name}_2", "--yes", dsn=db18.dsn).code == 0
    resumed = rdsrepl(*words, "--resume", "-o", "json", dsn=db18.dsn)
    assert resumed.code == 0, resumed.err
    assert ended(resumed) == {"needs-another": "done", "see-it": "done"}
    assert journals(rdsrepl)[-1][0]["resumes"] == journals(rdsrepl)[-2][0]["run"]


@pytest.mark.usefixtures("in_process")
def test_a_run_is_not_resumed_on_another_page(rdsrepl: Program, db18: Database, write: Any, name: str) -> None:
    assert rdsrepl("runbook", "run", write(NEED), "--var", f"slot={name}", "--yes", dsn=db18.dsn).code == 1
    changed = rdsrepl("runbook", "run", write(MAKE, NEED), "--resume", "--yes", dsn=db18.dsn)
    assert changed.code == 4 and "its page has changed" in changed.err
    # --from resumes at a step, with the variables of the earlier run.
    named = rdsrepl("runbook", "run", write(MAKE, NEED), "--resume", "--from", "2", "--yes", "-o", "json", dsn=db18.dsn)
    assert ended(named) == {"make-it": "done", "needs-another": "failed"} and named.code == 6
    assert [line["made"] for line in named.lines] == [[f"create logical replication slot {name} (pgoutput)"], []]
    assert journals(rdsrepl)[-1][0]["variables"] == {"slot": name, "other": ""}


def test_expected_output_is_checked(rdsrepl: Program, db18: Database, tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.md"
    path.write_text(page(MAKE).replace("slot_name $SLOT", "slot_name $SLOT\nplugin wal2json"))
    done = rdsrepl("runbook", "run", str(path), "--var", f"slot={name}", "--yes", "-o", "json", dsn=db18.dsn)
    assert done.code == 6
    assert done.lines[-1]["reason"] == "expected line is missing in the output: plugin wal2json"


@pytest.mark.usefixtures("in_process")
def test_steps_for_other_targets_and_manual_steps_are_skipped(
    rdsrepl: Program, db18: Database, write: Any, name: str
) -> None:
    path = write(
        '\n### {n}. On a cluster\n\n```sh check only=cluster\nrdsrepl cluster show "$RDSREPL_CLUSTER"\n```\n',
        '\n### {n}. With other\n\n```sh check with=other\nrdsrepl slot show "$OTHER"\n```\n',
        '\n### {n}. By hand\n\n```sh manual\naws rds | anything > "$SLOT"\n```\n',
        MAKE,
    )
    words = ("runbook", "run", path, "--var", f"slot={name}", "--yes")
    # A manual step is not skipped implicitly: nothing runs.
    refused = rdsrepl(*words, "-o", "json", dsn=db18.dsn)
    assert refused.code == 4 and refused.out == "" and journals(rdsrepl) == []
    assert "the manual steps: 4. By hand; nothing was run" in refused.error["message"]
    assert refused.error["hint"].endswith(f"--var slot={name} --skip-manual by-hand")
    done = rdsrepl(*words, "--skip-manual", "by-hand", dsn=db18.dsn)
    assert done.code == 0, done.err
    for said in (
        "skipped: only for a cluster",
        "skipped: only with --var other=…",
        "skipped: manual step",
        "3 of them skipped",
    ):
        assert said in done.err
    with_other = ("--var", f"other={name}", "--from", "3", "--yes", "--skip-manual", "4", "-o", "json")
    again = rdsrepl("runbook", "run", path, "--var", f"slot={name}", *with_other, dsn=db18.dsn)
    assert ended(again)["with-other"] == "done"


def test_a_step_with_its_own_target(
    rdsrepl: Program, db18: Database, write: Any, make_database: Any, pg15: Any
) -> None:
    other = make_database(pg15)
    config = Path(rdsrepl.env["XDG_CONFIG_HOME"]) / "rdsrepl" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"current: here\ntargets:\n  here: {{dsn: {db18.dsn!r}}}\n  there: {{dsn: {other.dsn!r}}}\n")
    show = "\n### {n}. Where\n\n```sh check\nrdsrepl {at}psql -- -Atc 'SELECT current_database()'\n```\n"
    path = write(show.replace("{at}", ""), show.replace("{at}", "-t there ").replace("Where", "There"), NEED)
    done = rdsrepl("runbook", "run", path, "--var", "slot=x", "--yes", "-o", "json")
    assert [line["output"] for line in done.lines[1:3]] == [f"{db18.name}\n", f"{other.name}\n"]
    # The current target is named, so that it does not change during the run.
    assert done.lines[0]["command"] == "rdsrepl --target here slot list"
    assert done.lines[2]["command"].startswith("rdsrepl -t there psql")


def test_the_plan_is_shown_before_yes_skip_or_quit(rdsrepl: Program, db18: Database, write: Any, name: str) -> None:
    second = MAKE.replace("Make it", "Make a second").replace('"$SLOT"', '"${SLOT}_2"')
    third = MAKE.replace("Make it", "Make a third").replace('"$SLOT"', '"${SLOT}_3"')
    by_hand = '\n### {n}. By hand\n\n```sh manual\nask "$SLOT"\n```\n'
    path = write(MAKE, second, by_hand, third)
    person = Terminal(rdsrepl, "--dsn", db18.dsn, "runbook", "run", path, "--var", f"slot={name}")
    person.wait_for("Step 1 of 6: Look")  # a check runs without a prompt
    person.wait_for(f"create replication slot {name}:\n")
    person.wait_for("Run it? [y = yes, s = skip, q = quit]")
    person.type("what?")
    person.wait_for("Run it?")
    person.type("y")
    person.wait_for(f"create replication slot {name}: done")
    person.wait_for(f"create replication slot {name}_2:\n")
    person.type("s")
    person.wait_for("skipped")
    person.wait_for(f"ask {name}")
    person.wait_for("Is this step done?")
    person.type("y")
    person.wait_for("Run it?")
    person.type("q")
    person.wait_for("was not confirmed")
    assert person.wait() == 6
    slots = {row[0] for row in db18.run(f"SELECT slot_name FROM pg_replication_slots WHERE database = '{db18.name}'")}
    assert slots == {name}
    (journal,) = journals(rdsrepl)
    assert [row["status"] for row in journal if row["event"] == "step_end"] == [
        "done", "done", "skipped", "done", "quit",
    ]  # fmt: skip


def test_a_missing_variable_is_asked_for(rdsrepl: Program, db18: Database, write: Any, name: str) -> None:
    assert rdsrepl("slot", "create", name, "--yes", dsn=db18.dsn).code == 0
    words = ("--dsn", db18.dsn, "runbook", "run", write(MAKE))
    person = Terminal(rdsrepl, *words, "--dry-run")
    person.wait_for("slot (the slot): ")
    person.type("Not valid")
    person.wait_for("is not valid; give up to 63 characters")
    person.wait_for("slot (the slot): ")
    person.complete(name[:-2], name)
    person.wait_for("without questions:")
    person.wait_for("rdsrepl --dsn")  # on a line of its own, so that it can be pasted
    person.wait_for(f"slot create {name}")
    assert person.wait() == 0
    person = Terminal(rdsrepl, *words)
    person.wait_for("slot (the slot): ")
    person.interrupt()
    person.wait_for("did not start, nothing was changed")
    assert person.wait() == 130
    person = Terminal(rdsrepl, *words)
    person.wait_for("slot (the slot): ")
    person.type("\x04")  # the end of the input
    person.wait_for("missing variables: slot (the slot)")
    assert person.wait() == 2
    assert "missing variables" in rdsrepl(*words, "--dry-run").err, "without a terminal nothing is asked"


def test_a_step_that_names_its_own_target_gets_none_of_the_run() -> None:
    run = RunTarget({"cluster": "orders"})
    for words in (["psql", "-t", "prod", "-c", "x"], ["slot", "list", "--dsn=service=x"], ["slot", "list", "-t", "a"]):
        assert "RDSREPL_CLUSTER" not in run.environment(words), words
    for words in (["psql", "-t", "-c", "x"], ["psql", "-c", "x", "-t"], ["psql", "-At"], ["psql", "--", "-t", "x"]):
        assert run.environment(words)["RDSREPL_CLUSTER"] == "orders", words


def test_a_shown_step_has_only_the_options_that_its_command_takes(rdsrepl: Program) -> None:
    values = ("table=t", "slot=s", "publication=p", "role=r", "secret=x", "stream=k")
    words = ("runbook", "run", "first-stream-to-kinesis", *(word for one in values for word in ("--var", one)))
    planned = rdsrepl("--cluster", "orders", "--region", "eu-west-1", *words, "--dry-run", "-o", "json")
    shown = [step.get("command") for step in planned.lines if "command" in step]
    assert "rdsrepl --region eu-west-1 stream create k" in shown
    assert any("rdsrepl --cluster orders --region eu-west-1 slot create s" in str(line) for line in shown), shown


def test_quitting_before_a_change_is_a_refusal(rdsrepl: Program, db18: Database, write: Any, name: str) -> None:
    person = Terminal(rdsrepl, "--dsn", db18.dsn, "runbook", "run", write(MAKE), "--var", f"slot={name}")
    person.wait_for("Run it?")
    person.type("quit")
    assert person.wait() == 4
    assert "nothing was changed" in person.seen


SLEEP = "\n### {n}. Sleep\n\n```sh run\nrdsrepl psql -- -c 'SELECT pg_sleep(60)'\n```\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_reports_its_step(
    rdsrepl: Program, db18: Database, write: Any, name: str, sent: signal.Signals
) -> None:
    path = write(SLEEP)
    words = ("--dsn", db18.dsn, "runbook", "run", path, "--var", f"slot={name}", "--yes")
    process = rdsrepl.start(*words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    asleep = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = '{db18.name}'"
    wait_until(lambda: db18.value(asleep) == 1, "the step runs")
    if sent == signal.SIGTERM:
        process.send_signal(sent)  # as a service manager does: the program forwards it to the process of the step
    else:
        os.killpg(process.pid, sent)
    _, err = process.communicate(timeout=120)
    (journal,) = journals(rdsrepl)
    if sent != signal.SIGKILL:
        assert process.returncode == 130, err
        assert journal[-1]["status"] == "interrupted"
        wait_until(lambda: db18.value(asleep) == 0, "the step has ended, too")
    else:
        assert journal[-1]["event"] == "step_begin"
    shown = rdsrepl("runbook", "run", path, "--resume", "--dry-run", "-o", "json", dsn=db18.dsn)
    assert [line["step"] for line in shown.lines] == ["sleep", "see-it"]
    noted = rdsrepl("runbook", "run", path, "--var", "slot=none", "--from", "3", "--yes", dsn=db18.dsn)
    assert noted.code == 1
