"""Reports the warnings and notices that the server sends during a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import NotFound
from rdsrepl.text.commands import command
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic

    from rdsrepl.tail.options import TailOptions
    from rdsrepl.tail.progress import Observer

# How many different notices of the server are reported; a notice about every change differs each time.
_MAX_NOTICES: Final = 1000


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning or notice from the server.

    Attributes:
        severity: WARNING, NOTICE, INFO, LOG; never translated.
        sqlstate: its code.
        message, detail, hint: the server's text, which may be translated and may contain any character.
        source: the function of the server that reports it; never translated.
    """

    severity: str
    sqlstate: str
    message: str
    detail: str | None
    hint: str | None
    source: str

    @classmethod
    def of(cls, diag: Diagnostic) -> Notice:
        """Return a notice as the driver receives it."""
        return cls(
            diag.severity_nonlocalized or diag.severity or "NOTICE",
            diag.sqlstate or "",
            diag.message_primary or "",
            diag.message_detail,
            diag.message_hint,
            diag.source_function or "",
        )

    @property
    def skips_publication(self) -> bool:
        """Whether it reports that changes are left out that are older than a publication (18).

        Older servers end the stream with an error instead.
        """
        return self.sqlstate == "55000" and self.source == "LoadPublications"

    @property
    def text(self) -> str:
        """The message, detail and hint on one line, without control characters."""
        text = self.message + (f" ({self.detail})" if self.detail else "") + (f"; {self.hint}" if self.hint else "")
        return shown(" ".join(text.split()))


class ServerNotices:
    """Reports each text once in a run."""

    def __init__(self, options: TailOptions, observer: Observer) -> None:
        self._options = options
        self._observer = observer
        self._reported: set[str] = set()

    def report(self, notice: Notice) -> NotFound | None:
        """Report a notice; return an error if the stream must not go on after it.

        The server leaves changes out that are older than a publication: the messages before the notice are to be
        handed over, and none after it.
        """
        if notice.skips_publication and not self._options.allow_missing_publication:
            return NotFound(
                f"the server leaves changes out: {notice.text}",
                hint="a publication must be older than the slot's position. Create a new slot, or move this one past "
                f"these changes ({command('slot advance {} --to-current', self._options.slot_name)}), or continue "
                "without them: --allow-missing-publication",
                sqlstate=notice.sqlstate,
            )
        text = f"message from the server: {notice.text}"
        if text not in self._reported and len(self._reported) < _MAX_NOTICES:
            self._reported.add(text)
            (self._observer.warn if notice.severity == "WARNING" else self._observer.note)(text)
        return None
