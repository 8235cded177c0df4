"""Long proofs for slot pairs: promotions under load, interleavings of the model, and a pass over 20 pairs.

``python -m tests.benchmarks slot_pairs``; RDSREPL_PROMOTIONS sets how many promotions are run (200).
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rdsrepl.failover.slot_pairs import PairState
from rdsrepl.slot_sync.passes import PairOptions, PairSynchronizer
from tests.fixtures.postgres import find_binaries
from tests.fixtures.program import Program
from tests.fixtures.slot_pairs import Pair, make_pair, running_pair
from tests.workloads.pair_model import interleave
from tests.workloads.promotions import Outcome, PreparedPair, promote_once

_MEMORY = Path("/dev/shm")
_NAIVE_RUNS = 5
_CUT_OFF_RUNS = 5
_INTERLEAVINGS = 100_000
_PAIRS = 20
_SAFE = (PairState.ready, PairState.behind)


def report() -> None:
    """Run all of them."""
    interleavings()
    for proof in (pass_over_pairs, promotions):
        with TemporaryDirectory(prefix="rdsrepl-bench-", dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
            Path(directory).chmod(0o755)  # the servers run as another user
            proof(Path(directory))


def promotions(directory: Path) -> None:
    """Promote a standby 200 times under load; then a few times with a naive script, which must lose rows."""
    wanted = int(os.environ.get("RDSREPL_PROMOTIONS", "200"))
    binaries = find_binaries(16)
    assert binaries is not None
    rdsrepl = _program(directory)
    template = make_pair(directory, binaries)
    prepared = PreparedPair(directory, template, rdsrepl)
    try:
        outcomes = [promote_once(prepared, rdsrepl, seed) for seed in range(wanted)]
        naive = [promote_once(prepared, rdsrepl, 10_000 + seed, naive=True) for seed in range(_NAIVE_RUNS)]
        cut_off, behind = (
            [
                promote_once(prepared, rdsrepl, seed, cut_off_seconds=0.6, behind=is_behind, pause_seconds=0.02)
                for seed in range(20_000, 20_000 + _CUT_OFF_RUNS)
            ]
            for is_behind in (False, True)
        )
    finally:
        template.stop()
    print(f"\n{wanted} promotions of a pair on 16 under load, primary and consumer killed with SIGKILL")
    _print("slot sync", outcomes)
    _print("naive: advance to the current position", naive)
    _print("standby cut off before the kill", cut_off)
    _print("the same, consumer with --behind", behind)
    unsafe = [one for one in outcomes if one.state not in _SAFE]
    assert not unsafe, unsafe
    assert sum(one.lost for one in outcomes) == 0
    assert sum(one.lost for one in naive) > 0, "the harness does not detect a wrong advance"
    assert sum(one.phantoms for one in cut_off) > 0, "the harness does not make changes that a failover undoes"
    assert sum(one.phantoms + one.lost for one in behind) == 0


def interleavings() -> None:
    """Run random orders of confirm, replay, pass, restart and promote through the decisions."""
    states: dict[PairState, int] = {}
    promoted = 0
    for seed in range(_INTERLEAVINGS):
        model = interleave(seed)
        promoted += model.promoted
        for state, count in model.states.items():
            states[state] = states.get(state, 0) + count
    seen = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    print(f"\n{_INTERLEAVINGS:,} interleavings: the invariants hold; states seen: {seen}; {promoted:,} safe promotions")


def pass_over_pairs(directory: Path) -> None:
    """Measure a pass over 20 pairs that all have to be advanced."""
    binaries = find_binaries(16)
    assert binaries is not None
    rdsrepl = _program(directory)
    with running_pair(directory, binaries) as pair:
        names = [f"s{number}" for number in range(_PAIRS)]
        for name in names:
            done = rdsrepl("slot", "create", name, "--pair", pair.standby.dsn(), "--yes", dsn=pair.primary.dsn())
            assert done.code == 0, done.err
        options = PairOptions(leader_at="here")
        with PairSynchronizer(pair.primary.target(), pair.standby.target(), options) as pairs:
            pairs.run()
            took = [_measured(pair, pairs, number) for number in range(10)]
    print(f"\nA pass that advances {_PAIRS} pairs: median {statistics.median(took):.3f} s, at most {max(took):.3f} s")


def _measured(pair: Pair, pairs: PairSynchronizer, number: int) -> float:
    first = number * 1000
    pair.run(
        pair.primary,
        f"INSERT INTO public.t SELECT g, 'x' FROM generate_series({first}, {first + 999}) g",
        "SELECT pg_catalog.pg_replication_slot_advance(slot_name, pg_catalog.pg_current_wal_lsn()) "
        "FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical'",
    )
    pair.wait_until_replayed()
    started = time.monotonic()
    done = pairs.run()
    took = time.monotonic() - started
    assert [one.state for one in done] == [PairState.ready] * _PAIRS
    assert all(one.follower_lsn == one.leader_lsn for one in done)
    return took


def _program(directory: Path) -> Program:
    home = directory / "home"
    home.mkdir(parents=True)
    return Program(home)


def _print(name: str, outcomes: list[Outcome]) -> None:
    print(
        f"  {name:<40} {len(outcomes):>4} promotions, {sum(one.rows for one in outcomes):>9,} rows, "
        f"{sum(one.lost for one in outcomes):,} lost, {sum(one.repeated for one in outcomes):,} repeated, "
        f"{sum(one.phantoms for one in outcomes):,} received that do not exist any more, "
        f"{sum(one.passes for one in outcomes):,} passes"
    )
