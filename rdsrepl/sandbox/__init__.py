"""Layer 5: a local stand-in for RDS, with real PostgreSQL servers on loopback that behave as those of RDS.

Entry point: ``lifecycle`` (``up``, ``down``, ``status``). ``servers`` also serves the tests.
"""
