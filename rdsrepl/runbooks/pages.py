"""Find and load the pages of the runbooks."""

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
    """Return a runbook: one of ``rdsrepl`` by its name, or any file by its path (``./mine.md``).

    Raises:
        NotFound: there is no such runbook or file.
        BadPage: the file cannot be read, or breaks a rule.
    """
    is_path = "/" in name or name.endswith(".md")
    if not is_path and name not in names():
        hint = did_you_mean(name, names(), otherwise="list them: rdsrepl runbook list", cutoff=0.5)
        raise NotFound(f"runbook {name!r} does not exist", hint=hint)
    path = Path(name) if is_path else directory() / f"{name}.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"file {path} does not exist", hint="list the runbooks: rdsrepl runbook list") from None
    except (OSError, ValueError) as exc:
        raise BadPage(f"could not read {path}: {exc}", hint="make the file readable, with UTF-8 text") from exc
    return parse(path, text)


def as_document(runbook: Runbook) -> Mapping[str, Any]:
    """Return the document of ``runbook show -o json``, with the commands as on the page."""
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
