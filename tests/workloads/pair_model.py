"""A model of a slot pair: WAL positions that move in any order, and the decisions of ``failover.slot_pairs`` on them.

The model does what the servers do; every decision is the real one. The guards of the statement that advances a
follower (``postgres.standbys``) are repeated here, because they run in the server.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta

from rdsrepl.failover.slot_pairs import PairState, pair_of
from rdsrepl.lsn import Lsn
from rdsrepl.postgres.server_slots import ServerSlots
from tests.fixtures.builders import NOW, slot, wal

_LONGEST_STEP = 1000


@dataclass
class PairModel:
    """A primary with the leader, a standby with the follower; the consumer reads the leader.

    Attributes:
        written: the end of the primary's WAL.
        received, replayed: by the standby.
        leader, saved_leader: where the consumer confirmed, and what of that survives a crash of the primary.
        follower, saved_follower: the same on the standby.
        confirmed: the highest position that the consumer ever confirmed: what it has.
        restarts: of the standby; a pass that looked before one does nothing after it.
        states: how often each state was seen.
    """

    rng: random.Random
    written: int = 1000
    received: int = 1000
    replayed: int = 1000
    leader: int = 1000
    saved_leader: int = 1000
    follower: int | None = None
    saved_follower: int | None = None
    confirmed: int = 1000
    is_reading: bool = True
    restarts: int = 0
    promoted: bool = False
    states: dict[PairState, int] = field(default_factory=dict)
    pass_in_progress: tuple[int, int] | None = None

    def step(self) -> None:
        """Do one thing, and check what must hold after it."""
        choose = self.rng.choice
        choose(_STEPS)(self)
        self.check()

    def check(self) -> None:
        """Check the invariants.

        I1: the follower is at most where the consumer has confirmed, unless it was made there and never moved.
        I2: it is at most where its server is.
        """
        if self.follower is not None and self.was_advanced:
            assert self.follower <= self.confirmed, (self.follower, self.confirmed)
            assert self.follower <= max(self.replayed, self.highest_replay), (self.follower, self.replayed)

    was_advanced: bool = False
    highest_replay: int = 1000

    def _some(self, limit: int) -> int:
        return self.rng.randint(0, max(0, min(limit, _LONGEST_STEP)))

    def write(self) -> None:
        self.written += self._some(_LONGEST_STEP)

    def receive(self) -> None:
        self.received += self._some(self.written - self.received)

    def replay(self) -> None:
        self.replayed += self._some(self.received - self.replayed)
        self.highest_replay = max(self.highest_replay, self.replayed)

    def confirm(self) -> None:
        """Confirm more; the consumer may be ahead of the standby."""
        if self.is_reading:
            self.leader += self._some(self.written - self.leader)
            self.confirmed = max(self.confirmed, self.leader)

    def checkpoint(self) -> None:
        self.saved_leader = self.leader
        self.saved_follower = self.follower

    def connect_or_leave(self) -> None:
        self.is_reading = not self.is_reading

    def create(self) -> None:
        """Create the follower where the standby is: ahead of the consumer, or behind it."""
        if self.follower is None:
            self.follower = self.saved_follower = self.replayed
            self.was_advanced = False

    def drop(self) -> None:
        if self.rng.random() < 0.1:
            self.follower = self.saved_follower = None
            self.was_advanced = False

    def crash_primary(self) -> None:
        """Restart: the leader is where it was saved, and the consumer reads again what it has."""
        self.leader, self.is_reading = self.saved_leader, False

    def restart_standby(self) -> None:
        """Restart: replay begins earlier, and the follower is where it was saved."""
        if self.rng.random() < 0.3:
            self.restarts += 1
            self.replayed = max(1000, self.replayed - self._some(_LONGEST_STEP))
            self.follower = self.saved_follower

    def look(self) -> None:
        """Begin a pass; its statement comes later, or never."""
        primary = ServerSlots(
            "primary",
            wal(version=16, lsn=Lsn(self.written), system_identifier="1"),
            (slot("s", active=self.is_reading, confirmed_flush_lsn=Lsn(self.leader)),),
        )
        followers = () if self.follower is None else (slot("s", confirmed_flush_lsn=Lsn(self.follower)),)
        standby = ServerSlots(
            "standby",
            wal(
                version=16,
                lsn=Lsn(self.replayed),
                in_recovery=True,
                system_identifier="1",
                started_at=NOW + timedelta(seconds=self.restarts),
            ),
            followers,
        )
        pair = pair_of("s", primary, standby, leader_at=self.rng.choice([None, "here"]), max_repeat_bytes=500)
        self.states[pair.state] = self.states.get(pair.state, 0) + 1
        if pair.state in (PairState.ready, PairState.behind):
            assert self.follower is not None and self.follower <= self.leader
        if pair.target_lsn is not None:
            self.pass_in_progress = (int(pair.target_lsn), self.restarts)

    def advance(self) -> None:
        """End the pass that was begun: the statement with its guards."""
        if self.pass_in_progress is None:
            return
        target, restarts = self.pass_in_progress
        goal = min(target, self.replayed)
        if self.follower is not None and restarts == self.restarts and self.follower < goal:
            self.follower, self.was_advanced = goal, True
        if self.rng.random() < 0.5:  # otherwise a second pass runs with the same look
            self.pass_in_progress = None

    def promote(self) -> bool:
        """Promote the standby; return whether a safe state was promised. Then nothing may be missing."""
        self.replayed = self.received
        is_safe = self.follower is not None and self.follower <= self.leader
        if is_safe:
            # The consumer has everything up to ``confirmed``; the new primary sends everything after the follower.
            assert self.follower is not None and self.follower <= self.confirmed
        return is_safe


_STEPS = (
    *[PairModel.write] * 3,
    *[PairModel.receive] * 3,
    *[PairModel.replay] * 4,
    *[PairModel.confirm] * 4,
    PairModel.checkpoint,
    PairModel.connect_or_leave,
    *[PairModel.create] * 2,
    PairModel.drop,
    PairModel.crash_primary,
    PairModel.restart_standby,
    *[PairModel.look] * 4,
    *[PairModel.advance] * 4,
)


def interleave(seed: int, steps: int = 60) -> PairModel:
    """Run one random interleaving that ends with a promotion; return the model as it was then."""
    model = PairModel(random.Random(seed))
    for _ in range(steps):
        model.step()
    model.promoted = model.promote()
    return model
