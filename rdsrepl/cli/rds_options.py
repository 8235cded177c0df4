"""Declare the options that ``cluster`` and ``instance`` share, and describe what both have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.completion import complete_param_group
from rdsrepl.cli.options import duration_option, flag_option, option_parser
from rdsrepl.config import Aws
from rdsrepl.errors import BadValue, UsageError
from rdsrepl.units import parse_size_in

if TYPE_CHECKING:
    from rdsrepl.aws.clusters import Cluster, NewCluster
    from rdsrepl.aws.instances import Instance
    from rdsrepl.aws.promotions import Backups

_login_option: Final = partial(typer.Option, rich_help_panel="Master user")
_storage_option: Final = partial(typer.Option, rich_help_panel="Storage and network")


@dataclass(frozen=True, slots=True)
class NewServerOptions:
    """The options that ``cluster create`` and ``instance create`` share."""

    instance_class: Annotated[
        str, typer.Option("--class", metavar="CLASS", help="Use this instance class: db.r6g.large, db.r6gd.large, ...")
    ]
    engine_version: Annotated[
        str | None,
        typer.Option(
            "--engine-version",
            metavar="VERSION",
            help="Use this engine version: 16.4, ...",
            show_default="AWS's default",
        ),
    ] = None
    param_group: Annotated[
        str | None,
        typer.Option(
            "--param-group",
            metavar="NAME",
            help="Attach this parameter group.",
            autocompletion=complete_param_group,
            show_default="AWS's default",
        ),
    ] = None
    deletion_protection: Annotated[bool, flag_option("--deletion-protection", help="Have AWS refuse to delete it.")] = (
        False
    )
    master_user: Annotated[
        str | None, _login_option("--master-user", metavar="NAME", help="Name the master user.", show_default="dbadmin")
    ] = None
    master_secret: Annotated[
        str | None,
        _login_option(
            "--master-secret",
            metavar="SECRET",
            help="Take the master user's password from this Secrets Manager secret.",
            show_default="RDS creates and keeps one",
        ),
    ] = None
    dbname: Annotated[str | None, _login_option("--dbname", metavar="NAME", help="Create this database.")] = None
    storage: Annotated[
        int | None,
        _storage_option(
            "--storage",
            parser=option_parser(partial(parse_size_in, "GiB")),
            metavar="GIB",
            help="Allocate this storage, in GiB or with a unit: 200, 1TB.",
        ),
    ] = None
    storage_type: Annotated[
        str | None, _storage_option("--storage-type", metavar="TYPE", help="Use this storage type: gp3, io1, io2, ...")
    ] = None
    iops: Annotated[int | None, _storage_option("--iops", min=1, metavar="N", help="Provision this many IOPS.")] = None
    subnet_group: Annotated[
        str | None, _storage_option("--subnet-group", metavar="NAME", help="Use this DB subnet group.")
    ] = None
    security_group: Annotated[
        list[str] | None,
        _storage_option(
            "--security-group", metavar="ID", help="Use this VPC security group; may be repeated.", show_default=False
        ),
    ] = None
    port: Annotated[int | None, _storage_option("--port", min=1150, max=65535, help="Listen on this port.")] = None

    def check_class(self) -> None:
        """Refuse a malformed instance class.

        Raises:
            BadValue: it is malformed.
        """
        if not re.fullmatch(r"db\.[a-z0-9-]+(\.[a-z0-9-]+)?", self.instance_class):
            raise BadValue(
                f"{self.instance_class!r} is not an instance class", hint="for example db.r6gd.large, or db.serverless"
            )

    def password(self, aws: Aws) -> str | None:
        """Return the master user's password; None lets RDS create one.

        Raises:
            NotFound: there is no such secret.
        """
        from rdsrepl.aws import secrets

        return None if self.master_secret is None else secrets.get(aws, self.master_secret).password


@dataclass(frozen=True, slots=True)
class PromotionOptions:
    """The options of a promotion: ``instance promote`` and ``failover run``."""

    backup_retention: Annotated[
        int | None,
        typer.Option(
            "--backup-retention",
            min=0,
            max=35,
            metavar="DAYS",
            help="Keep automated backups of the promoted instance for this many days; 0 takes none.",
            show_default="AWS's: 1",
        ),
    ] = None
    backup_window: Annotated[
        str | None,
        typer.Option(
            "--backup-window",
            metavar="HH:MM-HH:MM",
            help="Take automated backups in this time of the day, in UTC.",
            show_default="AWS's",
        ),
    ] = None

    def given(self) -> Backups:
        """Return the backups.

        Raises:
            BadValue: the window is malformed.
        """
        from rdsrepl.aws.promotions import Backups

        return Backups(self.backup_retention, self.backup_window)


Timeout = Annotated[float, duration_option("--timeout", help="Time out each wait after this long.")]
WithPending = Annotated[
    bool,
    flag_option("--with-pending", help="Reboot even if queued modifications (PendingModifiedValues) may take effect."),
]
Confirm = Annotated[
    str | None,
    typer.Option("--confirm", metavar="ID", help="Confirm with the identifier, in place of typing it when asked."),
]


@dataclass(frozen=True, slots=True)
class DeletionOptions:
    """The options that ``cluster delete`` and ``instance delete`` share."""

    final_snapshot: Annotated[
        str | None, typer.Option("--final-snapshot", metavar="NAME", help="Keep the data in a snapshot of this name.")
    ] = None
    skip_final_snapshot: Annotated[bool, flag_option("--skip-final-snapshot", help="Delete the data as well.")] = False
    confirm: Confirm = None

    def require_decision(self) -> None:
        """Refuse a deletion that does not say whether the data is kept.

        Raises:
            UsageError: neither or both of the two options were given.
            BadValue: no snapshot may have that name.
        """
        from rdsrepl.aws import identifiers

        if (self.final_snapshot is None) != self.skip_final_snapshot:
            raise UsageError(
                "choose --final-snapshot or --skip-final-snapshot",
                hint="--final-snapshot NAME keeps the data, --skip-final-snapshot deletes it",
            )
        if self.final_snapshot is not None:
            identifiers.check(self.final_snapshot, "a snapshot", longest=255)


def queued_modifications(server: Cluster | Instance) -> str | None:
    """Return what is queued for the maintenance window: ``EngineVersion 17.2, MultiAZ true``; None where nothing is."""
    return ", ".join(f"{name} {value}" for name, value in server.pending_modifications.items()) or None


def storage_request(new: NewCluster) -> str:
    """Return the storage that is requested for a new Multi-AZ DB cluster.

    AWS's documentation is not consistent on whether gp3 needs ``Iops``.
    """
    requested = f"storage type {new.storage_type}"
    if new.iops is not None:
        return f"{requested} with Iops={new.iops} is sent"
    if new.storage_type == "gp3":
        return f"{requested} is sent without Iops; if AWS requires it, add --storage-type gp3 --iops 3000"
    return f"{requested} is sent without Iops, which AWS requires for io1 and io2: --iops N"


def storage(server: Cluster | Instance) -> str:
    """Return the storage as text: ``200 GiB io1, 3000 IOPS``."""
    from rdsrepl.aws import engines

    if engines.is_aurora(server.engine):
        return "Aurora volume, grows automatically"
    iops = f", {server.iops} IOPS" if server.iops else ""
    return f"{server.allocated_storage_gib} GiB {server.storage_type or ''}".rstrip() + iops
