"""The command line: ``main`` (root and error boundary), ``options``, ``settle``, and one file a noun."""
