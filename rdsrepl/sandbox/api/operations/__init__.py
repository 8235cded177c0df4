"""The operations of the RDS API, by noun. Importing this package registers them with ``service``."""

from rdsrepl.sandbox.api.operations import clusters, db_snapshots, engine_versions, events, instances, parameter_groups

__all__ = ["clusters", "db_snapshots", "engine_versions", "events", "instances", "parameter_groups"]
