"""Measuring candidates, here or on other machines, and remembering which were fastest.

Nothing is exported: devices import `measure` alone, which needs no compiler.
"""
