"""The kept completion scripts are current, are valid shell, and complete what they should."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Database, Program

KEPT = Path(__file__).parent.parent / "completions"
FILES = {"bash": "rdsrepl.bash", "zsh": "_rdsrepl", "fish": "rdsrepl.fish"}


def generated(rdsrepl: Program, shell: str) -> str:
    """Return the script as the program prints it; for zsh fit for a directory of fpath."""
    text = rdsrepl(env={"_RDSREPL_COMPLETE": f"source_{shell}"}).out.strip() + "\n"
    # Out of fpath the file itself is called at the first completion, and must complete that one as well.
    return text + '_rdsrepl_completion "$@"\n' if shell == "zsh" else text


@pytest.mark.parametrize("shell", FILES)
def test_the_kept_script_is_current(rdsrepl: Program, shell: str) -> None:
    script, kept = generated(rdsrepl, shell), KEPT / FILES[shell]
    if os.environ.get("RDSREPL_UPDATE"):
        kept.write_text(script)
    assert kept.read_text() == script, "make docs rewrites it"
    if shell == "zsh":
        assert script.startswith("#compdef rdsrepl")


@pytest.mark.parametrize("shell", FILES)
def test_the_kept_script_is_valid(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; the script is compared all the same")
    done = subprocess.run([shell, "-n", str(KEPT / FILES[shell])], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def complete(rdsrepl: Program, *words: str, env: dict[str, str] | None = None) -> list[str]:
    """Call the program back as bash does."""
    variables = {
        "_RDSREPL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("rdsrepl", *words)),
        "COMP_CWORD": str(len(words)),
        **(env or {}),
    }
    result = rdsrepl(env=variables)
    assert result.err == ""
    return result.out.split()


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


def test_no_server_no_words(rdsrepl: Program) -> None:
    for noun in ("slot", "publication", "role"):
        assert complete(rdsrepl, noun, "drop", "x", env={"PGHOST": "127.0.0.1", "PGPORT": "1"}) == []
