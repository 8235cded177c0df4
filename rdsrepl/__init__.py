"""rdsrepl: operations for PostgreSQL logical replication on Amazon RDS and Aurora."""

__version__ = "0.1.0"
