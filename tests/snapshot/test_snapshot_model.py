"""The rules of a snapshot in random interleavings, and the wrong variants that the same model must find.

``tests/benchmarks/snapshot_rules.py`` has the long version, and the same on servers.
"""

from __future__ import annotations

import pytest

from tests.workloads.snapshot_model import OURS, OURS_FROM_STANDBY, WRONG, Rules, run

RUNS = 1_200
_MOST_RUNS = 4_000


@pytest.mark.parametrize("rules", [OURS, OURS_FROM_STANDBY], ids=lambda rules: rules.name)
def test_a_new_consumer_has_the_rows_of_the_source(rules: Rules) -> None:
    outcomes = {seed: run(seed, rules) for seed in range(RUNS)}
    assert {seed: outcome for seed, outcome in outcomes.items() if not outcome.is_right} == {}
    assert sum(outcome.restarts for outcome in outcomes.values()) > RUNS, "the runs had no kills"


@pytest.mark.parametrize("rules", WRONG, ids=lambda rules: rules.name)
def test_the_model_finds_what_a_wrong_rule_loses(rules: Rules) -> None:
    assert any(not run(seed, rules).is_right for seed in range(_MOST_RUNS))
