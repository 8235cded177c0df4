"""Layer 4: decisions about failovers, as pure functions: what protects a slot, slot pairs, what a failover lost.

Entry points: ``readiness.assess``, ``slot_pairs.pair_of``, ``divergence.fork``, ``divergence.choose_slots``.
"""
