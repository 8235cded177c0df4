"""The sandbox's AWS: an RDS API on botocore's own service model, and moto's services beside it, in one process.

Entry point: ``python -m rdsrepl.sandbox.api``. A call passes through ``http_server``, ``query_protocol`` and
``service`` to the function of ``operations`` that implements it. ``records`` are what that reads and changes;
``controller`` makes the servers follow the records.
"""
