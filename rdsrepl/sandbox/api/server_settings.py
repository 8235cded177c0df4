"""Converts the values of parameter groups to the settings of a server.

A server gets every parameter that its version of PostgreSQL knows, except those that do not work on one machine: paths,
libraries, and sizes for the memory of an instance class. Parameters of RDS (``rds.…``) can only be shown, but
``rds.logical_replication`` also sets ``wal_level``, and ``rds.logical_slot_sync_dbname`` is in ``primary_conninfo``
(``server_registry.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rdsrepl.sandbox.api.parameter_groups import ParameterGroups
from rdsrepl.sandbox.servers.binaries import Binaries

# Set by the sandbox, or they need something that is not installed.
_NOT_PASSED_ON: Final = frozenset(
    {
        "archive_command",
        "archive_mode",
        "archive_timeout",
        "bonjour",
        "cluster_name",
        "config_file",
        "data_directory",
        "dynamic_shared_memory_type",
        "external_pid_file",
        "fsync",
        "full_page_writes",
        "hba_file",
        "hot_standby",
        "huge_pages",
        "ident_file",
        "listen_addresses",
        "log_destination",
        "log_directory",
        "log_filename",
        "log_line_prefix",
        "logging_collector",
        "max_files_per_process",
        "max_stack_depth",
        "password_encryption",
        "port",
        "primary_conninfo",
        "primary_slot_name",
        "session_preload_libraries",
        "shared_memory_type",
        "shared_preload_libraries",
        "ssl",
        "unix_socket_directories",
        "unix_socket_group",
        "unix_socket_permissions",
        "wal_level",
    }
)
# These values replace defaults that depend on the memory of the instance class.
_SMALL_VALUES: Final[Mapping[str, str]] = {
    "autovacuum_work_mem": "-1",
    "effective_cache_size": "131072",
    "maintenance_work_mem": "65536",
    "max_connections": "100",
    "shared_buffers": "4096",
    "wal_compression": "off",
}
_MAX_SHARED_BUFFERS: Final = 16384
_BOOLEAN: Final = ("rds.logical_replication", "rds.force_ssl", "rds.iam_auth_for_replication")


@dataclass(frozen=True, slots=True)
class AttachedGroups:
    """The parameter groups that determine the settings of a server.

    Attributes:
        instance_class: the class for which formulas are evaluated.
        cluster: the group of the cluster; None outside a cluster.
        instance: the group of the instance; None for a member of a Multi-AZ cluster.
    """

    instance_class: str
    cluster: str | None = None
    instance: str | None = None


def settings(groups: ParameterGroups, attached: AttachedGroups, programs: Binaries) -> dict[str, str]:
    """Return the settings of a server.

    On Aurora both groups apply, and changed parameters of the instance's group override those of the cluster's group.

    Raises:
        Fault: a group or the class does not exist.
    """
    values: dict[str, str] = {}
    chosen: set[str] = set()
    if attached.cluster is not None:
        values = groups.values("cluster", attached.cluster, attached.instance_class)
        chosen = set(groups.get("cluster", attached.cluster).changes)
    if attached.instance is not None:
        own = groups.values("instance", attached.instance, attached.instance_class)
        changed = set(groups.get("instance", attached.instance).changes)
        if attached.cluster is not None:
            own = {name: value for name, value in own.items() if name in changed}
        values |= own
        chosen |= changed
    made = {
        name: value if name in chosen else _SMALL_VALUES.get(name, value)
        for name, value in values.items()
        if name.lower() in programs.parameters and name not in _NOT_PASSED_ON
    }
    if int(made.get("shared_buffers", "0")) > _MAX_SHARED_BUFFERS:
        made["shared_buffers"] = str(_MAX_SHARED_BUFFERS)
    for name, value in values.items():
        if name.startswith("rds."):
            made[name] = {"0": "off", "1": "on"}.get(value, value) if name in _BOOLEAN else value
    made["wal_level"] = "logical" if made.get("rds.logical_replication") == "on" else "replica"
    return made


def is_reloadable(name: str, programs: Binaries) -> bool:
    """Return whether a new value of a parameter takes effect without a restart."""
    return programs.parameters.get(name.lower(), "sighup") not in ("postmaster", "internal")
