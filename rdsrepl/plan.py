"""A plan: the changes of a command as frozen data. ``cli.plan_view`` shows it, ``apply`` runs it.

The text of a step is complete: it contains the literals of a statement and all parameters of a call. What is shown is
what runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rdsrepl.config import Target
from rdsrepl.errors import AlreadyExists
from rdsrepl.text.escapes import json_text, shown
from rdsrepl.text.masking import MASK
from rdsrepl.units import format_duration, with_unit

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composable, Composed

Protocol = Literal["sql", "replication"]
#: What a step does to its object. A reboot and a failover are changes.
Effect = Literal["create", "change", "drop"]


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """A statement that is repeated on another server while the statement of a step runs.

    Attributes:
        target: the other server.
        sql: the statement.
        every_seconds: how often it is repeated.
        otherwise: run instead, every five seconds, if the role may not run ``sql``.
        blockers: a query of the same form as ``Statement.blockers``, run on the other server.
    """

    target: Target
    sql: SQL | Composed
    every_seconds: float
    otherwise: SQL | None = None
    blockers: str | None = None

    @property
    def text(self) -> str:
        """The server and the statement."""
        return f"meanwhile on {self.target.label}: {self.sql.as_string(None)}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement, or one command of the replication protocol.

    Attributes:
        summary: one line: ``drop replication slot orders``.
        sql: the statement.
        shown: printed in place of a statement that contains a secret.
        protocol: the kind of connection that it needs.
        guard: the error message if the statement returns no row, because its own condition is not met any more.
        timeout_seconds: the statement is cancelled after this time.
        timeout_hint: the hint of the error after that time; empty for the usual one.
        blockers: a query, run on a second connection while the statement waits: each row is something that it waits for
            besides the locks of other sessions, with the first columns of ``apply.Blocker``.
        undo: run after the statement timed out or was interrupted, to remove what it left.
        effect: what it does to its object.
        reason: why the plan has this step, or a fact to read before it runs, in short.
        key: what the step acts on, for the caller that looks steps up by it: the name of the slot.
        done_if: a query, run on a new connection after the connection was lost during the statement: was the statement
            executed? One boolean; NULL if the server does not know, for example after a failover.
        target: the server to run it on; None for the server of the plan.
        meanwhile: what another server does while the statement runs.
    """

    summary: str
    sql: SQL | Composed
    shown: str | None = None
    protocol: Protocol = "sql"
    guard: str | None = None
    timeout_seconds: float | None = None
    timeout_hint: str = ""
    blockers: str | None = None
    undo: SQL | Composed | None = None
    done_if: SQL | Composed | None = None
    key: str = ""
    reason: str = ""
    target: Target | None = None
    meanwhile: Meanwhile | None = None
    effect: Effect = field(kw_only=True)

    @property
    def text(self) -> str:
        """The statement without secrets."""
        return self.shown if self.shown is not None else self.sql.as_string(None)


@dataclass(frozen=True, slots=True)
class AwsCall:
    """One call of an AWS API.

    Attributes:
        summary: one line: ``reboot instance orders-2``.
        service: its name in boto3: ``rds``.
        operation: its name in the API reference: ``RebootDBInstance``.
        parameters: the request.
        secrets: the parameters whose values are not shown.
        needed: called before each attempt; the call is skipped if it returns False. ``condition`` is the same as text:
            ``if it is still pending-reboot``.
        effect: what it does to its object.
        reason: why the plan has this step, in short.
    """

    summary: str
    service: str
    operation: str
    parameters: Mapping[str, Any]
    secrets: frozenset[str] = frozenset()
    needed: Callable[[Target], bool] | None = None
    condition: str = ""
    reason: str = ""
    effect: Effect = field(kw_only=True)

    def sets(self, parameter: str) -> bool:
        """Return whether the call sets or resets this parameter of a parameter group."""
        rows = self.parameters.get("Parameters", ())
        return "ResetAllParameters" in self.parameters or any(row["ParameterName"] == parameter for row in rows)

    @property
    def text(self) -> str:
        """The call as a command of the aws CLI, without secrets."""
        from botocore import xform_name

        shown = {name: MASK if name in self.secrets else value for name, value in self.parameters.items()}
        indent = 2 if len(json.dumps(shown)) > 80 else None
        request = json_text(shown, indent=indent).replace("'", "'\\''")
        return f"aws {self.service} {xform_name(self.operation, '-')} --cli-input-json '{request}'"


