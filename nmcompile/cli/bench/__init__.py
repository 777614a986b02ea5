"""`nmc bench` and its commands: run, compare, report."""
