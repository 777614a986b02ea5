"""A model in parts: what is compiled, and the rest of it, which onnxruntime runs."""
