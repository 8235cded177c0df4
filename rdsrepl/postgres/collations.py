"""Say whether two servers sort text equally (manual, sections 24.2 and 52.12).

The name of a collation says little: what decides is the library that sorts, its locale, and for libc its version. The
order of most locales changed with glibc 2.28; RDS keeps the older one. ICU changes the order of characters that exist
so rarely that its version is not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# The collation of columns that have none of their own is that of the database.
_DEFAULT_OID: Final = 100
_DATABASE: Final = "SELECT pg_catalog.to_jsonb(d) FROM pg_catalog.pg_database d WHERE d.datname = current_database()"
_COLLATIONS: Final = """
SELECT l.oid, pg_catalog.to_jsonb(l), pg_catalog.pg_collation_actual_version(l.oid)
  FROM pg_catalog.pg_collation l WHERE l.oid = ANY (%s)
"""


@dataclass(frozen=True, slots=True)
class Ordering:
    """How a server sorts the text of a column.

    Attributes:
        library: ``C`` for the order of the bytes, else ``libc`` or ``icu``.
        locale: the locale in that library.
        version: for libc, ``before 2.28`` or ``2.28``; None is unknown.
        is_deterministic: texts that are not the same bytes are not equal.
    """

    library: str
    locale: str = ""
    version: str | None = None
    is_deterministic: bool = True

    def is_same(self, other: Ordering) -> bool:
        """Return whether both sort equally, as far as is known."""
        versions = {self.version, other.version} - {None}
        return (self.library, self.locale) == (other.library, other.locale) and len(versions) < 2


def ls(conn: Connection, oids: Iterable[int]) -> dict[int, Ordering]:
    """Return how the database sorts by each of these collations."""
    rows = conn.execute(_COLLATIONS, (sorted(set(oids)),)).fetchall()
    found = {int(oid): of_collation(row, version) for oid, row, version in rows}
    if _DEFAULT_OID in found and (row := conn.execute(_DATABASE).fetchone()) is not None:
        found[_DEFAULT_OID] = of_database(row[0])
    return found


def of_database(row: Mapping[str, Any]) -> Ordering:
    """Return how a database sorts by default.

    Args:
        row: its row of ``pg_database``; the columns for ICU have other names in 15 and 17, and do not exist before.
    """
    provider = str(row.get("datlocprovider", "c"))
    locale = row.get("datlocale") or row.get("daticulocale") or row["datcollate"]
    return _ordering(provider, str(locale), row.get("datcollversion"))


def of_collation(row: Mapping[str, Any], version: str | None) -> Ordering:
    """Return how a collation sorts.

    Args:
        row: its row of ``pg_collation``.
        version: that of its library now.
    """
    locale = row.get("colllocale") or row.get("colliculocale") or row.get("collcollate") or ""
    return _ordering(str(row["collprovider"]), str(locale), version, is_deterministic=bool(row["collisdeterministic"]))


def _ordering(provider: str, locale: str, version: str | None, *, is_deterministic: bool = True) -> Ordering:
    if provider == "b" or (provider == "c" and re.fullmatch(r"(C|POSIX)(\..*)?", locale)):
        return Ordering("C")
    name = locale.lower().replace("-", "").replace("_", "")
    if provider == "i":
        return Ordering("icu", name, None, is_deterministic)
    number = re.match(r"(\d+)\.(\d+)", version or "")
    era = None if number is None else "2.28" if (int(number[1]), int(number[2])) >= (2, 28) else "before 2.28"
    return Ordering("libc", name, era, is_deterministic)
