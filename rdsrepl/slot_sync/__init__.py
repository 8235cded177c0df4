"""Layer 5: keeps the followers of slot pairs in step with their leaders: one pass, or a service.

Entry points: ``passes.PairSynchronizer``, ``service.run``. A pass is no plan: like the confirmations of the tail, it
repeats what the consumer confirmed, and no person can judge that better than the guards of the statement. What creates
or drops a slot is a plan.
"""
