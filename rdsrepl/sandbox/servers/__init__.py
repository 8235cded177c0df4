"""The PostgreSQL servers of the sandbox: find the programs, run the servers, set up the roles of RDS."""
