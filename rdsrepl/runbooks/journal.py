"""What happened in each run of a runbook, a JSON object a line: who, when, where, which step, how it ended.

``$XDG_STATE_HOME/rdsrepl/runbooks/<time>-<runbook>-<run>.jsonl``, one file a run, readable by its owner. It holds no
outputs (one may carry a password) and no secrets: a connection string is masked.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rdsrepl import audit
from rdsrepl.config import state_directory

# How a step can have ended so that a resumed run goes on behind it.
SETTLED: Final = ("done", "skipped", "passed_over")


@dataclass(frozen=True, slots=True)
class Past:
    """An earlier run.

    Attributes:
        run: its id.
        at: when it began, ISO 8601.
        digest: of the page it ran.
        variables: as they were given or filled in.
        settled: the steps that are behind it, by name, and how each ended.
        changed: whether a step of it changed something.
        stopped_at: the step that was begun and did not end well; None where it stopped between two.
        unknown: that step was begun, and nothing says how it ended.
        ended: how the whole run ended: ``done``, ``failed``, ``quit``, ``interrupted``; None where nothing says so.
    """

    run: str
    at: str
    digest: str
    variables: Mapping[str, str]
    settled: Mapping[str, str]
    changed: bool
    stopped_at: str | None
    unknown: bool
    ended: str | None


class Journal:
    """Writes one run's file, a line at once, each on disk before the next step begins."""

    def __init__(self, runbook: str) -> None:
        self.run = uuid.uuid4().hex[:8]
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path = directory() / f"{moment}-{runbook}-{self.run}.jsonl"
        self.failed: str | None = None

    def write(self, event: str, **fields: Any) -> None:
        """Add a line; where that cannot be done, ``failed`` says why, and the run goes on."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": moment, "run": self.run, "event": event, **fields}, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(line.encode("utf-8", "surrogateescape"))
                os.fsync(file.fileno())
        except OSError as exc:
            self.failed = str(exc)


def directory() -> Path:
    """Return where the journals are."""
    return state_directory() / "runbooks"


def who() -> str:
    """Return who runs this, and on which machine."""
    found = audit.who()
    return f"{found['os_user']}@{found['client']}"


def last(runbook: str, where: Mapping[str, str]) -> Past | None:
    """Return the latest run of a runbook at a place; None where there is none, or none that can be read."""
    try:
        found = sorted(directory().glob(f"*-{runbook}-*.jsonl"), reverse=True)
    except OSError:
        return None
    for path in found:
        past = _read(path, runbook, where)
        if past is not None:
            return past
    return None


def _read(path: Path, runbook: str, where: Mapping[str, str]) -> Past | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        begin = json.loads(lines[0])
        if begin["runbook"] != runbook or begin["where"] != dict(where):
            return None
        settled: dict[str, str] = dict(begin["settled"])
        changed, open_step, failed, ended = bool(begin["changed"]), None, None, None
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except ValueError:  # the last one, cut by a kill
                break
            if row["event"] == "step_begin":
                open_step, failed = row["step"], None
            elif row["event"] == "step_end":
                open_step = None
                changed = changed or bool(row["changed"])
                if row["status"] in SETTLED:
                    settled[row["step"]] = row["status"]
                else:
                    failed = row["step"]
            elif row["event"] == "end":
                ended = row["status"]
        return Past(
            run=begin["run"],
            at=begin["at"],
            digest=begin["digest"],
            variables=begin["variables"],
            settled=settled,
            changed=changed,
            stopped_at=open_step or failed,
            unknown=open_step is not None,
            ended=ended,
        )
    return None
