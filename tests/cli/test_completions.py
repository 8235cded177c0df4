"""Shell completion: the checked-in scripts, the completed names, the cache, timeouts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from rdsrepl.cli import completion
from rdsrepl.cli.main import app
from rdsrepl.state import completion_cache
from tests import ROOT
from tests.fixtures.missing import missing
from tests.fixtures.program import complete

if TYPE_CHECKING:
    from rdsrepl.sandbox.servers.postgres_server import PostgresServer
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program
    from tests.fixtures.sandbox import Cloud

KEPT = ROOT / "completions"
FILES = {"bash": "rdsrepl.bash", "zsh": "_rdsrepl", "fish": "rdsrepl.fish"}


@pytest.mark.parametrize("shell", FILES)
def test_the_checked_in_script_is_current(rdsrepl: Program, shell: str) -> None:
    printed, kept = rdsrepl("completion", shell.upper()), KEPT / FILES[shell]
    script = printed.out
    assert (printed.code, printed.err) == (0, "")
    if os.environ.get("RDSREPL_UPDATE"):
        kept.write_text(script)
    assert kept.read_text() == script, "run make docs to update it"
    if shell == "zsh":
        assert script.startswith("#compdef rdsrepl")


@pytest.mark.parametrize("shell", FILES)
def test_the_checked_in_script_is_valid(shell: str) -> None:
    if shutil.which(shell) is None:
        missing(shell, f"apt-get install {shell}")
    done = subprocess.run([shell, "-n", str(KEPT / FILES[shell])], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_zsh_reads_the_script_with_source_and_from_fpath(rdsrepl: Program) -> None:
    if shutil.which("zsh") is None:
        missing("zsh", "apt-get install zsh")
    stubs = "compdef() { print -r -- $* }; _arguments() { print -r -- $* }; words=(rdsrepl slo); CURRENT=2\n"
    env = {**rdsrepl.env, "PATH": f"{Path(rdsrepl.command[0]).parent}:{os.environ['PATH']}"}
    for load in (f"source {KEPT}/_rdsrepl; _rdsrepl_completion", f"fpath=({KEPT}); autoload -U _rdsrepl; _rdsrepl"):
        done = subprocess.run(["zsh", "-fc", stubs + load], env=env, capture_output=True, text=True, check=True)
        registered, offered = done.stdout.split("\n", 1)
        assert (registered, done.stderr) == ("_rdsrepl_completion rdsrepl", "") and '"slot"' in offered, done


def quoted(word: str) -> str:
    """Return the line as the program gets it."""
    return f"'{word}'"


def kept(rdsrepl: Program) -> Path:
    """Return the cache directory."""
    return rdsrepl.home / ".cache" / "rdsrepl" / "names"


def forget(rdsrepl: Program) -> None:
    shutil.rmtree(kept(rdsrepl), ignore_errors=True)


def test_nouns_verbs_options_and_choices(rdsrepl: Program) -> None:
    assert {"slot", "role", "publication", "config", "sandbox"} <= set(complete(rdsrepl, ""))
    assert complete(rdsrepl, "slot", "ta") == ["tail"]
    assert "--publication" in complete(rdsrepl, "slot", "tail", "x", "--pub")
    assert complete(rdsrepl, "slot", "tail", "x", "--format", "w") == ["wal2json"]


def test_targets_and_slots(rdsrepl: Program, db15: Database) -> None:
    rdsrepl.home.joinpath("config", "rdsrepl").mkdir(parents=True)
    config = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    config.write_text(f"current: prod\ntargets:\n  prod:\n    dsn: {db15.dsn!r}\n  staging:\n    host: h\n")
    assert complete(rdsrepl, "--target", "st") == ["staging"]
    db15.run(f"SELECT pg_create_logical_replication_slot('done_{db15.name}', 'pgoutput')")
    for verb in ("show", "tail"):
        assert complete(rdsrepl, "slot", verb, f"done_{db15.name}"[:9]) == [f"done_{db15.name}"]
    assert complete(rdsrepl, "--target", "staging", "slot", "show", "done_") == []


def test_without_a_server_there_are_no_completions(rdsrepl: Program) -> None:
    for noun in ("slot", "publication", "role"):
        assert complete(rdsrepl, noun, "drop", "x", env={"PGHOST": "127.0.0.1", "PGPORT": "1"}) == []


def test_a_cached_name_needs_no_heavy_import(rdsrepl: Program, db15: Database, tmp_path: Path) -> None:
    db15.run("CREATE PUBLICATION shop", "CREATE PUBLICATION shoes")
    words = ("--dsn", quoted(db15.dsn), "publication", "show", "sho")
    for package in ("psycopg", "boto3", "yaml"):
        (tmp_path / f"{package}.py").write_text("raise ImportError")
    without = {"PYTHONPATH": str(tmp_path)}
    assert complete(rdsrepl, *words, env=without) == []
    forget(rdsrepl)
    assert complete(rdsrepl, *words) == ["shoes", "shop"]
    assert complete(rdsrepl, *words, env=without) == ["shoes", "shop"]
    assert complete(rdsrepl, *words[:-1], "shop", env=without) == ["shop"]


def test_each_target_has_its_own_cache_entry(rdsrepl: Program, make_database: Any, pg15: PostgresServer) -> None:
    one, other = make_database(pg15), make_database(pg15)
    one.run("CREATE PUBLICATION of_one")
    other.run("CREATE PUBLICATION of_other")
    path = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"current: one\ntargets:\n  one:\n    dsn: {one.dsn!r}\n  other:\n    dsn: {other.dsn!r}\n")
    command = ("publication", "show")
    for _ in range(2):
        assert complete(rdsrepl, *command, "of") == ["of_one"]
        assert complete(rdsrepl, "-t", "other", *command, "of") == ["of_other"]
        assert complete(rdsrepl, *command, "--target", "other", "of") == ["of_other"]
        assert complete(rdsrepl, *command, "--dsn", quoted(other.dsn), "of") == ["of_other"]
        assert complete(rdsrepl, *command, "of", env={"RDSREPL_TARGET": "other"}) == ["of_other"]
        assert complete(rdsrepl, "--dsn", '"$WHERE"', *command, "of", env={"WHERE": other.dsn}) == ["of_other"]
    path.write_text(path.read_text().replace("current: one", "current: other"))
    assert complete(rdsrepl, *command, "of") == ["of_other"]


def test_a_change_is_seen_at_once(rdsrepl: Program, db15: Database) -> None:
    name = f"seen_{db15.name}"
    words = ("--dsn", quoted(db15.dsn), "slot", "drop", name[:10])
    assert complete(rdsrepl, *words) == []
    assert rdsrepl("slot", "create", name, "--yes", dsn=db15.dsn).code == 0
    assert complete(rdsrepl, *words) == [name]
    assert rdsrepl("slot", "drop", name, "--yes", dsn=db15.dsn).code == 0
    assert complete(rdsrepl, *words) == []


def test_physical_slots_are_not_completed_for_streaming(rdsrepl: Program, db15: Database) -> None:
    name = f"phys_{db15.name}"
    db15.run(f"SELECT pg_create_physical_replication_slot('{name}')")
    try:
        assert complete(rdsrepl, "--dsn", quoted(db15.dsn), "slot", "show", name[:9]) == [name]
        assert complete(rdsrepl, "--dsn", quoted(db15.dsn), "slot", "tail", name[:9]) == []
    finally:
        db15.run(f"SELECT pg_drop_replication_slot('{name}')")


def test_roles_publications_and_tables_are_completed(rdsrepl: Program, db15: Database) -> None:
    db15.run("CREATE PUBLICATION shop")
    assert complete(rdsrepl, "--dsn", quoted(db15.dsn), "slot", "tail", "x", "--publication", "s") == ["shop"]
    assert complete(rdsrepl, "--dsn", quoted(db15.dsn), "slot", "peek", "x", "--publication", "s") == ["shop"]
    db15.run("CREATE TABLE orders (id int)")
    assert complete(rdsrepl, "--dsn", quoted(db15.dsn), "slot", "tail", "x", "--table", "p") == ["public.orders"]
    assert "rdsadmin" in complete(rdsrepl, "--dsn", quoted(db15.dsn), "role", "grant", "rds")


def test_a_name_that_a_shell_would_interpret_is_left_out(rdsrepl: Program, db15: Database) -> None:
    db15.run('CREATE PUBLICATION "p$(touch x)"', 'CREATE PUBLICATION "p q"', 'CREATE PUBLICATION "p*"')
    db15.run('CREATE PUBLICATION "p`x`"', 'CREATE PUBLICATION "=p"', "CREATE PUBLICATION pür_alle")
    words = ("--dsn", quoted(db15.dsn), "publication", "drop", "")
    assert complete(rdsrepl, *words) == ["pür_alle"]
    entry = next(kept(rdsrepl).iterdir())
    entry.write_text(entry.read_text().replace("p\\u00fcr_alle", "p;reboot"))
    assert complete(rdsrepl, *words) == []


def test_the_cache_is_private_and_contains_no_secret(rdsrepl: Program, db15: Database) -> None:
    dsn = f"{db15.dsn} password=hunter2"
    db15.run("CREATE PUBLICATION shop")
    assert complete(rdsrepl, "--dsn", quoted(dsn), "publication", "show", "") == ["shop"]
    (entry,) = kept(rdsrepl).iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600 and entry.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(entry.read_text()).keys() == {"until", "names"}
    assert re.fullmatch(r"[0-9a-f]{32}\.json", entry.name)
    # Another password leads to the same entry: it is not part of the key.
    assert complete(rdsrepl, "--dsn", quoted(f"{db15.dsn} password=other"), "publication", "show", "") == ["shop"]
    assert list(kept(rdsrepl).iterdir()) == [entry]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"until": "x", "names": []}', '{"until": 9e99, "names": ["old"]}', '{"names": ["old"]}',
     '{"until": 1, "names": ["old"]}', '{"until": NEXT, "names": [1]}', '{"until": NEXT, "names": 7}', "\x00\xff"],
)  # fmt: skip
def test_a_damaged_entry_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert completion_cache.write("key", ["name"], seconds=30, now=1000)
    (entry,) = completion_cache.directory().iterdir()
    entry.write_text(text.replace("NEXT", "1010"))
    assert completion_cache.read("key", now=1000) is None
    assert completion_cache.write("key", ["name"], seconds=30, now=1000) and completion_cache.read("key", now=1000) == [
        "name"
    ]


def test_an_entry_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert completion_cache.read("key", now=1000) is None
    assert completion_cache.write("key", [], seconds=30, now=1000)
    assert completion_cache.read("key", now=1029) == [] and completion_cache.read("other", now=1029) is None
    assert completion_cache.read("key", now=1030) is None
    assert completion_cache.read("key", now=600) is None, "the clock was set back"
    assert completion_cache.write("key", ["a"], seconds=10**9, now=1000)
    assert completion_cache.read("key", now=1000 + completion_cache.MAX_SECONDS) is None
    completion_cache.clear()
    assert completion_cache.read("key", now=1000) is None
    completion_cache.clear()


def test_old_entries_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(100):
        completion_cache.write(str(number), ["a"], seconds=30, now=0)
    for entry in completion_cache.directory().iterdir():
        os.utime(entry, (1, 1))
    completion_cache.write("new", ["a"], seconds=30, now=1000)
    assert len(list(completion_cache.directory().iterdir())) == 1


def test_completion_works_without_a_cache_directory(rdsrepl: Program, db15: Database, tmp_path: Path) -> None:
    db15.run("CREATE PUBLICATION shop")
    (tmp_path / "file").touch()
    words = ("--dsn", quoted(db15.dsn), "publication", "show", "")
    for place in (str(tmp_path / "file"), "/proc/nowhere"):
        assert "shop" in complete(rdsrepl, *words, env={"XDG_CACHE_HOME": place})
        done = rdsrepl(
            "publication",
            "create",
            f"p{len(place)}",
            "--all-tables",
            "--yes",
            dsn=db15.dsn,
            env={"XDG_CACHE_HOME": place},
        )
        assert done.code == 0, done.err


def test_a_server_that_does_not_respond_times_out(rdsrepl: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        # By default libpq would wait for ten seconds to connect, and without limit for an answer.
        assert complete(rdsrepl, "slot", "show", "", env={"PGHOST": "127.0.0.1", "PGPORT": port}) == []
        # The failure is cached for a few seconds.
        assert len(list(kept(rdsrepl).iterdir())) == 1


def test_a_question_that_hangs_times_out() -> None:
    never = threading.Event()
    assert completion._within(0.01, lambda: [str(never.wait())]) is None
    never.set()

    def fail() -> list[str]:
        raise ZeroDivisionError

    assert completion._within(5, fail) is None
    assert completion._within(5, lambda: ["a"]) == ["a"]


@pytest.mark.parametrize(
    "words",
    [
        ("--cluster", "a", "--instance", "b", "slot", "show", ""),
        ("--dsn", "''", "slot", "show", ""),
        ("--dsn", "'not a conninfo'", "slot", "show", ""),
        ("-t", "nowhere", "slot", "show", ""),
        ("-o", "nonsense", "-vv", "slot", "show", ""),
        ("slot", "tail", "x", "--limit", "many", "--publication", ""),
        ("slot", "tail", "x", "--nonsense", "--to", "kinesis:"),
        ("--profile", "no-such-profile", "stream", "show", ""),
        ("nonsense", "mo"),
        ("--version", "slot", "nonsense", "x"),
    ],
)
def test_a_wrong_line_has_no_completions_and_prints_no_error(rdsrepl: Program, words: tuple[str, ...]) -> None:
    nowhere = {"PGHOST": "127.0.0.1", "PGPORT": "1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "eu-west-1"}
    assert complete(rdsrepl, *words, env=nowhere) == []


def test_a_broken_config_file_prints_no_error(rdsrepl: Program) -> None:
    for place in ("/dev/null/x", "/proc/self/mem", "/"):
        assert complete(rdsrepl, "slot", "show", "", env={"RDSREPL_CONFIG": place}) == []


def test_profiles_are_read_from_the_files_of_boto3(rdsrepl: Program, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nregion=x\n[profile prod]\n[profile my team]\n[sso-session corp]\n")
    (tmp_path / "credentials").write_text("[staging]\naws_access_key_id = 50%\n")
    files = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    assert complete(rdsrepl, "--profile", "", env=files) == ["default", "prod", "staging"]
    assert complete(rdsrepl, "--profile", "", env={**files, "AWS_CONFIG_FILE": "/dev/null/x"}) == ["staging"]
    (tmp_path / "config").write_text("no section")
    assert complete(rdsrepl, "--profile", "", env=files) == ["staging"]


def test_names_from_aws(cloud: Cloud) -> None:
    program = cloud.program
    forget(program)
    cloud.client("kinesis").create_stream(StreamName="completed", ShardCount=1)
    clusters, members = complete(program, "cluster", "show", ""), complete(program, "instance", "show", "")
    assert clusters == names(cloud, "cluster") and clusters
    assert members == names(cloud, "instance") and members
    for words in (("--cluster",), ("slot", "list", "--cluster"), ("instance", "create", "x", "--in-cluster")):
        assert complete(program, *words, "") == clusters
    for words in (
        ("--instance",),
        ("cluster", "failover", clusters[0], "--to"),
        ("instance", "create", "--replica-of"),
    ):
        assert complete(program, *words, "") == members
    for words in (("param-group", "create", "x", "--copy-from"), ("param-group", "show"), ("param-group", "diff", "x")):
        assert complete(program, *words, "") == names(cloud, "param-group", "name")
    assert "completed" in complete(program, "stream", "show", "comp")
    assert complete(program, "slot", "tail", "x", "--to", "kinesis:comp") == ["kinesis:completed"]
    assert complete(program, "slot", "tail", "x", "--to", "") == ["-", "file:", "kinesis:"]
    # A cached name is not requested again; with another account it is.
    cloud.faults(
        {"service": "rds", "operation": "DescribeDBClusters", "code": "InternalFailure", "status": 500, "times": None}
    )
    assert complete(program, "cluster", "show", "") == clusters
    assert complete(program, "--region", "us-west-2", "cluster", "show", "") == []


def names(cloud: Cloud, noun: str, key: str | None = None) -> list[str]:
    rows = cloud(noun, "list", "-o", "json").json
    return sorted(row[key or f"{noun}_id"] for row in rows)


def test_a_cluster_option_selects_its_database(cloud: Cloud) -> None:
    program = cloud.program
    cluster = complete(program, "cluster", "show", "")[0]
    variables = cloud("sandbox", "env", "-o", "json").json
    login = {name: variables[name] for name in ("PGUSER", "PGPASSFILE", "PGPASSWORD") if name in variables}
    assert "rds_superuser" in complete(program, "--cluster", cluster, "role", "grant", "rds_s", env=login)


# COMP_WORDS for these lines, as ``declare -p COMP_WORDS`` printed it in a completion function of bash 5.2.
@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        ("--dsn postgresql : //u @ h : 5432/db?sslmode = require slot sho", ["show"]),
        ("--dsn = postgresql : //u @ h/db slot sho", ["show"]),
        ("--target = st", ["staging"]),
        ("--target =", ["prod", "staging"]),
        ("slot tail --format = js", ["json"]),
        ("slot tail x --plugin-option include-xids = 1 --format js", ["json"]),
        ("slot tail x --to kinesis : bash", ["bash-a", "bash-b"]),
        ("slot tail x --to kinesis :", ["bash-a", "bash-b"]),
        ("slot tail x --to = kinesis : bash-b", ["bash-b"]),
        ("slot tail x --to kinesis : bash-b --format json", ["json"]),
        ("slot tail x --to kinesis:", ["kinesis:bash-a", "kinesis:bash-b"]),
    ],
)
def test_words_that_bash_split_are_joined(cloud: Cloud, tmp_path: Path, pieces: str, wanted: list[str]) -> None:
    known = set(cloud("stream", "list", "-o", "json").json)
    for name in {"bash-a", "bash-b"} - known:
        cloud.client("kinesis").create_stream(StreamName=name, ShardCount=1)
        forget(cloud.program)
    (tmp_path / "config.yaml").write_text("targets:\n  prod:\n    host: h\n  staging:\n    host: h\n")
    words = ["rdsrepl", *pieces.split()]
    array = " ".join(shlex.quote(word) for word in words)
    script = f"source {KEPT / FILES['bash']}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}\n"
    script += "_rdsrepl_completion rdsrepl; printf '%s\\n' \"${COMPREPLY[@]}\""
    path = f"{Path(cloud.program.command[0]).parent}:{os.environ['PATH']}"
    env = {**cloud.program.env, "PATH": path, "RDSREPL_CONFIG": str(tmp_path / "config.yaml")}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    others = {f"{start}{name}" for name in known for start in ("", "kinesis:")}
    assert [word for word in done.stdout.split() if word in wanted or word not in others] == wanted


def test_words_after_the_cursor_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "rdsrepl\nslot\nshow\n\n--target\nx")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert completion._join_words() == ""
    assert (os.environ["COMP_WORDS"], os.environ["COMP_CWORD"]) == ("rdsrepl\nslot\nshow\n", "3")


def takers() -> Iterator[tuple[str, Any]]:
    """Yield every parameter that takes the name of an existing object, by command and name."""
    new = {"create", "up"}
    options = {"--target", "--cluster", "--instance", "--profile", "--publication", "--param-group", "--slot"}
    options |= {"--copy-from", "--replica-of", "--in-cluster"}
    kinds = {"TARGET", "TABLE", "PLUGIN"}
    arguments = {"name", "slot", "slots", "cluster_id", "instance_id", "stream", "other"}

    def walk(words: list[str], command: Any) -> Iterator[tuple[str, Any]]:
        for name, child in getattr(command, "commands", {}).items():
            yield from walk([*words, name], child)
        for parameter in command.params:
            takes = parameter.name in arguments and not new & set(words)
            if takes or options & set(parameter.opts) or parameter.metavar in kinds or "--table" in parameter.opts:
                yield " ".join([*words, parameter.opts[0]]), parameter

    yield from walk([], typer.main.get_command(app))


def test_every_parameter_that_takes_a_name_is_completed() -> None:
    # The objects of a policy do not have to exist yet.
    lacking = [
        words
        for words, parameter in takers()
        if parameter._custom_shell_complete is None and not words.startswith("iam-policy")
    ]
    assert lacking == []
    assert len(list(takers())) > 150
