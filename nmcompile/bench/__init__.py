"""Latency over a matrix of models, patterns, engines and devices: run, keep, compare, report."""
