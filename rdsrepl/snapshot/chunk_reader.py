"""The thread that reads the chunks of incremental snapshots, beside the stream: one snapshot after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import BadState, Denied, Error, InUse, NotFound, NotPrimary, SinkFailed, TimedOut, Unreachable
from rdsrepl.snapshot import chunks
from rdsrepl.snapshot.copied_lines import Stopped
from rdsrepl.snapshot.pacing import StandbyLimit
from rdsrepl.snapshot.read_session import ReadSession, Stream
from rdsrepl.snapshot.shared_state import Restarted, SharedState
from rdsrepl.snapshot.state import Status
from rdsrepl.tail.formats.base import Format
from rdsrepl.tail.formats.type_catalog import Catalog

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.tail.preflight import PreflightResult

_FIRST_RETRY_SECONDS: Final = 0.5
_LONGEST_RETRY_SECONDS: Final = 30.0


class ChunkReader:
    """The thread that reads chunks."""

    def __init__(
        self,
        snapshots: SharedState,
        target: Target,
        checked: PreflightResult,
        make_format: Callable[[Catalog], Format],
        wants: Callable[[str, str], bool],
        replica: Callable[[str], Target],
        note: Callable[[str], None],
        *,
        keeps_table_order: bool,
    ) -> None:
        """Prepare the thread.

        Args:
            snapshots: what to read.
            target: the primary.
            checked: the result of the preflight check of the stream.
            make_format: returns the format for rows of a snapshot.
            wants: whether the stream has a table.
            replica: returns the server that a request names.
            note: takes notes for people.
            keeps_table_order: whether the output keeps the order of a table's changes, also without a key.
        """
        self._snapshots = snapshots
        self._note = note
        self._catalog = Catalog(target, note)
        fmt = make_format(self._catalog)
        settings = {**fmt.settings, **chunks.SETTINGS}
        if checked.lenient_text:
            settings["client_encoding"] = "SQL_ASCII"
        self._stream = Stream(
            snapshots,
            target,
            checked,
            fmt,
            self._catalog,
            settings,
            wants,
            replica,
            note,
            keeps_table_order,
            StandbyLimit(),
        )
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="snapshot", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._snapshots.end()
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self._catalog.close()

    def _work(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        while (found := self._snapshots.next()) is not None:
            run, state = found
            try:
                ReadSession(self._stream, run, state.request.id).read()
                delay = _FIRST_RETRY_SECONDS
                continue
            except (Restarted, Stopped):
                continue
            except (InUse, BadState) as exc:
                self._snapshots.fail(exc)
                return
            except SinkFailed as exc:
                self._snapshots.give_up(run)
                self._save_again(exc)
                continue
            except Error as exc:
                if not is_transient(exc):
                    self._fail(run, state.request.id, exc)
                    continue
                self._note(f"snapshot {state.request.id}: {exc.message}; trying again")
                self._snapshots.give_up(run)
            except Exception as exc:  # the stream must not go on as if the snapshot did
                self._snapshots.fail(Error(f"the reader of snapshot {state.request.id} failed: {exc!r}"))
                raise
            self._ended.wait(delay)
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)

    def _save_again(self, exc: SinkFailed) -> None:
        """Save the state as soon as that is possible; the stream goes on meanwhile."""
        self._note(f"{exc.message}; snapshots wait until it can be written")
        delay = _FIRST_RETRY_SECONDS
        while not self._ended.wait(delay):
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
            try:
                self._snapshots.save()
            except SinkFailed:
                continue
            return

    def _fail(self, run: str, snapshot_id: str, exc: Error) -> None:
        reason = exc.message if exc.hint is None else f"{exc.message}; {exc.hint}"
        self._note(f"snapshot {snapshot_id} failed: {reason}")
        with suppress(Restarted):
            self._snapshots.update(
                run,
                snapshot_id,
                lambda one: replace(one, status=Status.failed, reason=reason, ended_at=datetime.now(UTC)),
            )
        self._snapshots.give_up(run)


def is_transient(exc: Error) -> bool:
    """Return whether another attempt may succeed: a lost connection, a conflict with recovery, a shortage."""
    if isinstance(exc, (NotFound, Denied)):
        return False
    if isinstance(exc, (Unreachable, NotPrimary, TimedOut)):
        return True
    state = exc.sqlstate or ""
    return state[:2] in ("40", "53", "57", "58") or state == "55P03"
