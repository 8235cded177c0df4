"""The rules of a snapshot in random interleavings, and the wrong variants that the same model must find.

``tests/benchmarks/snapshot_rules.py`` has the long version, and the same on servers.
"""

from __future__ import annotations

import pytest

from rdsrepl.snapshot import recording
from rdsrepl.snapshot.shared_state import SharedState
from tests.workloads import hooked_stream
from tests.workloads.snapshot_model import OURS, OURS_FROM_STANDBY, WRONG, Rules, run

RUNS = 1_000
_MOST_RUNS = 4_000


@pytest.mark.parametrize("rules", [OURS, OURS_FROM_STANDBY], ids=lambda rules: rules.name)
def test_a_new_consumer_has_the_rows_of_the_source(rules: Rules) -> None:
    outcomes = {seed: run(seed, rules) for seed in range(RUNS)}
    assert {seed: outcome for seed, outcome in outcomes.items() if not outcome.is_right} == {}
    assert sum(outcome.restarts for outcome in outcomes.values()) > RUNS, "the runs had no kills"


@pytest.mark.parametrize("rules", WRONG, ids=lambda rules: rules.name)
def test_the_model_finds_what_a_wrong_rule_loses(rules: Rules) -> None:
    assert any(not run(seed, rules).is_right for seed in range(_MOST_RUNS))


@pytest.mark.parametrize("from_standby", [False, True])
def test_the_side_of_the_stream_keeps_the_rules(from_standby: bool) -> None:
    """With kills, lost connections and readers, pauses, a second snapshot, and too many recorded changes."""
    outcomes = {seed: hooked_stream.run(seed, from_standby=from_standby) for seed in range(RUNS // 2)}
    assert {seed: outcome for seed, outcome in outcomes.items() if not outcome.is_right} == {}
    assert sum(outcome.restarts for outcome in outcomes.values()) > RUNS, "the runs had no kills"


@pytest.mark.parametrize("what", ["moved rows are not noted", "a failed reader does not end its run"])
def test_the_model_finds_a_wrong_side_of_the_stream(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "moved rows are not noted":
        monkeypatch.setattr(recording, "must_read_again", lambda *_: False)
    else:
        monkeypatch.setattr(SharedState, "give_up", lambda *_: None)
    assert any(not hooked_stream.run(seed).is_right for seed in range(_MOST_RUNS))
