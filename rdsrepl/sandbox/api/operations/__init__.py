"""The operations of the RDS API, by noun. The import of this package registers them in ``service``."""

from rdsrepl.sandbox.api.operations import clusters, db_snapshots, engine_versions, events, instances, parameter_groups

__all__ = ["clusters", "db_snapshots", "engine_versions", "events", "instances", "parameter_groups"]
