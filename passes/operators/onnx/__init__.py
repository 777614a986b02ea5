"""ONNX operators: `table.py` says which are believed in, `settle.py` holds graphs to it."""
