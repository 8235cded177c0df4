"""The values of parameters with a unit: what a person writes, what AWS takes, and the units themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.errors import BadValue
from rdsrepl.parameters import value_units
from rdsrepl.sandbox.api import parameter_catalog
from rdsrepl.units import PARAMETER_UNITS, with_unit

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("10GB", "MB", "10240"),
        ("10 gib", "MB", "10240"),
        ("1.5GB", "MB", "1536"),
        ("128MB", "8kB", "16384"),
        ("64kB", "kB", "64"),
        ("4MB", "B", "4194304"),
        ("0MB", "MB", "0"),
        ("1h30m", "ms", "5400000"),
        ("5 min", "s", "300"),
        ("1d", "min", "1440"),
        ("10", "MB", "10"),
        ("-1", "MB", "-1"),
        ("1e3", "kB", "1e3"),
        ("{DBInstanceClassMemory/9531392}", "8kB", "{DBInstanceClassMemory/9531392}"),
        ("GREATEST({DBInstanceClassMemory/2},64)", "8kB", "GREATEST({DBInstanceClassMemory/2},64)"),
        ("10GB", None, "10GB"),
        ("replica", None, "replica"),
    ],
)
def test_a_value_is_converted_to_the_unit_of_its_parameter(value: str, unit: str | None, expected: str) -> None:
    assert value_units.convert("x", value, unit) == expected


def test_a_value_that_is_no_whole_number_of_the_unit_is_refused() -> None:
    for value, unit, hint in (
        ("1500kB", "MB", "give 1 or 2 (in MB)"),
        ("100B", "kB", "give 1 (in kB)"),
        ("90s", "min", "give 1 or 2 (in min)"),
        ("1.5ms", "ms", "give 1 or 2 (in ms)"),
    ):
        with pytest.raises(BadValue, match="is not a whole number of") as caught:
            value_units.convert("x", value, unit)
        assert caught.value.hint == hint
    assert value_units.convert("vacuum_cost_delay", "1.5ms", "ms", whole=False) == "1.5"
    assert value_units.convert("vacuum_cost_delay", "500us", "ms", whole=False) == "0.5"


@given(st.integers(1, 2**31 - 1), st.sampled_from(sorted(PARAMETER_UNITS)))
def test_what_a_plan_shows_can_be_given(number: int, unit: str) -> None:
    value, _, shown = with_unit(str(number), unit).partition(" ")
    if unit in ("s", "min") and number > 10**7:  # over a century
        return
    assert value == str(number) == value_units.convert("x", shown.strip("()"), unit)


def test_values_without_a_unit_are_shown_as_they_are() -> None:
    for value in ("-1", "0", "on", "{DBInstanceVCPU*2}", "007", ""):
        assert with_unit(value, "MB") == value
    assert with_unit("10", None) == "10"


def test_the_units_are_those_of_the_servers(database: Database) -> None:
    names = list(value_units.CATALOG)
    rows = dict(database.run("SELECT name, unit FROM pg_catalog.pg_settings WHERE unit IS NOT NULL"))
    assert {name: unit for name, unit in rows.items() if name in names} == {
        name: value_units.CATALOG[name] for name in names if name in rows
    }
    fixed = {"wal_segment_size", "segment_size", "shared_memory_size"}
    assert rows.keys() - set(names) <= fixed


def test_a_description_of_rds_agrees_with_the_units_of_postgresql() -> None:
    for row in parameter_catalog.defaults("postgres", 18, "instance").values():
        described, known = value_units.unit_of("", row.description), value_units.CATALOG.get(row.name)
        assert described == known or known is None or described is None, row.name
