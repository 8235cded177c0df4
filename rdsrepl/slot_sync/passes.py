"""One pass over slot pairs: read both servers, and advance the followers that may be advanced.

A pass may run twice at once, across a restart and across a promotion: every statement checks the server and the slot.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.failover import slot_pairs
from rdsrepl.failover.slot_pairs import MAX_REPEAT_BYTES, PairState, Place, SlotPair
from rdsrepl.lsn import Lsn

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.server_slots import ServerSlots

# An advance decodes all WAL in between. In steps, a pass that is interrupted keeps what it has done.
_STEP_BYTES: Final = 1 << 30
# A pass that runs at the same time uses a follower for some milliseconds: that is no consumer.
_IN_USE_ATTEMPTS: Final = 3
_IN_USE_SECONDS: Final = 0.2
_REMEDY: Final = "name the primary and its standby, one as the command's server, the other with --with"


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Which pairs, and how they are judged.

    Attributes:
        names: the slots; empty is all logical slots of both servers.
        leader_at: where the leaders are; None is the primary.
        max_repeat_bytes: a pair with more repeats is ``behind``.
        answer_seconds: how long a server may take to answer a statement.
    """

    names: tuple[str, ...] = ()
    leader_at: Place | None = None
    max_repeat_bytes: int = MAX_REPEAT_BYTES
    answer_seconds: float = 60.0


