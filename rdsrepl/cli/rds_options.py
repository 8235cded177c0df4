"""What ``cluster`` and ``instance`` share: the options that make one, and what must be said before one is deleted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.options import duration_option
from rdsrepl.errors import BadValue, UsageError

if TYPE_CHECKING:
    from rdsrepl.aws.clusters import Cluster, NewCluster
    from rdsrepl.aws.instances import Instance

LOGIN_PANEL: Final = "Master user"
STORAGE_PANEL: Final = "Storage and network"

InstanceClass = Annotated[str, typer.Option("--class", metavar="CLASS", help="db.r6g.large, db.r6gd.large, …")]
EngineVersion = Annotated[
    str | None, typer.Option("--engine-version", metavar="VERSION", help="16.4, …", show_default="AWS's default")
]
MasterUser = Annotated[
    str | None,
    typer.Option(
        "--master-user", metavar="NAME", help="Its name.", rich_help_panel=LOGIN_PANEL, show_default="dbadmin"
    ),
]
MasterSecret = Annotated[
    str | None,
    typer.Option(
        "--master-secret",
        metavar="SECRET",
        help="Take the master user's password from this Secrets Manager secret.",
        rich_help_panel=LOGIN_PANEL,
        show_default="RDS makes and keeps one",
    ),
]
Dbname = Annotated[str | None, typer.Option("--dbname", metavar="NAME", help="A first database.")]
Storage = Annotated[
    int | None,
    typer.Option("--storage", min=1, metavar="GIB", help="Allocated storage.", rich_help_panel=STORAGE_PANEL),
]
StorageType = Annotated[
    str | None,
    typer.Option("--storage-type", metavar="TYPE", help="gp3, io1, io2, …", rich_help_panel=STORAGE_PANEL),
]
Iops = Annotated[
    int | None,
    typer.Option("--iops", min=1, metavar="N", help="Provisioned IOPS.", rich_help_panel=STORAGE_PANEL),
]
SubnetGroup = Annotated[
    str | None,
    typer.Option("--subnet-group", metavar="NAME", help="A DB subnet group.", rich_help_panel=STORAGE_PANEL),
]
SecurityGroup = Annotated[
    list[str] | None,
    typer.Option(
        "--security-group",
        metavar="ID",
        help="A VPC security group; again for more.",
        rich_help_panel=STORAGE_PANEL,
        show_default=False,
    ),
]
Port = Annotated[
    int | None,
    typer.Option("--port", min=1150, max=65535, help="Where it listens.", rich_help_panel=STORAGE_PANEL),
]
DeletionProtection = Annotated[
    bool, typer.Option("--deletion-protection", help="AWS refuses to delete it.", show_default=False)
]
Timeout = Annotated[float, duration_option("--timeout", help="Give up after each wait of this long.")]
WithPending = Annotated[
    bool,
    typer.Option(
        "--with-pending",
        help="Reboot although queued modifications (PendingModifiedValues) may take effect then.",
        show_default=False,
    ),
]
FinalSnapshot = Annotated[
    str | None,
    typer.Option("--final-snapshot", metavar="NAME", help="Keep the data in a snapshot of this name."),
]
SkipFinalSnapshot = Annotated[
    bool, typer.Option("--skip-final-snapshot", help="Lose the data for ever.", show_default=False)
]
Confirm = Annotated[
    str | None,
    typer.Option("--confirm", metavar="ID", help="The identifier once more, in place of typing it when asked."),
]


def require_decision(final_snapshot: str | None, skip: bool) -> None:
    """Refuse a deletion that does not say what becomes of the data.

    Raises:
        UsageError: neither or both of the two options were given.
        BadValue: no snapshot may have that name.
    """
    from rdsrepl.aws import identifiers

    if (final_snapshot is None) != skip:
        raise UsageError(
            "what shall become of the data?", hint="--final-snapshot NAME keeps it, --skip-final-snapshot loses it"
        )
    if final_snapshot is not None:
        identifiers.check(final_snapshot, "a snapshot", longest=255)


def check_class(name: str) -> None:
    """Refuse what cannot be an instance class.

    Raises:
        BadValue: it cannot.
    """
    if not re.fullmatch(r"db\.[a-z0-9-]+(\.[a-z0-9-]+)?", name):
        raise BadValue(f"{name!r} is no instance class", hint="for example db.r6gd.large, or db.serverless")


def pending_words(found: Cluster | Instance) -> str | None:
    """Return what is queued for the maintenance window: ``EngineVersion 17.2, MultiAZ true``; None is nothing."""
    return ", ".join(f"{name} {value}" for name, value in found.pending_modifications.items()) or None


def cluster_storage_words(new: NewCluster) -> str:
    """Return which storage a new Multi-AZ DB cluster is asked for; AWS's pages differ on whether gp3 needs ``Iops``."""
    asked = f"storage type {new.storage_type}"
    if new.iops is not None:
        return f"{asked} with Iops={new.iops} is sent"
    if new.storage_type == "gp3":
        return f"{asked} is sent without Iops; if AWS requires it, add --storage-type gp3 --iops 3000"
    return f"{asked} is sent without Iops, which AWS requires for io1 and io2: --iops N"


def storage_words(found: Cluster | Instance) -> str:
    """Return storage in words: ``200 GiB io1, 3000 IOPS``."""
    from rdsrepl.aws import engines

    if engines.is_aurora(found.engine):
        return "Aurora's, grows by itself"
    iops = f", {found.iops} IOPS" if found.iops else ""
    return f"{found.allocated_storage_gib} GiB {found.storage_type or ''}".rstrip() + iops
