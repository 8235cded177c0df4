"""Write the journal of a run of a runbook, and read it to resume the run.

``$XDG_STATE_HOME/rdsrepl/runbooks/<time>-<runbook>-<run>.jsonl``, one file a run, one JSON object a line, readable only
by its owner. It holds no outputs, because an output can contain a password, and no secrets: connection strings are
masked.
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
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import Damaged, require_type
from rdsrepl.text.masking import mask

# A resumed run continues after the steps with these statuses.
COMPLETED: Final = ("done", "skipped", "passed_over")
# Pass the journal, the run and the step to the commands of the run.
_VARIABLES: Final = ("_RDSREPL_JOURNAL", "_RDSREPL_JOURNAL_RUN", "_RDSREPL_JOURNAL_STEP")
_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """An earlier run.

    Attributes:
        run: its ID.
        at: its start, ISO 8601.
        digest: the digest of its page.
        variables: the given values and the defaults.
        completed: the status of each completed step, by name.
        changed: whether a step changed something.
        made: what the run created, by step.
        stopped_at: the step that started and did not complete; None if the run stopped between two steps.
        unknown: whether the outcome of that step, or of the next step if it is None, is unknown.
        ended: the status of the run: ``done``, ``failed``, ``quit``, ``interrupted``; None if unknown.
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
    """Writes the file of a run; each line is on disk before the next step starts."""

    def __init__(self, runbook: str) -> None:
        self.run = uuid.uuid4().hex[:8]
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path = directory() / f"{moment}-{runbook}-{self.run}.jsonl"
        self.failed: str | None = None

    def write(self, event: str, **fields: Any) -> None:
        """Append a line; if that fails, the run continues and ``failed`` contains the error."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            json_lines.append(self.path, {"at": moment, "run": self.run, "event": event, **fields}, sync=True)
        except OSError as exc:
            self.failed = str(exc)

    def environment(self, step: str) -> dict[str, str]:
        """Return the environment with which the command of a step writes its changes to the journal (``applied``)."""
        return dict(zip(_VARIABLES, (str(self.path), self.run, step), strict=True))

    def applied(self, step: str) -> list[str] | None:
        """Return the summary of each change that a step has applied; None if unknown."""
        if self.failed is not None:
            return None
        try:
            return [row["summary"] for row in self._applied(step)]
        except (OSError, KeyError):
            return None

    def made(self, step: str) -> tuple[str, ...]:
        """Return the summary of each object that a step has created."""
        with contextlib.suppress(OSError, KeyError):
            return tuple(row["summary"] for row in self._applied(step) if row["makes"] is True)
        return ()

    def _applied(self, step: str) -> list[dict[str, Any]]:
        rows = json_lines.rows(self.path, _MAX_BYTES)
        return [row for row in rows if row is not None and row.get("event") == "applied" and row.get("step") == step]


def applied(summary: str, *, makes: bool) -> None:
    """Write an applied step of a plan to the journal of the run that started this command, if any."""
    path, run, step = (os.environ.get(name) for name in _VARIABLES)
    if path and run and step:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"at": moment, "run": run, "event": "applied", "status": "done", "step": step}
        # The change is already made: a journal that is not writable does not stop the command.
        with contextlib.suppress(OSError):
            json_lines.append(Path(path), {**row, "summary": mask(summary), "makes": makes}, sync=True)


def directory() -> Path:
    """Return the directory of the journals."""
    return state_directory() / "runbooks"


def last_run(runbook: str, where: Mapping[str, str]) -> EarlierRun | None:
    """Return the latest run of a runbook on a target; None if there is none, or it cannot be read.

    Raises:
        Refused: the first line of the latest journal is damaged, so the target of its run is unknown.
    """
    try:
        journals = sorted(directory().glob(f"*-{runbook}-*.jsonl"), reverse=True)
    except OSError:
        return None
    for path in journals:
        with contextlib.suppress(OSError):
            rows = json_lines.rows(path, _MAX_BYTES)
            if rows[1:] and rows[0] is None:
                raise Refused(
                    f"runbook {runbook}: the journal of its last run is damaged: {path}",
                    hint="check which steps that run completed, and start at the next one: --from STEP",
                )
            # A single damaged line means that the process was killed before the first step.
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
        changed, open_step, failed, ended, incomplete = require_type(begin["changed"], bool), None, None, None, False
        for row in rows:
            event, step, status = _event(row)
            incomplete = event is None
            if event == "step_begin" and step is not None:
                if open_step is not None:  # it was done, or the next step would not have started; its line is damaged
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
            unknown=open_step is not None or incomplete,
            ended=ended,
        )
    return None


def _event(row: Mapping[str, Any] | None) -> tuple[str | None, str | None, str]:
    """Return the event, the step and the status of a line; the event of a damaged line is None."""
    with contextlib.suppress(Damaged, KeyError):
        if row is not None:
            event = require_type(row["event"], str)
            step = require_type(row["step"], str) if event.startswith("step_") else None
            return event, step, "" if event == "step_begin" else require_type(row["status"], str)
    return None, None, ""


def _texts(value: object) -> dict[str, str]:
    return {name: require_type(text, str) for name, text in require_type(value, dict).items()}
