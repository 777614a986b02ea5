"""Operators that TVM computes otherwise than the framework of a model, made right."""
