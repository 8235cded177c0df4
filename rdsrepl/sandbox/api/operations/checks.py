"""Checks of request parameters that the operations on clusters and instances share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rdsrepl.sandbox.api import engine_catalog, secrets
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.engine_catalog import EngineVersion
from rdsrepl.sandbox.api.parameter_groups import StoredGroup, default_name
from rdsrepl.sandbox.api.records import Cluster, Instance, Records
from rdsrepl.sandbox.api.server_controller import Controller
from rdsrepl.sandbox.api.service import Service
from rdsrepl.sandbox.api.types import Parameters, ResourceKind
from rdsrepl.sandbox.servers import binaries
from rdsrepl.sandbox.servers.binaries import Binaries

SUBNET_GROUP: Final = "default"
MAX_INSTANCES: Final = 40
MAX_NAME_LENGTH: Final = 63
_RESERVED_USERS: Final = (
    *("rdsadmin", "rdsrepladmin", "rds_superuser", "rds_replication", "rds_password", "rds_iam"),
    *("public", "none"),
)


def identifier_of(name: str) -> str:
    """Return an identifier, or that in an ARN, in lower case as it is stored."""
    return (name.rpartition(":")[2] if name.startswith("arn:") else name).lower()


def find_release(controller: Controller, engine: str, version: str | None) -> tuple[EngineVersion, Binaries]:
    """Return a release of an engine, and the PostgreSQL programs of its major version.

    Raises:
        Fault: the engine or version does not exist, or its programs are not installed.
    """
    state = controller.actions.state()
    own = state.binaries
    release = engine_catalog.find(engine, version or str(own.major))
    for programs in (own, *binaries.installed(), *binaries.from_wheel()):
        if programs.major == release.major:
            if engine == "postgres" and "." not in (version or ""):
                release = engine_catalog.find(engine, ".".join(map(str, programs.version[:2])))
            return release, programs
    raise fault("InvalidParameterCombination", f"Cannot find version {version} for {engine}")


def same_major(engine: str, current: str, wanted: str | None) -> EngineVersion:
    """Return the release for a version change; the programs of the sandbox stay the same.

    Raises:
        Fault: the version does not exist, or has another major version.
    """
    release = engine_catalog.find(engine, wanted or current)
    if release.major != int(current.partition(".")[0]):
        message = (
            f"Cannot upgrade {engine} from {current} to {release.version}: the sandbox does not support major upgrades"
        )
        raise fault("InvalidParameterCombination", message)
    return release


def attachable_group(service: Service, kind: ResourceKind, name: str | None, release: EngineVersion) -> StoredGroup:
    """Return a parameter group, or the default one, for a release.

    Raises:
        Fault: the group does not exist, or its family is that of another release.
    """
    wanted = name or default_name(release.family)
    group = service.groups.find(kind, wanted)
    if group is None:
        missing = "DBClusterParameterGroupNotFoundFault" if kind == "cluster" else "DBParameterGroupNotFoundFault"
        raise fault(missing, f"DB{'Cluster' if kind == 'cluster' else ''}ParameterGroup not found: {wanted}")
    if group.family != release.family:
        raise fault(
            "InvalidParameterCombination",
            f"The Parameter Group {group.name} with DBParameterGroupFamily {group.family} cannot be used for this "
            f"{kind}. Please use a Parameter Group with DBParameterGroupFamily {release.family}",
        )
    return group


def master_credentials(p: Parameters, *, required: bool) -> tuple[str, str]:
    """Return the master user and the password: the given one, a new one when RDS manages it, or an empty one.

    Raises:
        Fault: a parameter is missing or not valid, or two parameters exclude each other.
    """
    user, password, managed = (
        p.get("MasterUsername", ""),
        p.get("MasterUserPassword"),
        p.get("ManageMasterUserPassword"),
    )
    if required and not user:
        raise fault("InvalidParameterValue", "The parameter MasterUsername must be provided and must not be blank.")
    if user and (not user[0].isalpha() or not user.replace("_", "a").isalnum() or len(user) > 63):
        raise fault("InvalidParameterValue", f"The parameter MasterUsername is not a valid identifier: {user}")
    if user.lower() in _RESERVED_USERS or user.lower().startswith("pg_"):
        message = f"MasterUsername {user} cannot be used as it is a reserved word used by the engine"
        raise fault("InvalidParameterValue", message)
    if password is not None and managed:
        message = "You can't specify MasterUserPassword when ManageMasterUserPassword is turned on."
        raise fault("InvalidParameterCombination", message)
    if password is not None and (len(password) < 8 or len(password) > 128 or set(password) & set('/@" ')):
        message = (
            "The parameter MasterUserPassword is not a valid password: 8 to 128 printable ASCII characters besides "
            "'/', '@', '\"', ' '."
        )
        raise fault("InvalidParameterValue", message)
    if managed:
        return user, secrets.generate()
    if required and password is None:
        message = "The parameter MasterUserPassword must be provided and must not be blank."
        raise fault("InvalidParameterValue", message)
    return user, password or ""


def check_subnet_group(p: Parameters) -> None:
    """Refuse every subnet group but the default one: the sandbox has no networks.

    Raises:
        Fault: the request names another subnet group.
    """
    name = p.get("DBSubnetGroupName", SUBNET_GROUP)
    if name.lower() != SUBNET_GROUP:
        raise fault("DBSubnetGroupNotFoundFault", f"DBSubnetGroup {name} not found.")


def check_quota(records: Records, more: int) -> None:
    """Refuse more instances than the quota of an account.

    Raises:
        Fault: the quota is reached.
    """
    if len(records.all(Instance)) + more > MAX_INSTANCES:
        raise fault("InstanceQuotaExceededFault", "DB Instance quota exceeded")


def checked_storage(p: Mapping[str, Any], *, default: str) -> tuple[str, int, int | None]:
    """Return storage type, size in GiB and IOPS.

    Raises:
        Fault: they are not valid, or not valid together.
    """
    kind, size, iops = p.get("StorageType") or default, p["AllocatedStorage"], p.get("Iops")
    if kind not in ("gp2", "gp3", "io1", "io2"):
        raise fault("InvalidParameterValue", f"Invalid storage type: {kind}")
    minimum = 100 if kind in ("io1", "io2") else 20
    if not minimum <= size <= 65536:
        raise fault(
            "InvalidParameterValue", f"Invalid storage size for {kind}: {size} GiB, must be between {minimum} and 65536"
        )
    if kind in ("io1", "io2") and iops is None:
        raise fault("InvalidParameterCombination", f"You must specify an IOPS value for storage type {kind}.")
    return kind, size, iops


def update_secret(controller: Controller, record: Cluster | Instance, p: Parameters, password: str) -> None:
    """Store a changed master password in Secrets Manager, or delete the secret, as a request says."""
    managed = p.get("ManageMasterUserPassword")
    if password:
        keep = managed if managed is not None else record.secret_arn is not None
        controller.manage_secret(record, password if keep else None)
    elif managed is False:
        controller.manage_secret(record, None)
