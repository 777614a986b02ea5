"""Operators over integers that stand for real numbers, in terms of operators over these."""
