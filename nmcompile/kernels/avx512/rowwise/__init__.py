"""Rows that are read, reduced, and read again: layer norms and softmax."""
