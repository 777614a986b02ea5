"""Kernels: what they compute (`spec`), which there are (`catalog`), and their TIR per target."""

from contextlib import suppress

from nmcompile.runtime.native import torch_hidden

# Whoever compiles an ONNX model needs no torch, and importing it takes longer than inspecting does.
# Without TVM, as in the kit for GPU machines, the modules that need none are there all the same.
with torch_hidden(), suppress(ModuleNotFoundError):
    import tvm.relax  # noqa: F401
