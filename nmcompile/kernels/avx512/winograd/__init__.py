"""Winograd's method: 3x3, 5x5 and strided windows as products of transformed tiles."""
