"""onnxruntime's own operators of transformers, in terms of ONNX's."""
