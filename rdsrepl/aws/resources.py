"""What DB clusters and DB instances have in common: described fields, availability, deletion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from rdsrepl.aws import engines, pending_modifications, session, statuses
from rdsrepl.config import Aws, Target
from rdsrepl.errors import Error, Instead, NotAvailable, NotFound, Refused
from rdsrepl.plan import AwsCall, Condition, Plan, Wait
from rdsrepl.text.commands import command, shell

ResourceKind = Literal["cluster", "instance"]
# Returns the current status; raises NotFound.
StatusReader = Callable[[Target], str]


def ls(aws: Aws, kind: ResourceKind) -> list[dict[str, Any]]:
    """Return the descriptions of all PostgreSQL clusters or instances of the region."""
    noun = kind.capitalize()
    rows = session.pages(aws, "rds", f"DescribeDB{noun}s", f"DB{noun}s")
    return [row for row in rows if engines.is_postgres(row)]


def get(aws: Aws, kind: ResourceKind, identifier: str) -> dict[str, Any]:
    """Return the description of a cluster or instance.

    Raises:
        NotFound: it does not exist in the region.
        Refused: the engine is not PostgreSQL.
    """
    try:
        row = _describe(aws, kind, identifier)
    except NotFound as exc:
        # Asked only when the error is shown: waits meet this error as well.
        exc.instead = partial(_of_the_other_kind, aws, kind, identifier)
        raise
    engines.require_postgres(row, kind, identifier)
    return row


def _describe(aws: Aws, kind: ResourceKind, identifier: str) -> dict[str, Any]:
    noun = kind.capitalize()
    response = session.call(aws, "rds", f"DescribeDB{noun}s", {f"DB{noun}Identifier": identifier})
    row: dict[str, Any] = response[f"DB{noun}s"][0]
    return row


def _of_the_other_kind(aws: Aws, kind: ResourceKind, identifier: str) -> Instead | None:
    """Return the instance that has the identifier of a cluster that does not exist, or the reverse."""
    try:
        if kind == "instance":
            _describe(aws, "cluster", identifier)
            return Instead(f"{identifier} is a cluster", ({"cluster": identifier},), identifier)
        row = _describe(aws, "instance", identifier)
    except Error:
        return None
    cluster_id = row.get("DBClusterIdentifier")
    if cluster_id is None:
        return Instead(f"{identifier} is an instance", ({"instance": identifier},), identifier)
    choices = ({"cluster": cluster_id}, {"instance": identifier})
    return Instead(f"{identifier} is an instance, a member of cluster {cluster_id}", choices, identifier)


def common_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Cluster` and `Instance` that both describe calls return under the same name."""
    return {
        "engine": row["Engine"],
        "engine_version": row["EngineVersion"],
        "allocated_storage_gib": row.get("AllocatedStorage") or 0,
        "storage_type": row.get("StorageType"),
        "iops": row.get("Iops"),
        "master_user": row.get("MasterUsername"),
        "master_secret": (row.get("MasterUserSecret") or {}).get("SecretArn"),
        "iam_auth": bool(row.get("IAMDatabaseAuthenticationEnabled")),
        "deletion_protection": bool(row.get("DeletionProtection")),
        "pending_modifications": pending_modifications.parse(row.get("PendingModifiedValues")),
    }


def require_available(kind: ResourceKind, identifier: str, status: str) -> None:
    """Refuse a change while another operation is in progress, or while the status needs a repair.

    Raises:
        NotAvailable: the cluster or instance is not available.
    """
    if not statuses.is_usable(status):
        hint = f"wait until it is available: {command(f'{kind} show {{}}', identifier)}"
        if statuses.is_dead_end(status):
            hint = statuses.remedy(status, kind, identifier)
        raise NotAvailable(f"{kind} {identifier} is {status}, not available", hint=hint)


def delete_call(kind: ResourceKind, identifier: str, *, final_snapshot: str | None, status_of: StatusReader) -> AwsCall:
    """Return the call that deletes a cluster or an instance; it is skipped if the deletion is in progress.

    FINAL_SNAPSHOT is the name of the snapshot to take; None takes none.
    """
    noun = kind.capitalize()
    request: dict[str, Any] = {f"DB{noun}Identifier": identifier, "SkipFinalSnapshot": final_snapshot is None}
    if final_snapshot is not None:
        request["FinalDBSnapshotIdentifier"] = final_snapshot
    return AwsCall(
        f"delete {kind} {identifier}",
        "rds",
        f"DeleteDB{noun}",
        request,
        needed=partial(_is_kept, status_of=status_of),
        condition="unless it is being deleted",
        effect="drop",
    )


def deletion(
    kind: ResourceKind,
    identifier: str,
    calls: Sequence[AwsCall],
    *,
    kept: str,
    status: str,
    is_protected: bool,
    status_of: StatusReader,
    timeout_seconds: float,
) -> Plan:
    """Return the plan that makes the calls of a deletion, unless it is in progress, and waits for its end.

    KEPT is a warning that says what remains of the data.

    Raises:
        Refused: deletion protection is on.
    """
    if is_protected:
        turn_off = f"aws rds modify-db-{kind} --no-deletion-protection --db-{kind}-identifier {{}}"
        hint = f"turn it off: {shell(turn_off, identifier)}"
        raise Refused(f"{kind} {identifier} has deletion protection", hint=hint)
    title = f"delete {kind} {identifier}"
    probe = partial(_deleted, label=f"{kind} {identifier}", status_of=status_of)
    wait = Wait(f"wait until {kind} {identifier} is deleted", probe, timeout_seconds)
    if status == statuses.DELETING:
        return Plan(title, (wait,), warnings=("the deletion is already in progress",))
    return Plan(title, (*calls, wait), warnings=(kept,))


def snapshot_warning(final_snapshot: str | None) -> str:
    """Return what a deletion keeps of the data."""
    return (
        f"keeps the final snapshot {final_snapshot}" if final_snapshot else "takes no final snapshot: the data is lost"
    )


def _is_kept(target: Target, *, status_of: StatusReader) -> bool:
    try:
        return status_of(target) != statuses.DELETING
    except NotFound:
        return False


def _deleted(target: Target, *, label: str, status_of: StatusReader) -> Condition:
    try:
        return Condition(False, f"{label} {status_of(target)}")
    except NotFound:
        return Condition(True, "deleted")
