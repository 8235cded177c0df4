"""``rdsrepl psql``: which options are psql's and which are ours, and what psql gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rdsrepl.cli.psql_options import split
from rdsrepl.errors import UsageError
from tests.fixtures.program import complete

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program


@pytest.mark.parametrize(
    ("line", "own", "psql"),
    [
        ("-c q", "", "-c q"),
        ("-c -t", "", "-c -t"),
        ("-Atc q", "", "-Atc q"),
        ("-Atcq", "", "-Atcq"),
        ("-l -x -1 -?", "", "-l -x -1 -?"),
        ("-f a.sql -v A=b -vB=c --set=C=d --set D=e", "", "-f a.sql -v A=b -vB=c --set=C=d --set D=e"),
        ("-t -c q", "", "-t -c q"),
        ("-c q -t", "", "-c q -t"),
        ("-t prod -c q", "--target prod", "-c q"),
        ("-d db -U me -c q", "--dbname db --user me", "-c q"),
        ("-ddb -Ume", "--dbname db --user me", ""),
        ("-Ad db", "--dbname db", "-A"),
        ("--dbname=db --username me", "--dbname db --user me", ""),
        ("db me more", "--dbname db --user me", "more"),
        ("-d db me", "--dbname db --user me", ""),
        ("--dsn port=1 db", "--dsn port=1 --dbname db", ""),
        ("service=x -c q", "--dsn service=x", "-c q"),
        ("-d postgresql://h/db -c q", "--dsn postgresql://h/db", "-c q"),
        ("-v -c q", "-v", "-c q"),
        ("-vv db", "-vv --dbname db", ""),
        ("-q --quiet -Aq", "-q --quiet -q", "-q --quiet -Aq"),
        ("-o out.txt --output=x.txt", "", "-o out.txt --output=x.txt"),
        ("--cluster c --no-color --csv --pset null=x -p 5433", "--cluster c --no-color", "--csv --pset null=x -p 5433"),
        ("-h", "-h", ""),
        ("--help", "--help", ""),
        ("--cluster c -- -t -h x --dsn", "--cluster c", "-t -h x --dsn"),
        ("-", "--dbname -", ""),
        ("--cluster", "--cluster", ""),
        ("-c", "", "-c"),
    ],
)
def test_what_is_ours_and_what_is_of_psql(line: str, own: str, psql: str) -> None:
    found = split(line.split())
    assert (found.own, found.psql) == (own.split(), psql.split())


@pytest.mark.parametrize("line", ["-o json", "-ojson", "--output=JSON", "--output yaml", "--host=x", "-Ah x"])
def test_what_psql_would_take_in_another_sense_is_refused(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        split(line.split())
    assert caught.value.hint


def test_psql_runs_without_a_double_dash(rdsrepl: Program, db15: Database) -> None:
    run = rdsrepl("psql", "-XAtc", "SELECT current_database()", dsn=db15.dsn)
    assert (run.code, run.out, run.err) == (0, f"{db15.name}\n", "")
    run = rdsrepl("psql", "--dsn", db15.dsn, "-X", "-t", "-c", "SELECT 'a b'", "-d", "postgres", "-v", "x=1")
    assert (run.code, run.out.strip()) == (0, "a b")
    assert rdsrepl("psql", "-o", "json", dsn=db15.dsn).code == 2


def test_options_behind_psql_are_completed(rdsrepl: Program) -> None:
    assert "--cluster" in complete(rdsrepl, "psql", "--clu")
    assert "--cluster" in complete(rdsrepl, "psql", "-c", "x", "--clu")
