"""The errors that a user can see, and the exit code of each.

::

    Error                         1   failed
    ├── UsageError                2   wrong usage, detected before any change
    │   ├── BadValue                  a malformed LSN, size, duration, name or pattern
    │   ├── ConfigError               the config file: names file, line and key
    │   ├── BadPlanFile               a saved plan that is damaged or not the user's own
    │   ├── BadState                  the state of snapshots: damaged, or of another slot or server
    │   ├── BadPage                   a runbook page: names file and line
    │   └── WrongPlugin               a format or option that the output plugin of the slot does not support
    ├── NotFound                  3   a slot, publication, role, target … does not exist
    ├── Refused                   4   unsafe, unsupported, or not confirmed
    │   ├── NotConfirmed
    │   ├── AlreadyExists
    │   ├── SlotActive
    │   ├── SlotInvalidated
    │   ├── SlotBeingSynced
    │   ├── SlotMoved                 the slot is past the delivered position: changes are missing
    │   ├── SlotsExhausted
    │   ├── PluginNotAllowed
    │   ├── WalLevelNotLogical
    │   ├── NotPrimary
    │   ├── StalePlan                 the state of the object differs from the plan
    │   │   └── PlanChanged           a saved plan differs from what the command plans now
    │   ├── NotAvailable              the status of an AWS resource does not allow the change
    │   ├── InUse                     another object still uses what should be deleted
    │   ├── QuotaExceeded             a quota of the AWS account is reached
    │   └── Unsupported               the server's version or kind does not support it
    ├── Denied                    5   permission denied
    │   ├── AuthenticationFailed
    │   ├── NoCredentials             no valid AWS credentials
    │   └── ExpiredCredentials        the AWS credentials have expired
    ├── Unreachable               5
    │   ├── ConnectionLost            the connection was lost during the work; a retry can succeed
    │   └── Throttled                 AWS throttles the requests, after all retries
    ├── StepFailed                1   a step of a runbook failed before any change
    ├── AppliedInPart             6
    │   └── Interrupted         130   Ctrl-C or SIGTERM; lists what was changed
    ├── OutcomeUnknown            1   the connection was lost; the result is unknown
    ├── TimedOut                  1
    ├── SinkFailed                1   the output could not be written
    ├── OutputClosed            141   the reader closed standard output; no message
    ├── MalformedMessage          1   a message of the stream is not in the format of the output plugin
    ├── ServerError               1   any other error of a server
    └── AwsError                  1   any other error of AWS
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Any, ClassVar


@unique
class ExitCode(IntEnum):
    """The exit codes of the process; ``docs/exit-codes.md`` explains each."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    PARTIAL = 6
    CHANGES_PENDING = 7
    WARNING = 8
    CRITICAL = 9
    INTERRUPTED = 130
    # What a shell shows for a process that SIGPIPE ended.
    OUTPUT_CLOSED = 141


@dataclass(frozen=True, slots=True)
class Instead:
    """What the user probably means: the same command on another server or database.

    Attributes:
        reason: ``mz is an instance``.
        choices: options and their values, each in place of those that were typed: ``{"instance": "mz"}``.
        name: the identifier that was typed, for a command that has it as its argument.
    """

    reason: str
    choices: tuple[Mapping[str, str], ...]
    name: str = ""


class Error(Exception):
    """An error for the user: what failed, on which object, and the remedy.

    Attributes:
        message: one line without a full stop at its end.
        hint: the remedy, if possible as a command to run.
        sqlstate: the five-character code of the server, if a server reported the error.
        aws_code: the error code of AWS, if AWS reported the error.
        request_id: the AWS id of the request, for a support case.
        instead: called when the error is shown; what it returns, as a command, becomes the hint.
        exit_code: the exit code of the process.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED
    instead: Callable[[], Instead | None] | None = None

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        sqlstate: str | None = None,
        aws_code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sqlstate = sqlstate
        self.aws_code = aws_code
        self.request_id = request_id

    @property
    def name(self) -> str:
        """The stable name of the error in JSON output: ``slot_active`` for ``SlotActive``."""
        return "".join("_" + c.lower() if c.isupper() else c for c in type(self).__name__).lstrip("_")

    def document(self) -> dict[str, Any]:
        """Return the error as the JSON object that ends stderr with ``-o json``."""
        fields: dict[str, Any] = {"error": self.name, "message": self.message, "hint": self.hint}
        codes = {"sqlstate": self.sqlstate, "aws_code": self.aws_code, "request_id": self.request_id}
        fields |= {name: code for name, code in codes.items() if code is not None}
        return {**fields, "exit_code": int(self.exit_code)}


class UsageError(Error):
    """The command was used wrongly; it was detected before any change."""

    exit_code = ExitCode.USAGE


class BadValue(UsageError):
    """A malformed LSN, size, duration, name or pattern."""


class ConfigError(UsageError):
    """The config file is not valid; the message names the file, the line and the key."""


class BadPage(UsageError):
    """A runbook page breaks a rule; the message names the file and the line."""


class BadPlanFile(UsageError):
    """The file of a saved plan is damaged, of another format, or not the user's own."""


