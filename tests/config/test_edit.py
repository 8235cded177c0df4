"""Edits of the config file: what stays, two writers, a killed writer, a damaged or an unwritable file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rdsrepl import config
from rdsrepl.config import edit, file_update
from rdsrepl.errors import AlreadyExists, ConfigError, Error, NotFound, StalePlan

TEXT = """\
# our databases
current: prod   # the usual one
protect: [a, 'b*']

targets:
  prod: &prod
    host: &host db.example.com  # the writer
    password: s3cret
    protect:
      - c
  # the lab
  lab:
    dsn: "postgresql://dba@127.0.0.1:5433/lab"
  copy: *prod
  same:
    host: *host
# the end"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file with comments, quotes and anchors, and without a line break at its end."""
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    path.chmod(0o640)
    monkeypatch.setenv("RDSREPL_CONFIG", str(path))
    return path


def test_edits_change_only_their_keys(file: Path) -> None:
    edit.use_target("lab")
    edit.set_target("lab", {"user": "cdc"})
    edit.set_target("copy", {"port": "5432"})
    edit.rename_target("lab", "1.0")
    edit.delete_target("same")
    assert file.read_text() == (
        TEXT.replace("current: prod ", "current: '1.0' ")
        .replace("  lab:", "  '1.0':")
        .replace('/lab"\n', '/lab"\n    user: cdc\n')
        .replace("*prod", "{host: db.example.com, password: s3cret, protect: [c], port: 5432}")
        .replace("  same:\n    host: *host\n", "")
    )
    assert file.stat().st_mode & 0o777 == 0o640
    assert config.load().current == "1.0" and config.load().get("copy").keywords["port"] == "5432"


def test_line_ends_and_the_link_stay(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(TEXT.replace("\n", "\r\n").encode())
    link = tmp_path / "elsewhere" / "config.yaml"
    link.parent.mkdir()
    link.symlink_to("../config.yaml")
    monkeypatch.setenv("RDSREPL_CONFIG", str(link))
    edit.set_target("new", {"host": "h"})
    assert link.is_symlink()
    new = "    host: *host\n  new:\n    host: h\n"
    assert file.read_bytes() == TEXT.replace("    host: *host\n", new).replace("\n", "\r\n").encode()


@pytest.mark.parametrize("name", ["yes", "1.0", "null", "0x1f", "2026-01-01", "a" * 63])
def test_names_that_mean_something_else_in_yaml(file: Path, name: str) -> None:
    edit.set_target(name, {"host": "h"})
    edit.use_target(name)
    edit.rename_target(name, "other")
    assert config.load().current == "other"
    edit.rename_target("other", name)
    assert config.load().current == name
    edit.delete_target(name)
    assert config.load().current is None
    assert file.read_text() == TEXT.replace("current: prod   # the usual one\n", "")


def test_a_change_of_an_anchor_that_others_use_is_refused(file: Path) -> None:
    for change in (
        lambda: edit.set_target("prod", {"host": "x"}),
        lambda: edit.set_target("prod", {"port": "1"}),
        lambda: edit.delete_target("prod"),
    ):
        with pytest.raises(ConfigError, match=r"yaml:6: targets.prod: could not change it without other keys"):
            change()
    assert file.read_text() == TEXT


def test_secrets_are_masked_in_what_changes(file: Path) -> None:
    file.write_text(text := TEXT.replace("  copy: *prod\n", ""))
    update = edit.set_target("prod", {}, unset=["password"], dry_run=True)
    assert [(one.key, one.before, one.after) for one in update.changes] == [("targets.prod.password", "********", None)]
    assert file.read_text() == text


def test_names_that_exist_or_do_not(file: Path) -> None:
    with pytest.raises(AlreadyExists, match="'lab' already exists"):
        edit.rename_target("prod", "lab")
    for change in (edit.use_target, edit.delete_target, lambda name: edit.rename_target(name, "x")):
        with pytest.raises(NotFound) as caught:
            change("labb")
        assert caught.value.hint == "did you mean lab?"
    assert not edit.rename_target("lab", "lab").changes
    assert file.read_text() == TEXT


def test_a_damaged_file_is_not_overwritten(file: Path) -> None:
    for text in ("targets:\n  a: [1\n", "\x00", "targets: {a: {host: x}", "current: [x]\n", "- a\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"{file}:\d+"):
            edit.set_target("x", {"host": "h"})
        assert file.read_text() == text
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="could not read"):
        edit.set_target("x", {"host": "h"})
    assert file.read_bytes() == b"\xff\xfe"


def test_a_file_that_an_editor_saves_meanwhile_is_not_overwritten(file: Path) -> None:
    def saved_meanwhile(text: str) -> str:
        file.write_text(text + "# saved\n")
        return "other"

    with pytest.raises(StalePlan):
        file_update.update(file, saved_meanwhile)
    assert file.read_text() == TEXT + "# saved\n"
    assert [one.name for one in file.parent.iterdir()] == ["config.yaml"]


def test_two_writers_lose_nothing(file: Path) -> None:
    program = "import sys; from rdsrepl.config import edit\n" + (
        "for n in range(15): edit.set_target(f'{sys.argv[1]}{n}', {'host': 'h'})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, name]) for name in ("a", "b")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert {f"{name}{n}" for name in "ab" for n in range(15)} < set(config.load().targets)
    assert file.read_text().startswith(TEXT.removesuffix("# the end"))


def test_a_writer_that_is_killed_before_the_rename_changes_nothing(file: Path) -> None:
    program = (
        "import os, pathlib; from rdsrepl.config import edit\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "edit.set_target('x', {'host': 'h'})"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == -9
    assert file.read_text() == TEXT and file.with_name("config.yaml.new").exists()
    edit.set_target("x", {"host": "h"})
    assert "x" in config.load().targets
    assert [one.name for one in file.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("path", ["/dev/null", "/proc/version/config.yaml", "/dev/full/x"])
def test_a_path_that_cannot_be_a_file_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDSREPL_CONFIG", path)
    with pytest.raises(Error) as caught:
        edit.set_target("x", {"host": "h"})
    assert path in caught.value.message and caught.value.hint
    assert Path("/dev/null").is_char_device()


def test_links_that_lead_to_each_other_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = file.with_name("loop")
    link.symlink_to("loop")
    monkeypatch.setenv("RDSREPL_CONFIG", str(link))
    with pytest.raises(Error):
        edit.set_target("x", {"host": "h"})
    assert link.is_symlink()


@pytest.mark.parametrize("unwritable", ["file", "directory"])
def test_a_file_that_cannot_be_written_stays(unwritable: str) -> None:
    """Root may write everything, so the process gives that up first."""
    with tempfile.TemporaryDirectory() as name:
        directory, file = Path(name), Path(name, "config.yaml")
        file.write_text(TEXT)
        file.chmod(0o444 if unwritable == "file" else 0o666)
        directory.chmod(0o555 if unwritable == "directory" else 0o777)
        script = (
            "import os; from rdsrepl import config; from rdsrepl.config import edit; config.load()\n"
            "os.getuid() or os.setuid(65534)\n"
            "edit.set_target('x', {'host': 'h'})"
        )
        env = {**os.environ, "RDSREPL_CONFIG": str(file)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False, timeout=60
        )
        directory.chmod(0o755)
        assert done.returncode == 1 and f"could not write {file}" in done.stderr
        assert file.read_text() == TEXT
