"""What happened in each run of a runbook, a JSON object a line: who, when, where, which step, how it ended.

``$XDG_STATE_HOME/rdsrepl/runbooks/<time>-<runbook>-<run>.jsonl``, one file a run, readable by its owner. It holds no
outputs (one may carry a password) and no secrets: a connection string is masked.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import state_directory
from rdsrepl.errors import Refused
from rdsrepl.state import audit, json_lines
from rdsrepl.state.json_lines import Damaged, require_type
from rdsrepl.text.masking import mask

# How a step can have ended so that a resumed run goes on behind it.
COMPLETED: Final = ("done", "skipped", "passed_over")
# Names the journal, the run and the step to the commands that a run starts.
_VARIABLES: Final = ("_RDSREPL_JOURNAL", "_RDSREPL_JOURNAL_RUN", "_RDSREPL_JOURNAL_STEP")
_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """An earlier run.

    Attributes:
        run: its id.
        at: when it began, ISO 8601.
        digest: of the page it ran.
        variables: as they were given or filled in.
        settled: the steps that are behind it, by name, and how each ended.
        changed: whether a step of it changed something.
        made: by step, what it made that was not there before.
        stopped_at: the step that was begun and did not end well; None where it stopped between two.
        unknown: that step, or the next one where none is named, may have been begun; nothing says how it ended.
        ended: how the whole run ended: ``done``, ``failed``, ``quit``, ``interrupted``; None where nothing says so.
    """

    run: str
    at: str
    digest: str
    variables: Mapping[str, str]
    completed: Mapping[str, str]
    changed: bool
    made: Mapping[str, tuple[str, ...]]
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
        try:
            json_lines.append(self.path, {"at": moment, "run": self.run, "event": event, **fields}, sync=True)
        except OSError as exc:
            self.failed = str(exc)

    def environment(self, step: str) -> dict[str, str]:
        """Return what lets a step's command write down what it does (``applied``)."""
        return dict(zip(_VARIABLES, (str(self.path), self.run, step), strict=True))

    def applied(self, step: str) -> list[str] | None:
        """Return what a step's commands made and changed so far: of each plan's step its summary; None is not known."""
        if self.failed is not None:
            return None
        try:
            return [row["summary"] for row in self._applied(step)]
        except (OSError, KeyError):
            return None

    def made(self, step: str) -> tuple[str, ...]:
        """Return what a step's commands made that was not there before."""
        with contextlib.suppress(OSError, KeyError):
            return tuple(row["summary"] for row in self._applied(step) if row["makes"] is True)
        return ()

    def _applied(self, step: str) -> list[dict[str, Any]]:
        rows = json_lines.rows(self.path, _MAX_BYTES)
        return [row for row in rows if row is not None and row.get("event") == "applied" and row.get("step") == step]


def applied(summary: str, *, makes: bool) -> None:
    """Write into the journal of the run that started this command, if one did, that a step of a plan was done."""
    path, run, step = (os.environ.get(name) for name in _VARIABLES)
    if path and run and step:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"at": moment, "run": run, "event": "applied", "status": "done", "step": step}
        # Nothing is to be changed because of it any more: a journal that cannot be written does not end the command.
        with contextlib.suppress(OSError):
            json_lines.append(Path(path), {**row, "summary": mask(summary), "makes": makes}, sync=True)


def directory() -> Path:
    """Return where the journals are."""
    return state_directory() / "runbooks"


def user_and_host() -> str:
    """Return who runs this, and on which machine."""
    found = audit.process_identity()
    return f"{found['os_user']}@{found['client']}"


def last_run(runbook: str, where: Mapping[str, str]) -> EarlierRun | None:
    """Return the latest run of a runbook at a place; None where there is none, or none that can be read.

    Raises:
        Refused: the first line of the latest file is damaged, so that nothing says which run it was.
    """
    try:
        found = sorted(directory().glob(f"*-{runbook}-*.jsonl"), reverse=True)
    except OSError:
        return None
    for path in found:
        with contextlib.suppress(OSError):
            rows = json_lines.rows(path, _MAX_BYTES)
            if rows[1:] and rows[0] is None:
                raise Refused(
                    f"runbook {runbook}: the journal of its last run is damaged: {path}",
                    hint="find out which steps that run did, and begin at the next one: --from STEP",
                )
            # A single damaged line was cut short by a kill, before any step began.
            if (
                rows
                and rows[0] is not None
                and (earlier := _earlier_run(rows[0], rows[1:], runbook, where)) is not None
            ):
                return earlier
    return None


def _earlier_run(
    begin: Mapping[str, Any], rows: list[dict[str, Any] | None], runbook: str, where: Any
) -> EarlierRun | None:
    with contextlib.suppress(Damaged, KeyError):
        if begin["runbook"] != runbook or begin["where"] != dict(where):
            return None
        completed = _texts(begin["settled"])
        made = {step: (*lines,) for step, lines in require_type(begin.get("made", {}), dict).items()}
        changed, open_step, failed, ended, lacking = require_type(begin["changed"], bool), None, None, None, False
        for row in rows:
            event, step, status = _event(row)
            lacking = event is None
            if event == "step_begin" and step is not None:
                if open_step is not None:  # it did end well, or no other would have begun; the line is damaged
                    completed[open_step], changed = "done", True
                open_step, failed = step, None
            elif event == "step_end" and step is not None and row is not None:
                open_step = None
                changed = changed or row.get("changed") is not False
                if status in COMPLETED:
                    completed[step] = status
                else:
                    failed = step
            elif event == "applied" and row is not None:
                changed = True
                if row.get("makes") is True:
                    name = require_type(row["step"], str)
                    made[name] = (*made.get(name, ()), require_type(row["summary"], str))
            elif event == "end":
                ended = status
        return EarlierRun(
            run=require_type(begin["run"], str),
            at=require_type(begin["at"], str),
            digest=require_type(begin["digest"], str),
            variables=_texts(begin["variables"]),
            completed=completed,
            changed=changed,
            made=made,
            stopped_at=open_step or failed,
            unknown=open_step is not None or lacking,
            ended=ended,
        )
    return None


def _event(row: Mapping[str, Any] | None) -> tuple[str | None, str | None, str]:
    """Return a line's event (None: it is damaged), step and status."""
    with contextlib.suppress(Damaged, KeyError):
        if row is not None:
            event = require_type(row["event"], str)
            step = require_type(row["step"], str) if event.startswith("step_") else None
            return event, step, "" if event == "step_begin" else require_type(row["status"], str)
    return None, None, ""


def _texts(value: object) -> dict[str, str]:
    return {name: require_type(text, str) for name, text in require_type(value, dict).items()}
