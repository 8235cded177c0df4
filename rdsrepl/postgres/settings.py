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
        setting: the value in effect; a number is in ``unit``.
        unit: ``MB``, ``ms``, ``8kB``, …; None where the value has none.
        context: what a change needs: ``postmaster`` (a restart), ``sighup`` (a reload), ``superuser``, ``user``.
        pending_restart: whether a changed value takes effect at the next restart.
        source: the source of the value: ``default``, ``configuration file``, …
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


# reset_val: not what this program set for its own session.
_LIST: Final = """
SELECT name, CASE source WHEN 'session' THEN reset_val ELSE setting END, unit, context, pending_restart, source
  FROM pg_catalog.pg_settings
 WHERE name = ANY (%s) OR (%s AND pending_restart)
 ORDER BY name
"""


def ls(conn: Connection, names: Iterable[str], *, pending: bool = False) -> dict[str, Setting]:
    """Return parameters by name, without those that the server does not have or this role may not read.

    Args:
        conn: any connection.
        names: the parameters to read.
        pending: also every parameter that needs a restart to take effect.
    """
    rows: dict[str, Setting] = {}
    for name, *columns, restart, source in conn.execute(_LIST, (list(names), pending)).fetchall():
        setting, unit, context = columns
        rows[name] = Setting(name, text(setting), unit, context, restart, source)
    return rows
