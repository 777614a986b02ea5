"""Graph passes: from a training-form model to plain convolutions with proven patterns.

Written against `nmcompile.passes.graphs.interface`; the adapters for Torch FX and ONNX are modules
of their own, so that importing this package needs neither framework, nor TVM.
"""

if __name__ == "passes":
    raise ImportError("import nmcompile.passes, not passes (run `pip install -e .` once)")
