"""Whether two servers sort text equally."""

from __future__ import annotations

from contextlib import closing

from rdsrepl.postgres import collations
from tests.fixtures.postgres import Database


def _database(**row: object) -> collations.Ordering:
    return collations.of_database({"datcollate": "en_US.UTF-8", **row})


def test_what_decides_is_library_locale_and_era() -> None:
    rds = _database(datlocprovider="c", datcollversion="2.26-59.amzn2")
    new = _database(datlocprovider="c", datcollversion="2.36", datcollate="en_US.utf8")
    assert not rds.is_same(new), "glibc 2.28 changed the order"
    assert new.is_same(_database(datlocprovider="c", datcollversion="2.41"))
    assert rds.is_same(_database()), "13 and 14 do not tell the version"
    assert not new.is_same(_database(datlocprovider="c", datcollate="de_DE.UTF-8", datcollversion="2.36"))
    icu = _database(datlocprovider="i", daticulocale="en-US", datcollversion="153.112")
    assert icu.is_same(_database(datlocprovider="i", datlocale="en-US", datcollversion="153.120"))
    assert not icu.is_same(new)
    bytes_ = [_database(datcollate=name) for name in ("C", "POSIX", "C.UTF-8")]
    bytes_.append(_database(datlocprovider="b", datlocale="C.UTF-8"))
    assert set(bytes_) == {collations.Ordering("C")}


def test_the_collations_of_a_database(db15: Database) -> None:
    db15.run("CREATE COLLATION same (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    oid = db15.value("SELECT 'same'::regcollation::oid")
    with closing(db15.connect()) as conn:
        found = collations.ls(conn, [100, oid])
    assert found[100] == collations.Ordering("C")
    assert (found[oid].library, found[oid].is_deterministic) == ("icu", False)
