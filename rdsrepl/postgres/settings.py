"""Server parameters as ``pg_settings`` shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.postgres.connection import text

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of ``pg_settings``.

    Attributes:
        setting: the value in force, a number in ``unit``.
        unit: ``MB``, ``ms``, ``8kB``, …; None where the value has none.
        context: what it takes to change it: ``postmaster`` (a restart), ``sighup`` (a reload), ``superuser``, ``user``.
        pending_restart: whether another value is written and waits for a restart.
        source: where the value comes from: ``default``, ``configuration file``, …
    """

    name: str
    setting: str
    unit: str | None
    context: str
    pending_restart: bool
    source: str

    @property
    def is_static(self) -> bool:
        """Whether a change needs a restart."""
        return self.context == "postmaster"


# What this program has set for its own session says nothing of the server.
_LIST: Final = """
SELECT name, CASE source WHEN 'session' THEN reset_val ELSE setting END, unit, context, pending_restart, source
  FROM pg_catalog.pg_settings
 WHERE name = ANY (%s) OR (%s AND pending_restart)
 ORDER BY name
"""


def ls(conn: Connection, names: Iterable[str], *, pending: bool = False) -> dict[str, Setting]:
    """Return parameters by name; one that the server does not have, or this role may not see, is absent.

    Args:
        conn: any connection.
        names: which.
        pending: also those, whatever their name, that wait for a restart.
    """
    found: dict[str, Setting] = {}
    for name, *columns, restart, source in conn.execute(_LIST, (list(names), pending)).fetchall():
        setting, unit, context = columns
        found[name] = Setting(name, text(setting), unit, context, restart, source)
    return found
