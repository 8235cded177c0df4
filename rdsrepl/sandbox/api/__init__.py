"""The sandbox's AWS: an RDS API on botocore's own service model, and moto's services beside it.

``server`` speaks HTTP, ``protocol`` the query protocol; ``operations`` knows which function answers which operation;
``engines`` and ``groups`` are RDS's parameter groups. One process serves it all: ``python -m rdsrepl.sandbox.api``.
"""
