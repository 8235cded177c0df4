"""Benchmarks of our speed and other tools', on the same work in one run (``make bench``). They are not tests."""
