"""Convolutions on the tensor cores of NVIDIA GPUs, sparse (2:4) and dense."""
