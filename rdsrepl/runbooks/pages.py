"""A runbook's page: Markdown that people read, and the steps that are in it.

A page has YAML front matter (``when``, ``needs``, ``variables``), one ``# Title``, and the sections ``## Checks
first``, ``## Steps``, ``## Verify`` and ``## Go back``, in this order. In the first three each ``### N. Title`` is a
step: prose, one block of ``sh`` whose info string says what it is (``sh check``, ``sh change``, ``sh run`` or ``sh
manual``, then ``exit=0,8``, ``only=cluster``, ``with=VARIABLE``), and maybe a block ``text expect`` with lines of the
output. What is under ``## Go back`` is for people. ``docs/runbooks.md`` says it to those who write one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdsrepl.errors import BadPage, NotFound
from rdsrepl.runbooks.model import Runbook, directory
from rdsrepl.runbooks.parser import parse
from rdsrepl.text.suggestions import did_you_mean


def names() -> tuple[str, ...]:
    """Return the names of all runbooks."""
    return tuple(sorted(path.stem for path in directory().glob("*.md")))


def load(name: str) -> Runbook:
    """Read a runbook: one of ours by its name, or any file by its path (``./mine.md``).

    Raises:
        NotFound: there is none.
        BadPage: it cannot be read as one.
    """
    is_path = "/" in name or name.endswith(".md")
    if not is_path and name not in names():
        hint = did_you_mean(name, names(), otherwise="rdsrepl runbook list shows them", cutoff=0.5)
        raise NotFound(f"no runbook {name!r}", hint=hint)
    path = Path(name) if is_path else directory() / f"{name}.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"no file {path}", hint="a runbook by its name: rdsrepl runbook list") from None
    except (OSError, ValueError) as exc:
        raise BadPage(f"{path}: cannot be read: {exc}", hint="make the file readable UTF-8") from exc
    return parse(path, text)


def as_document(runbook: Runbook) -> Mapping[str, Any]:
    """Return what ``runbook show -o json`` prints: the page's data, commands as they stand there."""
    return {
        "name": runbook.name,
        "title": runbook.title,
        "when": runbook.when,
        "needs": runbook.needs,
        "file": str(runbook.path),
        "variables": [
            {
                "name": variable.name,
                "help": variable.help,
                "type": variable.type,
                "required": variable.required,
                "default": variable.default,
            }
            for variable in runbook.variables
        ],
        "steps": [
            {
                "number": step.number,
                "name": step.name,
                "title": step.title,
                "section": step.section,
                "words": step.prose,
                "kind": step.kind.value,
                "command": step.text,
                "exit_codes": step.exit_codes,
                "expect": step.expect,
                "only": step.only,
                "with": step.with_variable,
            }
            for step in runbook.steps
        ],
        "go_back": runbook.go_back,
    }
