"""Layer 5b: keeps the followers of slot pairs in step with their leaders: one pass, or a service.

Entry points: ``passes.PairSynchronizer``, ``service.run``. A pass is no plan: like the confirmations of the tail, it
repeats what the consumer confirmed, and the guards of the statement decide. What creates or drops a slot is a plan.
"""
