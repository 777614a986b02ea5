"""The adapter for ONNX graphs."""
