"""What `apply.run` reports about the steps of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from rdsrepl import apply, errors
from rdsrepl.plan import Plan, Statement

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database


def test_a_step_that_stands_twice_in_a_plan_is_reported_once_as_done(db18: Database) -> None:
    step = Statement(
        "delete the row", sql.SQL("DELETE FROM public.t RETURNING 1"), guard="the row does not exist", effect="drop"
    )
    db18.run("CREATE TABLE t ()", "INSERT INTO t DEFAULT VALUES")
    results: list[apply.StepResult] = []
    with pytest.raises(errors.AppliedInPart) as caught:
        apply.run(Plan("delete twice", (step, step)), db18.target, done=results.append, waiting=lambda *_: None)
    assert [result.number for result in results] == [0]
    assert (caught.value.done, caught.value.not_done) == (["delete the row"], ["delete the row"])
