"""A plan: what a command would do, as frozen data with two readers, ``confirm_and_apply`` (show) and ``apply`` (run).

The text of a step is complete: literals are composed into a statement, and a call's parameters are all there, so what
is shown is what runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rdsrepl.config import Target
from rdsrepl.errors import AlreadyExists
from rdsrepl.text.escapes import json_text, shown
from rdsrepl.text.masking import MASK
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composable, Composed

Protocol = Literal["sql", "replication"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement, or one command of the replication protocol.

    Attributes:
        summary: one line in plain words: ``drop replication slot orders``.
        sql: the statement.
        shown: printed in place of the statement when that carries a secret.
        protocol: the kind of connection it needs.
        guard: set on a statement whose own condition may find nothing to act on any more; says what changed. The
            statement must then return a row when it acted.
        timeout_seconds: after this long the statement is cancelled.
        blockers: a query with ``%(pid)s``, run on a second connection while the statement waits: each row's one
            text column names something it waits for.
        undo: run when the statement timed out or was interrupted, so that nothing half made stays behind.
        makes: it creates an object.
        key: what the step acts on, for the caller that looks steps up by it: the name of the slot.
        done_if: a query, asked on a new connection when the old one broke under the statement: was it carried out all
            the same? One row of one boolean; NULL where this server cannot tell, as it is another one by now.
    """

    summary: str
    sql: SQL | Composed
    shown: str | None = None
    protocol: Protocol = "sql"
    guard: str | None = None
    timeout_seconds: float | None = None
    blockers: str | None = None
    undo: SQL | Composed | None = None
    done_if: SQL | Composed | None = None
    makes: bool = False
    key: str = ""

    @property
    def text(self) -> str:
        """The statement as a person may see it."""
        return self.shown if self.shown is not None else self.sql.as_string(None)


@dataclass(frozen=True, slots=True)
class AwsCall:
    """One call of an AWS API.

    Attributes:
        summary: one line in plain words: ``reboot instance orders-2``.
        service: as boto3 names it: ``rds``.
        operation: as the API reference names it: ``RebootDBInstance``.
        parameters: the request.
        secrets: the parameters that are not shown.
        needed: asked just before each attempt to make the call, which is left out where the answer is no;
            ``condition`` says the same in words: ``if it is still pending-reboot``.
    """

    summary: str
    service: str
    operation: str
    parameters: Mapping[str, Any]
    secrets: frozenset[str] = frozenset()
    needed: Callable[[Target], bool] | None = None
    condition: str = ""

    @property
    def makes(self) -> bool:
        """Whether it makes something that was not there before."""
        return self.operation.startswith(("Create", "Copy"))

    @property
    def text(self) -> str:
        """The call as the aws CLI would make it, its secrets hidden."""
        from botocore import xform_name

        shown = {name: MASK if name in self.secrets else value for name, value in self.parameters.items()}
        indent = 2 if len(json.dumps(shown)) > 80 else None
        request = json_text(shown, indent=indent).replace("'", "'\\''")
        return f"aws {self.service} {xform_name(self.operation, '-')} --cli-input-json '{request}'"


@dataclass(frozen=True, slots=True)
class Condition:
    """What a probe found.

    Attributes:
        met: what was waited for is so.
        state: how it is, in a few words: ``writer modifying, 1 of 3 members in-sync``.
        failed: why it will never be so; the wait ends with it as an error.
        remedy: what to do about that.
        facts: what to report when it is so, by name.
    """

    met: bool
    state: str
    failed: str | None = None
    remedy: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


Probe = Callable[[Target], Condition]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until something is so, looking again and again; also a proof, when it must be so at once.

    Attributes:
        summary: one line in plain words: ``wait until cluster orders is available``.
        probe: looks, and changes nothing.
        timeout_seconds: after this long the wait ends in an error that names the state.
        confirmations: so many looks in a row must find it so, where a describe may show what was before.
    """

    summary: str
    probe: Probe
    timeout_seconds: float
    confirmations: int = 1

    @property
    def text(self) -> str:
        """How long it may take."""
        return f"(at most {format_duration(self.timeout_seconds)})"


Step = Statement | AwsCall | Wait


def require_same(what: str, compared: Mapping[str, tuple[object, object]], *, hint: str) -> None:
    """Refuse to call an object that exists the one that a command would make, where it differs.

    Args:
        what: the object: ``stream changes``.
        compared: by attribute, how it is and how it is wanted; None as wanted is not compared.
        hint: what to do about it.

    Raises:
        AlreadyExists: it differs; the message names each difference.
    """
    differences = [
        f"{name} is {'-' if found is None else found}, not {wanted}"
        for name, (found, wanted) in compared.items()
        if wanted is not None and found != wanted
    ]
    if differences:
        raise AlreadyExists(f"{what} exists already, and differs: {'; '.join(differences)}", hint=hint)


def version_as_asked(found: str, wanted: str | None) -> str | None:
    """Return WANTED where FOUND is a version of it (16.4 is one of 16), else FOUND; for ``require_same``."""
    return wanted if wanted is not None and f"{found}.".startswith(f"{wanted}.") else found


def readable(step: Step) -> str:
    """Return a step's text for a terminal: its line breaks are ours, and those inside a name or a literal escaped."""
    if not isinstance(step, Statement):
        return step.text
    if step.shown is not None:
        return shown(step.shown)
    return _readable(step.sql)


def _readable(sql: Composable) -> str:
    from psycopg.sql import SQL, Composed

    if isinstance(sql, Composed):
        return "".join(map(_readable, sql))
    text = sql.as_string(None)
    return text if isinstance(sql, SQL) else shown(text)


@dataclass(frozen=True, slots=True)
class ParameterChange:
    """One parameter's line in the table above a plan's steps.

    Attributes:
        name: the parameter.
        default: what it is without the change; None where the engine decides.
        value: what it will be; None where it stays.
        apply_type: ``static`` or ``dynamic``.
        apply_method: ``immediate`` or ``pending-reboot``.
        reason: why, in a few words.
    """

    name: str
    default: str | None
    value: str | None
    apply_type: str
    apply_method: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order; an empty plan means there is nothing to do.

    Attributes:
        title: what the steps are for: ``create replication slot orders``.
        steps: applied one after the other, each statement in a transaction of its own.
        warnings: what it costs, to be read before the question is answered.
        unchanged: said when there are no steps: ``role reader already has all that``.
        changes: the parameters the steps are about.
        independent: each step stands for itself: one that fails does not keep the others from being applied.
    """

    title: str
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    unchanged: str = "nothing to do"
    changes: tuple[ParameterChange, ...] = ()
    independent: bool = False

    def __bool__(self) -> bool:
        return bool(self.steps)
