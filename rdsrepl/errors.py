"""Every error a user can meet, and the exit code it ends in.

::

    Error                         1   failed
    ├── UsageError                2   wrong usage, found before anything was touched
    │   ├── BadValue                  a malformed LSN, size, duration, name or pattern
    │   ├── ConfigError               the config file: names file, line and key
    │   ├── BadPage                   a runbook's page: names file and line
    │   └── WrongPlugin               a format or option the slot's plugin cannot serve
    ├── NotFound                  3   slot, publication, role, target … does not exist
    ├── Refused                   4   unsafe, unsupported, or nobody confirmed
    │   ├── NotConfirmed
    │   ├── AlreadyExists
    │   ├── SlotActive
    │   ├── SlotInvalidated
    │   ├── SlotBeingSynced
    │   ├── SlotMoved                 changes are missing between what was delivered and where the slot stands
    │   ├── SlotsExhausted
    │   ├── PluginNotAllowed
    │   ├── WalLevelNotLogical
    │   ├── NotPrimary
    │   ├── StalePlan                 the guard in a statement found another state than the plan
    │   ├── NotAvailable              an AWS resource is in a state in which this cannot be done
    │   ├── InUse                     something still needs what was to be deleted
    │   ├── QuotaExceeded             AWS allows this account no more of them
    │   └── Unsupported               this server's version cannot
    ├── Denied                    5   a server or a person's right said no
    │   ├── AuthenticationFailed
    │   ├── NoCredentials             no AWS credentials were found, or they are not valid
    │   └── ExpiredCredentials        the AWS credentials were valid once
    ├── Unreachable               5
    │   ├── ConnectionLost            in the middle of the work; worth another attempt
    │   └── Throttled                 AWS answers too many requests, after all retries
    ├── StepFailed                1   a runbook's step, before anything was changed
    ├── AppliedInPart             6
    │   └── Interrupted         130   Ctrl-C; says whether something was changed, and what
    ├── OutcomeUnknown            1   the connection broke, and nobody knows whether it was done
    ├── TimedOut                  1
    ├── MalformedMessage          1   a message of the stream is none of the output plugin's
    ├── ServerError               1   anything else the server says
    └── AwsError                  1   anything else AWS says
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Any, ClassVar


@unique
class ExitCode(IntEnum):
    """What the process ends with; the table in ``docs/exit-codes.md`` explains each."""

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


class Error(Exception):
    """Something a user can meet: what failed, on what, and the remedy.

    Attributes:
        message: one line, no final full stop.
        hint: the remedy, with the next command to type where there is one.
        sqlstate: the server's five-character code, when a server said it.
        aws_code: AWS's error code, when AWS said it.
        request_id: AWS's id of the refused request, which its support asks for.
        exit_code: what the process ends with.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

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
        """The error's stable name in machine output: ``slot_active`` for ``SlotActive``."""
        return "".join("_" + c.lower() if c.isupper() else c for c in type(self).__name__).lstrip("_")

    def document(self) -> dict[str, Any]:
        """Return the error as the JSON object that ends stderr with ``-o json``."""
        fields: dict[str, Any] = {"error": self.name, "message": self.message, "hint": self.hint}
        codes = {"sqlstate": self.sqlstate, "aws_code": self.aws_code, "request_id": self.request_id}
        fields |= {name: code for name, code in codes.items() if code is not None}
        return {**fields, "exit_code": int(self.exit_code)}


class UsageError(Error):
    """Wrong usage, found before anything was touched."""

    exit_code = ExitCode.USAGE


class BadValue(UsageError):
    """A malformed LSN, size, duration, name or pattern."""


class ConfigError(UsageError):
    """The config file is wrong; the message names file, line and key."""


class BadPage(UsageError):
    """A runbook's page breaks a rule; the message names file and line."""


class WrongPlugin(UsageError):
    """A format or an option that the slot's output plugin cannot serve."""


class NotFound(Error):
    """A named thing does not exist."""

    exit_code = ExitCode.NOT_FOUND


class Refused(Error):
    """Unsafe, unsupported, or nobody confirmed."""

    exit_code = ExitCode.REFUSED


class NotConfirmed(Refused):
    """Nobody said yes."""


class AlreadyExists(Refused):
    """The name is taken."""


class SlotActive(Refused):
    """Another consumer holds the slot."""


class SlotInvalidated(Refused):
    """The server gave the slot up; the changes it held are gone."""


class SlotBeingSynced(Refused):
    """The slot is a copy that this standby keeps in step with its primary."""


class SlotMoved(Refused):
    """The slot is beyond what was delivered: made again, or moved by somebody else; changes are missing."""


class SlotsExhausted(Refused):
    """All ``max_replication_slots`` or ``max_wal_senders`` are in use."""


class PluginNotAllowed(Refused):
    """The server does not have, or does not allow, the output plugin."""


class WalLevelNotLogical(Refused):
    """``wal_level`` is not ``logical``."""


class NotPrimary(Refused):
    """The server is a standby and the work needs a primary."""


class StalePlan(Refused):
    """The guard in a statement found another state than the plan was made for."""


class NotAvailable(Refused):
    """An AWS resource is in a state in which this cannot be done."""


class InUse(Refused):
    """Something still needs what was to be deleted."""


class QuotaExceeded(Refused):
    """AWS allows this account no more of them."""


class Unsupported(Refused):
    """The server's version or kind cannot do this."""


class Denied(Error):
    """The role, or the identity, has no right to do this."""

    exit_code = ExitCode.UNREACHABLE


class AuthenticationFailed(Denied):
    """The server did not accept the role or its password."""


class NoCredentials(Denied):
    """No AWS credentials were found, or they are not valid."""


class ExpiredCredentials(Denied):
    """The AWS credentials were valid once."""


class Unreachable(Error):
    """No server answered, or it would not take a connection."""

    exit_code = ExitCode.UNREACHABLE


class ConnectionLost(Unreachable):
    """The connection broke in the middle of the work; another attempt is worth it."""


class Throttled(Unreachable):
    """AWS answers too many requests, after all retries."""


class AppliedInPart(Error):
    """A plan stopped half way."""

    exit_code = ExitCode.PARTIAL

    def __init__(self, message: str, *, hint: str | None = None, done: list[str], not_done: list[str]) -> None:
        super().__init__(message, hint=hint)
        self.done = done
        self.not_done = not_done

    def document(self) -> dict[str, Any]:
        """Add what was done and what was not."""
        return {**super().document(), "done": self.done, "not_done": self.not_done}


class Interrupted(AppliedInPart):
    """Ctrl-C; ``done`` and ``not_done`` are empty where nothing was changed."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(
        self, message: str, *, hint: str | None = None, done: list[str] | None = None, not_done: list[str] | None = None
    ) -> None:
        super().__init__(message, hint=hint, done=done or [], not_done=not_done or [])


class OutcomeUnknown(Error):
    """The connection broke under the work, and nobody knows whether it was done."""


class StepFailed(Error):
    """A runbook's step did not end as its page says, and nothing was changed before it."""


class TimedOut(Error):
    """The work did not end within its time."""


class MalformedMessage(Error):
    """A message of the stream is none of the output plugin's; nothing is confirmed past it."""


class ServerError(Error):
    """Anything else a server says."""


class AwsError(Error):
    """Anything else AWS says."""
