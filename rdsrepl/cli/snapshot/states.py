"""Find the state of snapshots: the options that name it, and the snapshots of the slots of a database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli.completion import complete_slot, complete_snapshot
from rdsrepl.errors import BadValue, NotFound
from rdsrepl.snapshot.state import SnapshotState, parse_place
from rdsrepl.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

Id = Annotated[
    str,
    typer.Argument(metavar="ID", help="The snapshot.", autocompletion=complete_snapshot, show_default=False),
]
Ids = Annotated[
    list[str],
    typer.Argument(metavar="ID", help="The snapshots.", autocompletion=complete_snapshot, show_default=False),
]
SlotOption = Annotated[
    str | None,
    typer.Option(
        "--slot",
        metavar="SLOT",
        help="Use only the snapshots of this slot; default: of all slots of the database.",
        autocompletion=complete_slot,
        show_default=False,
    ),
]
StateOption = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="FILE|table:SCHEMA.NAME",
        help="Read the state where slot tail --state keeps it; default: a file of this user on this machine.",
        show_default=False,
    ),
]


def known_snapshots(
    conn: Connection, slot: str | None, state: str | None
) -> dict[str, tuple[SnapshotState, ...] | None]:
    """Return the snapshots of each pgoutput slot of the database, or of one slot; None where there is no state.

    Raises:
        BadValue, BadState, NotFound, Refused: see ``table_store.read_slots``.
    """
    from rdsrepl.snapshot import table_store

    return table_store.read_slots(conn, parse_place(state), slot)


def found(
    known: Mapping[str, tuple[SnapshotState, ...] | None], snapshot: str, slot: str | None
) -> tuple[str, tuple[SnapshotState, ...] | None]:
    """Return the slot of a snapshot, and the snapshots of that slot, which may lack it; None without a state.

    Raises:
        NotFound: no slot was named, and no slot has such a snapshot.
        BadValue: several slots have one.
    """
    have = [name for name, states in known.items() if any(one.request.id == snapshot for one in states or ())]
    if len(have) == 1:
        return have[0], known[have[0]]
    if len(have) > 1:
        raise BadValue(f"slots {', '.join(have)} have a snapshot {snapshot}", hint=f"add --slot {have[0]}")
    if slot is not None:
        return slot, known[slot]
    raise not_found(snapshot, known)


def not_found(snapshot: str, known: Mapping[str, tuple[SnapshotState, ...] | None]) -> NotFound:
    """Return the error for a snapshot that no state has."""
    others = [one.request.id for states in known.values() for one in states or ()]
    return NotFound(
        f"no snapshot {snapshot}",
        hint=did_you_mean(
            snapshot,
            others,
            otherwise="list them: rdsrepl snapshot list; if slot tail keeps its state elsewhere, add --state or --slot",
        ),
    )
