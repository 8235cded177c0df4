"""Layer 4: decisions about failovers, as pure functions: what protects a slot, what a failover lost.

Entry points: ``readiness.assess``, ``divergence.fork``, ``divergence.choose_slots``.
"""
