"""Kernels: what they compute (`spec`), which there are (`catalog`), and their TIR per target."""
