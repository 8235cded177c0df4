"""Write and read the file of a saved plan, which ``--out`` writes and ``rdsrepl apply`` reads.

The file is one JSON object: the command, the server, the steps, and a checksum of them. It contains no secret: a
password is read or generated again when the plan is applied. Only the user who may apply the plan may have written it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import BadPlanFile, NotFound, Refused
from rdsrepl.state import audit, json_lines
from rdsrepl.text.escapes import json_text

FORMAT: Final = 1
_KEY: Final = "rdsrepl_plan"
_MAX_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan in a file.

    Attributes:
        created_at: when it was made, UTC, ISO 8601.
        created_by: who made it, and on which host: ``ada@ops-1``.
        created_with: the version of rdsrepl.
        command: the noun, the verb, and their own options and operands.
        options: the global options that select the server, without passwords.
        server: what the plan is applied to, with the fields of ``PlanTarget``; None for a plan without steps.
        identity: what tells this server from another one with the same name.
        pins: the values that the planner chose, and that it has to choose again.
        plan: the plan as ``-o json`` prints it.
        own: the address of the command's own server, where the plan is applied to another one.
    """

    created_at: str
    created_by: str
    created_with: str
    command: tuple[str, ...]
    options: Mapping[str, str]
    server: Mapping[str, str | None] | None
    identity: Mapping[str, str | None]
    pins: Mapping[str, str]
    plan: Mapping[str, Any]
    own: Mapping[str, str | None] | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """When a saved plan was applied, and by whom."""

    at: str
    by: str


def now() -> str:
    """Return the time, UTC, as files of plans contain it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(path: Path, plan: SavedPlan) -> None:
    """Write a plan to a file that only its owner can read; replace it in one step if it is a plan.

    Raises:
        BadPlanFile: the file is something else, or could not be written.
    """
    try:
        with json_lines.open_regular(path, os.O_RDONLY) as file:
            is_plan = _KEY.encode() in (file.read(200) or b"")
        if not is_plan:
            raise BadPlanFile(f"{path} exists and is not a plan", hint="choose another file for --out")
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise BadPlanFile(f"the directory {path.parent} does not exist", hint="create it first") from None
    except OSError as exc:
        raise _unusable(path, exc) from exc
    _store(path, plan, None)


class PlanFile:
    """A saved plan that this process applies: no other process applies it at the same time."""

    def __init__(self, path: Path, plan: SavedPlan, applied: Applied | None) -> None:
        self.path = path
        self.plan = plan
        self.applied = applied

    def mark_applied(self) -> None:
        """Record in the file that the plan was applied, so that it is not applied twice.

        Raises:
            Refused: the file could not be written.
        """
        try:
            self._mark(Applied(now(), audit.user_and_host()))
        except BadPlanFile as exc:
            raise Refused(f"{exc.message}; nothing was changed", hint="copy it to a directory of your own") from exc

    def mark_not_applied(self) -> None:
        """Remove that record: nothing was changed."""
        self._mark(None)

    def _mark(self, applied: Applied | None) -> None:
        _store(self.path, self.plan, applied)
        self.applied = applied


@contextmanager
def opened(path: Path) -> Iterator[PlanFile]:
    """Read a plan, and keep other processes from applying it meanwhile.

    Raises:
        NotFound: there is no such file.
        BadPlanFile: it is damaged, of a newer format, writable by everybody, or belongs to another user.
        Refused: another process applies it.
    """
    while True:
        try:
            file = json_lines.open_regular(path, os.O_RDONLY, own=True)
        except FileNotFoundError:
            raise NotFound(f"plan file {path} does not exist", hint="save a plan with --out FILE") from None
        except OSError as exc:
            raise _unusable(path, exc) from exc
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    f"another process applies the plan in {path}", hint="wait until it ends, then check the result"
                ) from None
            try:
                if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    continue  # replaced between open and lock
                content = file.read(_MAX_BYTES) or b""
            except OSError as exc:
                raise _unusable(path, exc) from exc
            yield PlanFile(path, *_decoded(path, content))
            return


def _store(path: Path, plan: SavedPlan, applied: Applied | None) -> None:
    document = {_KEY: FORMAT, **asdict(plan)}
    whole = {**document, "checksum": _checksum(document), "applied": None if applied is None else asdict(applied)}
    try:
        json_lines.replace_file(path.resolve(), json_text(whole, indent=2).encode() + b"\n", sync=True)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def _decoded(path: Path, content: bytes) -> tuple[SavedPlan, Applied | None]:
    damaged = f"{path} is not a plan that rdsrepl saved, or is damaged"
    again = "plan again with --out"
    try:
        document = json_lines.require_type(json_lines.parse(content), dict)
        version = json_lines.require_int64(document[_KEY])
    except (json_lines.Damaged, LookupError):
        raise BadPlanFile(damaged, hint=again) from None
    if version != FORMAT:
        raise BadPlanFile(
            f"{path} has format {version} of plans; this version reads format {FORMAT}",
            hint="apply it with the version that saved it, or plan again with --out",
        )
    try:
        applied = document.pop("applied")
        if document.pop("checksum") != _checksum(document):
            raise BadPlanFile(f"{path} was changed after it was saved, or is damaged", hint=again)
        document.setdefault("own", None)
        plan = SavedPlan(**{one.name: document[one.name] for one in fields(SavedPlan)})
        _require_types(plan)
        return replace(plan, command=tuple(plan.command)), None if applied is None else Applied(**applied)
    except (json_lines.Damaged, LookupError, TypeError, AttributeError):
        raise BadPlanFile(damaged, hint=again) from None


def _require_types(plan: SavedPlan) -> None:
    values = [*json_lines.require_type(plan.command, list), *plan.options.values(), *plan.pins.values()]
    if len(plan.command) < 2 or not all(isinstance(value, str) for value in values):
        raise json_lines.Damaged("expected: texts")
    for mapping in (plan.identity, plan.plan, plan.server or {}, plan.own or {}):
        json_lines.require_type(mapping, dict)
    for step in json_lines.require_type(plan.plan["steps"], list):
        json_lines.require_type(step["summary"], str)


def _checksum(document: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _unusable(path: Path, exc: OSError) -> BadPlanFile:
    hint = "check the path"
    if exc.errno == errno.EPERM:
        hint = "plan again with --out: only the user who saved a plan may apply it"
    return BadPlanFile(f"could not use plan file {path}: {exc.strerror or exc}", hint=hint)