class BadState(UsageError):
    """The stored state of snapshots is damaged, or belongs to another slot, database or server."""


class WrongPlugin(UsageError):
    """The output plugin of the slot does not support a format or an option."""


class NotFound(Error):
    """A named object does not exist."""

    exit_code = ExitCode.NOT_FOUND


class Refused(Error):
    """The command is unsafe or unsupported, or was not confirmed."""

    exit_code = ExitCode.REFUSED


class NotConfirmed(Refused):
    """The plan was not confirmed."""


class AlreadyExists(Refused):
    """An object with this name already exists."""


class SlotActive(Refused):
    """The slot is in use by another consumer."""


class SlotInvalidated(Refused):
    """The slot is invalidated; its changes are lost."""


class SlotBeingSynced(Refused):
    """The slot is a copy that this standby synchronizes from its primary."""


class SlotMoved(Refused):
    """The slot is past the delivered position, recreated or advanced by another session; changes are missing."""


class SlotsExhausted(Refused):
    """All ``max_replication_slots`` or ``max_wal_senders`` are in use."""


class PluginNotAllowed(Refused):
    """The output plugin is not installed on the server, or not allowed."""


class WalLevelNotLogical(Refused):
    """``wal_level`` is not ``logical``."""


class NotPrimary(Refused):
    """The server is a standby; the command needs a primary."""


class StalePlan(Refused):
    """The object changed between the plan and its execution."""


class PlanChanged(StalePlan):
    """The command now makes another plan than the one that was saved; ``differs`` lists the differences."""

    def __init__(self, message: str, *, hint: str | None = None, differences: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.differs = list(differences)

    def document(self) -> dict[str, Any]:
        """Return the error with the differences."""
        return {**super().document(), "differs": self.differs}


class NotAvailable(Refused):
    """The status of an AWS resource does not allow the change."""


class InUse(Refused):
    """Another object still uses what should be deleted, or another process what should be written."""


class QuotaExceeded(Refused):
    """A quota of the AWS account is reached."""


class Unsupported(Refused):
    """The server's version or kind does not support the command."""


class Denied(Error):
    """The database role or the AWS identity does not have the permission."""

    exit_code = ExitCode.UNREACHABLE


class AuthenticationFailed(Denied):
    """The server rejected the role or its password."""


class NoCredentials(Denied):
    """No AWS credentials are configured, or they are not valid."""


class ExpiredCredentials(Denied):
    """The AWS credentials have expired."""


class Unreachable(Error):
    """The server does not answer or does not accept connections."""

    exit_code = ExitCode.UNREACHABLE


class ConnectionLost(Unreachable):
    """The connection was lost during the work; a retry can succeed."""


class Throttled(Unreachable):
    """AWS throttles the requests, after all retries."""


class AppliedInPart(Error):
    """A plan was applied only in part."""

    exit_code = ExitCode.PARTIAL

    def __init__(self, message: str, *, hint: str | None = None, done: list[str], not_done: list[str]) -> None:
        super().__init__(message, hint=hint)
        self.done = done
        self.not_done = not_done

    def document(self) -> dict[str, Any]:
        """Return the error with the steps that were done and those that were not."""
        return {**super().document(), "done": self.done, "not_done": self.not_done}


class Interrupted(AppliedInPart):
    """Ctrl-C or SIGTERM; ``done`` and ``not_done`` are empty if nothing was changed."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(
        self, message: str, *, hint: str | None = None, done: list[str] | None = None, not_done: list[str] | None = None
    ) -> None:
        super().__init__(message, hint=hint, done=done or [], not_done=not_done or [])


class OutcomeUnknown(Error):
    """The connection was lost during a change; whether the change was made is unknown."""


class StepFailed(Error):
    """A step of a runbook did not end as its page expects; nothing was changed before it."""


class TimedOut(Error):
    """An operation did not complete within its timeout."""


class SinkFailed(Error):
    """The output could not be written; ``slot tail`` confirms nothing after what was written."""


class OutputClosed(Error):
    """The reader closed standard output, as ``head`` does; the command ends without a message."""

    exit_code = ExitCode.OUTPUT_CLOSED


class MalformedMessage(Error):
    """A message of the stream is not in the format of the output plugin; nothing after it is confirmed."""


class ServerError(Error):
    """Any other error of a server."""


class AwsError(Error):
    """Any other error of AWS."""
