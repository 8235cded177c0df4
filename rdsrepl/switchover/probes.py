"""Read both servers until a switchover may promote, and afterwards until it is proven."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Error
from rdsrepl.failover import switchover
from rdsrepl.failover.switchover import Marker
from rdsrepl.lsn import Lsn
from rdsrepl.plan import Condition
from rdsrepl.state import switchovers
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.failover_servers import FailoverServer
    from rdsrepl.postgres.write_activity import WriteActivity

QUIET_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 30.0
_LIMITS: Final = {"statement_timeout": "15s", "lock_timeout": "2s"}
_AGAIN: Final = "stop every writer, then run the command again; nothing was promoted"
_FINISH: Final = "run the command again: it verifies the slots and does what is left; keep the writers stopped"


class Progress:
    """The state that the waits of one planned switchover share; each method is the probe of a wait.

    Attributes:
        expected: where the consumer of each slot was when the switchover was ready, perhaps in an earlier run.
    """

    def __init__(
        self,
        old: Target,
        new: Target,
        labels: tuple[str, str],
        *,
        expected: Mapping[str, Lsn] | None = None,
        quiet_seconds: float = QUIET_SECONDS,
        is_managed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            old: the primary.
            new: its standby.
            labels: both in messages.
            expected: what an earlier run recorded.
            quiet_seconds: for how long no transaction may write.
            is_managed: whether RDS runs the servers. It writes to its own database every five minutes, so a transaction
                that ended during a promotion, which takes minutes, proves nothing.
            clock: a monotonic clock.
        """
        # A server that hangs must not hold up the time limit of the wait.
        self._old, self._new = (replace(one, answer_seconds=_ANSWER_SECONDS) for one in (old, new))
        self._old_label, self._new_label = labels
        self._quiet_seconds = quiet_seconds
        self._is_managed = is_managed
        self._clock = clock
        self._marker: Marker | None = None
        self._quiet_since: float | None = None
        self._seen: WriteActivity | None = None
        self._remarked = 0
        self.expected: dict[str, Lsn] = dict(expected or {})

    def quiet(self, target: Target) -> Condition:
        """Return whether no transaction has written for some time."""
        now = self._activity()
        before, self._seen = self._seen, now
        has_ended = before is not None and now.has_ended_since(before.next_xid, before.prepared)
        if now.running or has_ended or before is None:
            self._quiet_since = None if now.running else self._clock()
            state = f"still writing: {now.text}" if now.running else "a transaction wrote" if has_ended else "checking"
            return Condition(False, state)
        if self._quiet_since is None:
            self._quiet_since = self._clock()
        seconds = self._clock() - self._quiet_since
        return Condition(seconds >= self._quiet_seconds, f"no transaction has written for {format_duration(seconds)}")

    def reached(self, target: Target) -> Condition:
        """Return whether the consumers, the standby and the copies have reached the marker."""
        now = self._activity()
        marker = switchover.moved(self._marker, now)
        if self._marker is not None and marker is not self._marker:
            self._remarked += 1
        self._marker = marker
        primary, standby = self._read(self._old, self._old_label), self._read(self._new, self._new_label)
        waiting = switchover.waiting_for(marker, now, primary, standby)
        if waiting.failed is not None:
            remedy = _AGAIN if standby.in_recovery else _FINISH
            return Condition(False, waiting.failed, failed=waiting.failed, remedy=remedy)
        if waiting.reasons:
            if self._advance_pairs(primary, standby):
                primary, standby = self._read(self._old, self._old_label), self._read(self._new, self._new_label)
                waiting = switchover.waiting_for(marker, now, primary, standby)
            if waiting.reasons:
                wrote = f"; {counted(self._remarked, 'transaction')} wrote after the marker" if self._remarked else ""
                return Condition(False, "; ".join(waiting.reasons) + wrote)
        self.expected = switchover.positions(primary, marker)
        return Condition(True, f"at {marker.lsn}", facts={"marker": str(marker.lsn)})

    def unwritten(self, target: Target) -> Condition:
        """Return whether nothing was written since the marker; then record the marker."""
        assert self._marker is not None
        now = self._activity()
        if (wrote := self._marker.written_after(now)) is not None:
            failed = f"the primary was written to after {self._marker.lsn}: {wrote}"
            return Condition(False, failed, failed=failed, remedy=_AGAIN)
        primary = self._read(self._old, self._old_label)
        switchovers.save(
            switchovers.Switchover(
                switchovers.now(),
                primary.system_identifier or "",
                self._new_label,
                self._marker.lsn,
                self._marker.next_xid,
                self.expected,
                self._marker.prepared,
            )
        )
        return Condition(True, "nothing was written")

    def proven(self, target: Target) -> Condition:
        """Return whether the promoted server has every slot where its consumer was."""
        promoted = self._read(self._new, self._new_label)
        waiting = switchover.unproven(self.expected, promoted)
        if waiting.failed is not None:
            old, new = self._old_label, self._new_label
            remedy = (
                f"{new} is promoted; see what differs: "
                f"{command('failover diff --old {} --new {}', old.rpartition(' ')[2], new.rpartition(' ')[2])}"
            )
            return Condition(False, waiting.failed, failed=waiting.failed, remedy=remedy)
        if waiting.reasons:
            return Condition(False, "; ".join(waiting.reasons))
        facts = {name: f"at {slot.confirmed_flush_lsn}" for name in self.expected if (slot := promoted.slot(name))}
        return Condition(True, f"{counted(len(facts), 'slot')} verified", facts=facts)

    def unwritten_since(self, target: Target) -> Condition:
        """Return whether the old primary committed nothing between the proof and the promotion, if it answers."""
        if self._marker is None:
            return Condition(True, "the marker is of an earlier run")
        try:
            now = self._activity()
        except Error as exc:
            return Condition(True, f"not known: {exc.message}", facts={"old primary": "does not answer"})
        if (wrote := self._marker.written_after(now)) is not None and self._is_managed:
            state = f"after the marker: {wrote}, of RDS itself or of a client; failover diff names those of clients"
            return Condition(True, state, facts={"old primary": state})
        if wrote is not None:
            old, new = self._old_label.rpartition(" ")[2], self._new_label.rpartition(" ")[2]
            failed = f"{self._old_label} was written to after the promotion; {self._new_label} does not have it"
            remedy = f"stop its writers; what they wrote: {command('failover diff --old {} --new {}', old, new)}"
            return Condition(False, failed, failed=failed, remedy=remedy)
        return Condition(True, "nothing was written")

    def _activity(self) -> WriteActivity:
        from rdsrepl.postgres import connection, write_activity

        with connection.open(self._old, settings=_LIMITS) as conn:
            return write_activity.read(conn)

    def _advance_pairs(self, primary: FailoverServer, standby: FailoverServer) -> bool:
        """Advance the followers of slot pairs; return whether there are pairs."""
        names = switchover.followers(primary, standby)
        if not names:
            return False
        from rdsrepl.slot_sync.passes import PairOptions, PairSynchronizer

        with PairSynchronizer(self._old, self._new, PairOptions(names=names, leader_at="here")) as synchronizer:
            synchronizer.run()
        return True

    @staticmethod
    def _read(target: Target, label: str) -> FailoverServer:
        from rdsrepl.postgres import connection, failover_servers

        with connection.open(target, settings=_LIMITS) as conn:
            return failover_servers.read(conn, label)
