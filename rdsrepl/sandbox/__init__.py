"""A local stand-in for RDS: real PostgreSQL servers on loopback that behave as RDS's do.

``lifecycle`` is what the commands use; ``servers`` and ``binaries`` are also what the tests make their servers with.
"""
