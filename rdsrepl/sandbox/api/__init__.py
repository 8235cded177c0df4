"""The AWS API of the sandbox: RDS by botocore's service model, and the services of moto, in one process.

Entry point: ``python -m rdsrepl.sandbox.api``. A request passes through ``http_server``, ``query_protocol`` and
``service`` to the function in ``operations`` that implements it. That reads and changes the ``records``, and calls the
``server_controller``, which changes the servers.
"""