@dataclass(frozen=True, slots=True)
class Condition:
    """The result of a probe.

    Attributes:
        met: the condition is met.
        state: the current state in short: ``writer modifying, 1 of 3 members in-sync``.
        failed: why the condition cannot be met any more; the wait ends with this error.
        remedy: the hint of that error.
        facts: what to report when the condition is met, by name.
    """

    met: bool
    state: str
    failed: str | None = None
    remedy: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


Probe = Callable[[Target], Condition]


@dataclass(frozen=True, slots=True)
class Wait:
    """Poll until a condition is met; with a timeout of 0, a verification.

    Attributes:
        summary: one line: ``wait until cluster orders is available``.
        probe: reads the state, and changes nothing.
        timeout_seconds: after this time the wait fails with an error that names the state.
        confirmations: how many polls in a row must meet the condition; describe calls can return an old state.
    """

    summary: str
    probe: Probe
    timeout_seconds: float
    confirmations: int = 1

    @property
    def text(self) -> str:
        """The timeout."""
        return f"(timeout {format_duration(self.timeout_seconds)})"


@dataclass(frozen=True, slots=True)
class LocalCommand:
    """A command line of the user, run by the shell of this machine.

    Attributes:
        summary: one line: ``fence the writers``.
        command: the command line.
        timeout_seconds: it is ended after this time.
        effect: what it does to its object.
        reason: why the plan has this step, in short.
    """

    summary: str
    command: str
    timeout_seconds: float
    reason: str = ""
    effect: Effect = field(kw_only=True)

    @property
    def text(self) -> str:
        """The command line."""
        return f"$ {self.command}"


Step = Statement | AwsCall | Wait | LocalCommand


def require_same(what: str, compared: Mapping[str, tuple[object, object]], *, hint: str) -> None:
    """Check that an existing object is the same as the one that a command would create.

    Args:
        what: the object: ``stream changes``.
        compared: by attribute, the existing and the wanted value; a wanted value of None is not compared.
        hint: the remedy.

    Raises:
        AlreadyExists: the object differs; the message names each difference.
    """
    differences = [
        f"{name} is {'-' if existing is None else existing}, not {wanted}"
        for name, (existing, wanted) in compared.items()
        if wanted is not None and existing != wanted
    ]
    if differences:
        raise AlreadyExists(f"{what} already exists and differs: {'; '.join(differences)}", hint=hint)


def version_as_requested(existing: str, wanted: str | None) -> str | None:
    """Return WANTED if EXISTING is a minor version of it (16.4 of 16), else EXISTING; for ``require_same``."""
    return wanted if wanted is not None and f"{existing}.".startswith(f"{wanted}.") else existing


def readable(step: Step) -> str:
    """Return the text of a step for a terminal: line breaks inside names and literals are escaped."""
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
    """A parameter in the table above the steps of a plan.

    Attributes:
        name: the parameter.
        default: its value without the change; None if the engine decides.
        value: its new value; None if it does not change.
        apply_type: ``static`` or ``dynamic``.
        apply_method: ``immediate`` or ``pending-reboot``.
        reason: the reason in short.
        unit: the unit of the values, as in ``pg_settings``; None where they have none.
    """

    name: str
    default: str | None
    value: str | None
    apply_type: str
    apply_method: str
    reason: str
    unit: str | None = None

    @property
    def default_text(self) -> str:
        """The value without the change, for people: ``10240 (10GB)``."""
        return "(engine's)" if self.default is None else with_unit(self.default, self.unit)

    @property
    def value_text(self) -> str:
        """The new value, for people; empty if it does not change."""
        return with_unit(self.value or "", self.unit)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many steps of a plan create, change and drop an object."""

    create: int
    change: int
    drop: int

    @property
    def text(self) -> str:
        """The same as text: ``2 to create, 1 to change, 0 to drop``."""
        return f"{self.create} to create, {self.change} to change, {self.drop} to drop"


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a change in their order; a plan without steps has nothing to do.

    Attributes:
        title: the purpose of the steps: ``create replication slot orders``.
        steps: applied in order, each statement in its own transaction.
        warnings: consequences to read before the confirmation.
        unchanged: printed if there are no steps: ``role reader already has these privileges``.
        changes: the parameters that the steps change.
        independent: a step that fails does not prevent the others.
    """

    title: str
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    unchanged: str = "nothing to do"
    changes: tuple[ParameterChange, ...] = ()
    independent: bool = False

    @property
    def counts(self) -> Counts:
        """How many steps create, change and drop an object; waits are not counted."""
        effects = Counter(step.effect for step in self.steps if not isinstance(step, Wait))
        return Counts(effects["create"], effects["change"], effects["drop"])

    def __bool__(self) -> bool:
        return bool(self.steps)
