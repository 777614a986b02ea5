"""Convolutions and matrix products on tiles: pixels in rows, output channels in columns."""
