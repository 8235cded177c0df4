"""The sandbox's PostgreSQL servers: find the programs, run the processes, make them look like RDS."""
