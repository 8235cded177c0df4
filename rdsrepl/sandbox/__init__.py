"""Layer 5: a local model of RDS, with real PostgreSQL servers on loopback that behave like those of RDS.

Entry point: ``lifecycle`` (``up``, ``down``, ``status``). The tests use ``servers``, too.
"""
