"""Our speed beside the peers', on the same work in one run (``make bench``). Nothing here is a test."""
