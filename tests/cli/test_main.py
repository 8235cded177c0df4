"""The root of the command line: start-up, global options, errors, exit codes, the architecture."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from rdsrepl import __version__, errors
from rdsrepl.cli.main import app
from rdsrepl.render import document
from tests import ROOT

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

HEAVY = ("boto3", "botocore", "psycopg", "yaml")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["slot", "--help"], ["slot", "tail", "--help"]])
def test_start_up_imports_no_heavy_module(words: list[str]) -> None:
    script = (
        "import sys\nfrom rdsrepl.cli.main import app\n"
        "assert 'rich' not in sys.modules\n"
        f"try:\n    app({words!r})\nexcept SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# What belongs to other commands, or is needed only after the server has answered.
LATER = (
    *("boto3", "yaml", "pydantic", "rdsrepl.apply", "rdsrepl.plan", "rdsrepl.tail", "rdsrepl.dashboard"),
    *("rdsrepl.retention", "rdsrepl.cli.confirm", "rdsrepl.cli.slot.tail", "rdsrepl.cli.slot.prune"),
)


@pytest.mark.parametrize(
    ("environment", "words", "late"),
    [
        ({}, ["slot", "list", "--dsn", "host=127.0.0.1 port=1"], LATER),
        (
            {"_RDSREPL_COMPLETE": "complete_bash", "COMP_WORDS": "rdsrepl slot ", "COMP_CWORD": "2"},
            [],
            (*LATER, "rich", "psycopg", "rdsrepl.postgres"),
        ),
        (
            {"_RDSREPL_COMPLETE": "complete_bash", "COMP_WORDS": "rdsrepl ", "COMP_CWORD": "1"},
            [],
            (*LATER, "rich", "psycopg", "rdsrepl.postgres", "rdsrepl.cli.doctor", "rdsrepl.cli.slot.commands"),
        ),
    ],
    ids=["slot list", "complete a verb", "complete a noun"],
)
def test_a_command_imports_only_what_it_uses(
    environment: dict[str, str], words: list[str], late: tuple[str, ...]
) -> None:
    script = (
        "import sys\nfrom rdsrepl.__main__ import run\nsys.argv[0] = 'rdsrepl'\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        f"found = [name for name in {late!r} if name in sys.modules]\nassert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("could not" in done.stderr or "refused" in done.stderr) if words else done.stdout, done


def test_a_value_of_an_option_is_converted_without_pydantic_as_with_it() -> None:
    """Typer imports pydantic to convert a value; the class of the options does that only for unusual values."""
    script = (
        "import sys\nfrom rdsrepl.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 2, end.code\n"
        "assert 'pydantic' not in sys.modules"
    )
    words = ("--dsn", "x", "-o", "json", "slot", "tail", "s", "--publication", "p", "--limit", "3", "--duration", "1s")
    done = subprocess.run([sys.executable, "-c", script, *words, "--to", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 0 and "is not a sink" in done.stderr, done.stderr

    from typer.core import TyperArgument, TyperOption

    def outcome(process: Any, *given: Any) -> Any:
        try:
            return process(*given)
        except typer.BadParameter:
            return "refused"

    compared = 0
    for words, command in all_commands():
        ctx = command.make_context("x", [], resilient_parsing=True)
        ctx.resilient_parsing = False
        for parameter in command.get_params(ctx):
            if parameter.callback is not None or not isinstance(parameter, TyperOption | TyperArgument):
                continue
            plain = TyperArgument if isinstance(parameter, TyperArgument) else TyperOption
            choices = [str(getattr(one, "value", one)) for one in parameter.type_descriptor.choices or ()]
            for value in ("", "x", "é", "\udce9", "0", "-1", "7", "1.5", "10s", "1GB", "16/B374D848", *choices, None):
                several = parameter.multiple or parameter.nargs == -1
                given = (value,) if several and value is not None else value
                assert outcome(parameter.process_value, ctx, given) == outcome(
                    plain.process_value, parameter, ctx, given
                ), (words, parameter.name, value)
                compared += 1
    assert compared > 1000


def all_commands() -> Iterator[tuple[str, Any]]:
    def within(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for verb, child in getattr(command, "commands", {}).items():
            yield from within(f"{name} {verb}", child)
        yield name, command

    return within("rdsrepl", typer.main.get_command(app))


def test_version_and_help(rdsrepl: Program) -> None:
    assert rdsrepl("--version").out == f"rdsrepl {__version__}\n"
    assert "--dry-run" in rdsrepl("slot", "drop", "--help").out
    assert rdsrepl().code == 2
    for words in ((), ("slot",), ("psql", "-At"), ("config", "path")):
        helped = rdsrepl(*words, "-h")
        assert helped.code == 0 and f"Usage: rdsrepl {' '.join(words[:1])}".rstrip() in helped.out, helped


def test_completion_installs_as_before_and_is_not_offered(rdsrepl: Program) -> None:
    # Typer finds out which shell has started the program; the second command keeps bash from replacing itself.
    line = " ".join([*rdsrepl.command, "--install-completion; exit $?"])
    done = subprocess.run(["bash", "-c", line], env=rdsrepl.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("rdsrepl" in path.read_text() for path in rdsrepl.home.rglob("*") if path.is_file())


def test_imports_follow_the_layers(tmp_path: Path) -> None:
    # Its own cache: `make test` runs the lint beside the tests.
    script = [str(Path(sys.executable).with_name("lint-imports")), "--cache-dir", str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_global_options_are_accepted_before_the_noun_and_after_the_verb(rdsrepl: Program, db15: Database) -> None:
    bad = "host=127.0.0.1 port=1 dbname=x user=y"
    for words in (
        ("--dsn", db15.dsn, "-o", "json", "slot", "list"),
        ("slot", "list", "--dsn", db15.dsn, "-o", "json"),
        ("--dsn", db15.dsn, "-o", "yaml", "slot", "list", "--dsn", db15.dsn, "--output", "json"),
    ):
        result = rdsrepl(*words)
        assert result.code == 0, result.err
        assert isinstance(result.json, list)
    twice = rdsrepl("--dsn", bad, "slot", "list", "--dsn", db15.dsn)
    assert twice.code == 2 and "given twice" in twice.err


def test_the_command_line_overrides_the_environment(rdsrepl: Program, db15: Database) -> None:
    env = {"RDSREPL_DSN": "host=127.0.0.1 port=1 dbname=x user=y", "RDSREPL_OUTPUT": "json"}
    refused = rdsrepl("slot", "list", env=env)
    assert (refused.code, refused.error["error"]) == (5, "unreachable")
    assert rdsrepl("slot", "list", "-o", "table", dsn=db15.dsn, env=env).code == 0
    assert rdsrepl("slot", "list", "--dsn", db15.dsn, env=env).json is not None


def test_an_error_is_one_line_a_hint_and_an_exit_code(rdsrepl: Program, db15: Database) -> None:
    plain = rdsrepl("slot", "show", "nope", dsn=db15.dsn)
    assert (plain.code, plain.out) == (3, "")
    assert [line.split(":")[0] for line in plain.err.splitlines()] == ["error", "hint"]
    machine = rdsrepl("slot", "show", "nope", "-o", "json", dsn=db15.dsn)
    assert set(machine.error) == {"error", "message", "hint", "exit_code"}
    assert (machine.error["error"], machine.error["exit_code"]) == ("not_found", 3)
    assert "Traceback" in rdsrepl("-vv", "slot", "show", "nope", dsn=db15.dsn).err
    for words in (("slot", "bogus"), ("--bogus",), ("slot", "show"), ("slot", "tail", "s", "--limit", "0")):
        assert rdsrepl(*words).code == 2
        usage = rdsrepl("-o", "json", *words)
        assert (usage.code, usage.error["error"], usage.error["exit_code"]) == (2, "usage_error", 2)


def test_an_option_that_a_command_cannot_use_is_refused(rdsrepl: Program) -> None:
    for words in (
        ("--dsn", "host=a", "config", "path"),
        ("config", "path", "--cluster", "a"),
        ("-t", "prod", "help", "concepts"),
        ("--cluster", "a", "stream", "list"),
        ("-d", "a", "runbook", "list"),
        ("stream", "list", "--dsn", "host=a"),
        ("--dsn", "host=a", "iam-policy", "--for", "slot list"),
    ):
        refused = rdsrepl(*words, env={"AWS_REGION": "eu-west-1"})
        assert refused.code == 2, (words, refused)
        assert "does not use" in refused.err or "has no option" in refused.err
    several = rdsrepl("slot", "drop", "a", "b", "c")
    assert (several.code, several.err.splitlines()[0]) == (2, "error: unexpected argument: b c")
    environment = {f"RDSREPL_{name}": "x" for name in ("DSN", "CLUSTER", "INSTANCE", "TARGET", "REGION", "DBNAME")}
    assert rdsrepl("config", "path", env=environment).code == 0
    assert rdsrepl("slot", "list", env=environment).code == 2


def test_a_refused_value_is_quoted_and_an_enumerated_one_is_accepted_in_any_case(rdsrepl: Program) -> None:
    for words, text in (
        (("config", "path", "-o", "xml"), "'--output' / '-o': 'xml' is not one of 'table',"),
        (("slot", "create", "x", "--plugin", "decoderbufs"), "'decoderbufs' is not one of 'pgoutput',"),
        (("slot", "tail", "x", "--limit", "0"), "'--limit': 0 is less than 1"),
        (("slot", "tail", "x", "--requests", "65"), "65 is more than 64"),
        (("slot", "tail", "x", "--limit", "\uff11e\x1b[2J"), "is not a whole number"),
        (("role", "create", "x", "--connection-limit", "9" * 5000), "is not a whole number"),
    ):
        refused = rdsrepl(*words)
        assert refused.code == 2 and text in refused.err, refused.err
        assert "Value error" not in refused.err and "Input should" not in refused.err and "\x1b[2J" not in refused.err
    assert rdsrepl("config", "path", "-o", "JSON").json
    assert rdsrepl("config", "path", env={"RDSREPL_OUTPUT": "Json"}).json
    assert rdsrepl("slot", "show", "-o", "JSON").error["error"] == "usage_error"
    unreachable = rdsrepl("slot", "create", "x", "--plugin", "PGOUTPUT", dsn="host=127.0.0.1 port=1", env={})
    assert unreachable.code == 5, unreachable.err


def tree(kind: type[errors.Error]) -> set[type[errors.Error]]:
    return {kind}.union(*(tree(child) for child in kind.__subclasses__() if child.__module__ == "rdsrepl.errors"))


def test_the_error_tree_is_documented() -> None:
    drawn = inspect.getdoc(errors) or ""
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    for kind in tree(errors.Error):
        assert kind.__name__ in drawn
        assert f"`{kind('x').name}`" in page if kind is not errors.AppliedInPart else "`applied_in_part`" in page
    for code in errors.ExitCode:
        assert f"| {int(code)} |" in page


def test_a_document_is_plain_data() -> None:
    from datetime import UTC, datetime
    from decimal import Decimal

    from rdsrepl.lsn import Lsn

    values: list[Any] = [Lsn(1), datetime(2026, 1, 31, tzinfo=UTC), Decimal("1"), (1, None, True), {"a": Lsn(2)}]
    assert document(values) == ["0/1", "2026-01-31T00:00:00+00:00", 1, [1, None, True], {"a": "0/2"}]


def test_a_plan_that_fails_in_part_reports_it(rdsrepl: Program, db15: Database) -> None:
    """The second step fails: exit code 6, with the steps that were and were not applied."""
    from psycopg import sql

    from rdsrepl import apply
    from rdsrepl.plan import Plan, Statement

    steps = [
        Statement("make a", sql.SQL("CREATE TABLE public.a ()"), effect="create"),
        Statement("make it again", sql.SQL("CREATE TABLE public.a ()"), effect="create"),
    ]
    steps.append(Statement("never", sql.SQL("CREATE TABLE public.b ()"), effect="create"))
    with pytest.raises(errors.AppliedInPart) as caught:
        apply.run(Plan("three steps", tuple(steps)), db15.target, done=lambda o: None, waiting=lambda s, t, b: None)
    assert caught.value.exit_code == 6
    assert caught.value.document()["done"] == ["make a"]
    assert caught.value.document()["not_done"] == ["make it again", "never"]
    assert "already exists" in caught.value.message
    assert db15.value("SELECT to_regclass('b') IS NULL")


def test_the_reader_of_stdout_may_close_it(rdsrepl: Program) -> None:
    process = rdsrepl.start("config", "show", "-o", "json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=120)
