"""The graph interface that passes are written against, and its adapters for Torch FX and ONNX."""