class PairSynchronizer:
    """Keeps connections to both servers, and makes passes on them."""

    def __init__(self, here: Target, there: Target, options: PairOptions) -> None:
        """Prepare; the first read connects.

        Args:
            here: the command's own server.
            there: the other one.
            options: which pairs.
        """
        self.targets: dict[Place, Target] = {"here": here, "there": there}
        self._options = options
        self._connections: dict[tuple[Place, str | None], Connection] = {}
        self._servers: dict[Place, ServerSlots] = {}

    def __enter__(self) -> PairSynchronizer:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next read connects again."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._servers.clear()

    def read(self) -> list[SlotPair]:
        """Return the state of every pair; nothing is changed.

        Raises:
            Refused: the two servers are no primary and standby of PostgreSQL 16 or later, or are Aurora.
            NotFound: a slot that was named is on neither server.
            Denied, Unreachable: a server does not answer, or refuses the role.
        """
        pairs = self._read()
        for _ in range(_IN_USE_ATTEMPTS):
            if not any(pair.follower is not None and pair.follower.active for pair in pairs):
                break
            time.sleep(_IN_USE_SECONDS)
            pairs = self._read()
        return pairs

    def _read(self) -> list[SlotPair]:
        from rdsrepl.postgres.error_mapping import translating

        with translating():
            here, there = self._read_servers()
        problem = slot_pairs.server_problem(here, there)
        if problem is not None:
            raise errors.Refused(problem, hint=_REMEDY)
        names: Sequence[str] = self._options.names or slot_pairs.names(here, there)
        if missing := [name for name in names if here.slot(name) is None and there.slot(name) is None]:
            raise errors.NotFound(
                f"no replication slot {', '.join(missing)} on {here.label} or {there.label}",
                hint="list them: rdsrepl slot list",
            )
        return [
            slot_pairs.pair_of(
                name,
                here,
                there,
                leader_at=self._options.leader_at,
                max_repeat_bytes=self._options.max_repeat_bytes,
            )
            for name in names
        ]

    def run(self) -> list[SlotPair]:
        """Make one pass; return the pairs as they are after it.

        Raises:
            Error: see ``read``; a server that vanishes in the middle is ``Unreachable``, and what was advanced until
                then stays so.
        """
        return [self._advance(pair) if pair.target_lsn is not None else pair for pair in self.read()]

    def nudge_pending(self, pairs: Sequence[SlotPair]) -> bool:
        """Write a small message for the pairs that are pending and have a consumer; return whether there are any.

        The message goes to the WAL of the primary in the database of each leader, so that the consumer confirms a new
        position although the database is idle.

        Raises:
            Denied, Unreachable: the server does not answer, or refuses the role.
        """
        waiting = [one.leader for one in pairs if one.state is PairState.pending and one.leader and one.leader.active]
        from rdsrepl.postgres import standbys
        from rdsrepl.postgres.error_mapping import translating

        primary = self.primary
        with translating():
            for database in dict.fromkeys(leader.database for leader in waiting):
                standbys.nudge(self.connection(primary, database))
        return bool(waiting)

    @property
    def primary(self) -> Place:
        """Which of the two servers is the primary, when it was last read."""
        return "there" if self._servers["here"].wal.in_recovery else "here"

    @property
    def is_primary_here(self) -> bool:
        """Whether the command's own server was the primary when it was last read."""
        return self.primary == "here"

    def server(self, place: Place) -> ServerSlots:
        """Return a server as it was when it was last read."""
        return self._servers[place]

    def connection(self, place: Place, database: str | None) -> Connection:
        """Return a connection to a server, in a database; None is the target's own."""
        from rdsrepl.postgres import connection

        own = self._connections.get((place, None))
        if own is not None and own.info.dbname == database:
            return own
        key = (place, database)
        if key not in self._connections or self._connections[key].closed:
            target = replace(self.target(place, database), answer_seconds=self._options.answer_seconds)
            self._connections[key] = connection.connect(target)
        return self._connections[key]

    def target(self, place: Place, database: str | None) -> Target:
        """Return a server's target, with another database."""
        target = self.targets[place]
        return target if database is None else replace(target, keywords={**target.keywords, "dbname": database})

    def _read_servers(self) -> tuple[ServerSlots, ServerSlots]:
        """Look at both servers: at the followers' server first.

        The position of a leader only grows, so one that was read later is not below its follower's for no reason.
        """
        from rdsrepl.postgres import standbys

        leaders: Place = self._options.leader_at or ("there" if self._is_standby("here") else "here")
        followers: Place = "there" if leaders == "here" else "here"
        for place in (followers, leaders):
            conn = self.connection(place, None)
            before = self._servers.get(place)
            if before is None:
                # The label of a connection string is the option, which says nothing in a report.
                label, info = self.targets[place].label, conn.info
                label = f"{info.host}:{info.port}" if label.startswith("--") else label
                self._servers[place] = standbys.read(conn, label)
                standbys.require_pairable(self._servers[place], conn)
            else:
                self._servers[place] = standbys.read_again(conn, before)
        return self._servers["here"], self._servers["there"]

    def _is_standby(self, place: Place) -> bool:
        from rdsrepl.postgres.connection import in_recovery

        before = self._servers.get(place)
        return in_recovery(self.connection(place, None)) if before is None else before.wal.in_recovery

    def _advance(self, pair: SlotPair) -> SlotPair:
        """Advance the follower of a pair to its target; return the pair after that."""
        import psycopg

        from rdsrepl.postgres import standbys
        from rdsrepl.postgres.error_mapping import translate

        follower, target = pair.follower, pair.target_lsn
        assert follower is not None and follower.confirmed_flush_lsn is not None and target is not None
        place: Place = "there" if pair.leader_at == "here" else "here"
        server, at = self._servers[place].wal, follower.confirmed_flush_lsn
        try:
            conn = self.connection(place, follower.database)
            while at < target:
                step = Lsn(min(target, at + _STEP_BYTES))
                end = standbys.advance(conn, pair.slot_name, follower.plugin, step, server)
                if end is None or end <= at:
                    break
                at = end
        except psycopg.errors.ObjectInUse:
            pass  # another pass, or a consumer since it was read: the next pass tells
        except psycopg.Error as exc:
            failure = translate(exc)
            if isinstance(failure, errors.Unreachable):
                raise failure from exc
            reason = f"could not advance the follower: {failure.message}"
            return replace(pair, state=PairState.behind, reason=reason, target_lsn=None)
        if at == follower.confirmed_flush_lsn:
            return replace(pair, target_lsn=None)
        return slot_pairs.advanced(pair, at, self._options.max_repeat_bytes)


def require_no_cluster(target: Target) -> None:
    """Make sure that a target is no cluster, nor a member of one.

    Raises:
        Refused: it is; the message says why it needs no slot pairs.
    """
    from rdsrepl.aws import locations

    if not target.aws.identifier:
        return
    try:
        server = locations.server_of(target)
    except errors.Denied:
        if target.has_address:
            return  # the server itself says whether it is Aurora
        raise
    if server is None or server.cluster is None:
        return
    if server.cluster.kind == "aurora":
        why = "Aurora readers do not decode, and a failover within the cluster keeps the slots"
    else:
        why = "AWS copies the slots of a Multi-AZ DB cluster to its readers itself"
    raise errors.Refused(
        f"{target.label}: cluster {server.cluster.cluster_id} has no slot pairs: {why}",
        hint="slot pairs are for a DB instance and its read replicas; see rdsrepl help slot-pairs",
    )
