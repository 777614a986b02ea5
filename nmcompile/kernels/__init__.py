"""Kernels: what they compute (`spec`), which there are (`catalog`), and their TIR per target."""

from nmcompile.runtime.native import torch_hidden

# Whoever compiles an ONNX model needs no torch, and importing it takes longer than inspecting does.
with torch_hidden():
    import tvm.relax  # noqa: F401
