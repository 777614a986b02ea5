"""Quantised models: which operators run on integers, and how values lie in memory between them."""
