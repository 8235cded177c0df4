"""Runbooks: pages that people read and that ``rdsrepl runbook run`` runs. The page is the one source."""
