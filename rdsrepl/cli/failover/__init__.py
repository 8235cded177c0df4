"""``rdsrepl failover``: one file per verb."""
