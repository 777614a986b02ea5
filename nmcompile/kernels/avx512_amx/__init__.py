"""Kernels for CPUs with AMX: products on tiles of 16 pixels x 16 outputs x 64 bytes."""
